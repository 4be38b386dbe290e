"""What a module was built with, so that it can be saved as data and built again."""

import functools
import inspect
import numbers
from typing import Any, TypeVar

from flexseq.errors import InputError, unknown_name

T = TypeVar("T", bound=type)

BUILDABLE: dict[str, type] = {}
"""Every class whose constructor arguments are recorded, by name: what `flexseq.load` may build."""


def records_arguments(cls: T) -> T:
    """Class decorator: remember the constructor's arguments, defaults included, and make the class known to `fs.load`."""
    target: Any = cls
    init = target.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recording_init(self, *args, **kwargs):
        if "_arguments" not in self.__dict__:  # the outermost constructor comes first; a base class's does not overwrite it
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.__dict__["_arguments"] = _as_data(dict(list(bound.arguments.items())[1:]))
        init(self, *args, **kwargs)

    target.__init__ = recording_init
    BUILDABLE[cls.__name__] = cls
    return cls


def _as_data(arguments: dict[str, Any]) -> dict[str, Any] | str:
    # Data, not the objects: a lambda among them would make the module impossible to pickle.
    try:
        return to_json(arguments)
    except InputError as error:
        return str(error)


def is_recorded(module: object) -> bool:
    """Whether a module's own class is one whose constructor arguments are recorded."""
    return BUILDABLE.get(type(module).__name__) is type(module)


def arguments_of(module: object) -> dict[str, Any]:
    """The arguments that `module` was built with, as JSON.

    Raises:
        InputError: if its class is not one of flexseq's, or an argument cannot be written down, so that nobody could build it again.
    """
    name = type(module).__name__
    if not is_recorded(module):
        raise InputError(f"{name} is not a class of flexseq, so its constructor is not recorded; save its state_dict instead")
    arguments = module.__dict__["_arguments"]
    if isinstance(arguments, str):
        raise InputError(arguments)
    return arguments


def record_conversion(module: object, caller: str, options: dict[str, Any]) -> None:
    """Remember that a function of `flexseq.surgery` changed a module's layers, so that it can be done again when it is loaded."""
    module.__dict__["_conversions"] = [*module.__dict__.get("_conversions", []), [caller, _as_data(options)]]


def forget_arguments(module: object, reason: str) -> None:
    """A module that its constructor's arguments do not make any more: whoever asks for them is told why."""
    module.__dict__["_arguments"] = reason


def conversions_of(module: object) -> list[list[Any]]:
    """What `record_conversion` remembers of a module, as JSON: names of functions and their options.

    Raises:
        InputError: an option that cannot be written down.
    """
    conversions = module.__dict__.get("_conversions", [])
    for caller, options in conversions:
        if isinstance(options, str):
            raise InputError(f"{type(module).__name__} was converted by {caller}, which nobody could do again: {options}")
    return conversions


def build(name: str, arguments: dict[str, Any]) -> Any:
    """An object of the class called `name`, as `arguments_of` recorded it."""
    if name not in BUILDABLE:
        raise unknown_name("flexseq class", name, sorted(BUILDABLE))
    if arguments.get("update") == "replace":
        arguments = {**arguments, "rate": None}  # older files hold a default that was not used
    return BUILDABLE[name](**arguments)


def to_json(value: Any) -> Any:
    """Recorded arguments as JSON: plain values, and a kernel factory as its class and keywords.

    Raises:
        InputError: for a value that JSON cannot hold, such as a lambda.
    """
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, numbers.Integral):  # numpy's
        return int(value)
    factory, keywords = (value.func, value.keywords) if isinstance(value, functools.partial) and not value.args else (value, {})
    if isinstance(factory, type) and BUILDABLE.get(factory.__name__) is factory:
        return {"class": factory.__name__, "keywords": to_json(keywords)}
    raise InputError(
        f"cannot save the argument {value!r}: expected a plain value, a kernel's name, a class of flexseq.kernels, "
        "or functools.partial of one with keyword arguments"
    )


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"class", "keywords"}:
            if value["class"] not in BUILDABLE:
                raise unknown_name("flexseq class", value["class"], sorted(BUILDABLE))
            return functools.partial(BUILDABLE[value["class"]], **from_json(value["keywords"]))
        return {key: from_json(item) for key, item in value.items()}
    return value
