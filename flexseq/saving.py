"""A model as one file: weights, and the constructor's arguments as JSON. Nothing in the file is run when it is read."""

import json
import os
import re
import tempfile
import warnings
import zipfile
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flexseq.arguments import arguments_of, build, conversions_of, from_json
from flexseq.errors import InputError, unknown_name
from flexseq.files import replacing
from flexseq.nn.layer import ConvLayer
from flexseq.surgery import CONVERSIONS

FORMAT = "1"
MOST_ITEMS = 10_000
"""Of a list in a file's header."""


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write a model or layer of flexseq to one safetensors file.

    Args:
        model: an object of any class that flexseq makes public; also one that `to_niff` or its like converted, and one that is wrapped for
            several devices, averaging or compilation, whose inside is saved.
        path: where to; an existing file is replaced, whole or not at all.

    Raises:
        InputError: a class that is not flexseq's; an argument of its constructor or conversion that JSON cannot hold (a lambda as `kernel`,
            say); a model that was changed since, so that `load` could not build it again; a place that holds no plain file.

    Example:
        >>> import flexseq as fs, tempfile
        >>> model = fs.FlexTCN(depth=1)
        >>> fs.save(model, tempfile.gettempdir() + "/model.safetensors")
        >>> type(fs.load(tempfile.gettempdir() + "/model.safetensors")).__name__
        'FlexTCN'
    """
    from safetensors.torch import save_file

    model = _inside(model)
    arguments, conversions = arguments_of(model), conversions_of(model)
    state = model.state_dict()
    _check_unchanged(model, _built(type(model).__name__, arguments, conversions), state)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    metadata = {"flexseq": FORMAT, "class": type(model).__name__, "arguments": json.dumps(arguments)}
    metadata["dtypes"] = json.dumps(_dtypes(tensors))
    if conversions:
        metadata["conversions"] = json.dumps(conversions)
    with replacing(path) as part:
        save_file(tensors, part, metadata)


def load(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> nn.Module:
    """Build the model that `save` wrote, in its dtype, in eval mode.

    Args:
        path: a file of `save`'s.
        device: where to put the model.

    Raises:
        FileNotFoundError: no such file.
        InputError: a file that `save` did not write.
    """
    from safetensors import SafetensorError, safe_open

    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is not a safetensors file: it is {'a folder' if os.path.isdir(path) else 'no plain file'}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - a file has keys but is no mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("flexseq") != FORMAT:
        raise InputError(f"{path} was not written by flexseq.save (format {FORMAT}): its metadata are {str(metadata)[:300]}")
    try:
        if "dtypes" in metadata and json.loads(metadata["dtypes"]) != _dtypes(state):
            raise InputError(f"it was written with numbers of types {metadata['dtypes']}, and holds {json.dumps(_dtypes(state))}")
        arguments, conversions = json.loads(metadata["arguments"]), json.loads(metadata.get("conversions", "[]"))
        _check_sizes([arguments, conversions], len(state))
        model = _built(metadata["class"], arguments, conversions)
        _check_types(model, state)
        model.load_state_dict(state, assign=True)  # in the file's dtypes
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not hold a {metadata.get('class')} of this version of flexseq: {reason}") from error
    return model.to(device).eval()


def load_from_zip(path: str | os.PathLike) -> nn.Module:
    """The network in a zip file of an estimator.

    Raises:
        InputError: there is none in it.
    """
    try:
        with zipfile.ZipFile(path) as file, tempfile.TemporaryDirectory() as folder:
            part = os.path.join(folder, "model.safetensors")
            with open(part, "wb") as out:
                out.write(file.read("model.safetensors"))
            return load(part)
    except (KeyError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} holds no network of an estimator: {error}") from error


def _inside(model: nn.Module) -> nn.Module:
    """A model without what it is wrapped in, for several devices, for averaging or by torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := model.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def _built(name: str, arguments: dict[str, Any], conversions: list[list[Any]]) -> nn.Module:
    """A model as it was recorded, without weights: what a file asks for takes no memory before it is compared with what comes with it."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which were said when it was made
        model = build(name, from_json(arguments))
        for caller, options in conversions:
            if caller not in CONVERSIONS:
                raise unknown_name("conversion", caller, CONVERSIONS)
            if isinstance(options.get("only"), str) and not re.fullmatch(r"[\w.|^$\\\[\]()-]*", options["only"]):
                raise InputError(f"a file's conversions name modules, or have a pattern without repetitions, got only={options['only']!r}")
            model, _ = CONVERSIONS[caller](model, **from_json(options))
    return model


def _check_sizes(value: Any, tensors: int) -> None:
    """Raise InputError where a header asks for more layers than there are tensors, or for very many of anything."""
    if isinstance(value, list):
        if len(value) > MOST_ITEMS:
            raise InputError(f"its header holds a list of {len(value):,} items")
        for item in value:
            _check_sizes(item, tensors)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("depth", "layers") and isinstance(item, int) and item > max(tensors, 8):
                raise InputError(f"its header asks for {key}={item:,}, and {tensors} tensors come with it")
            _check_sizes(item, tensors)


def _check_types(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Raise InputError where a tensor is complex, of integers or floating unlike the model's own."""
    for name, own in model.state_dict().items():
        if isinstance(own, torch.Tensor) and name in state:
            found = state[name]
            kinds = [(tensor.is_complex(), tensor.is_floating_point()) for tensor in (own, found)]
            if kinds[0] != kinds[1]:
                raise InputError(f"{name} expected {own.dtype} or its like, got {found.dtype}")


def _dtypes(tensors: dict[str, torch.Tensor]) -> list[str]:
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})


def _check_unchanged(model: nn.Module, built: nn.Module, state: dict[str, Any]) -> None:
    """Raise InputError where a model is not what its recorded arguments make, but for its weights: nobody could load it."""
    name = type(model).__name__
    advice = f"build a {name} with the arguments that it has now and load the weights into that, or save the state_dict"
    theirs = built.state_dict()
    for key in sorted(state.keys() ^ theirs.keys()):
        raise InputError(f"{name} was changed since it was built: {key} is {'new' if key in state else 'gone'}; {advice}")
    sizes = tuple(f"{key}." if key else "" for key, module in model.named_modules() if isinstance(module, ConvLayer))
    for key, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.shape != theirs[key].shape and not key.startswith(sizes):  # which come with an input
            was, is_ = tuple(theirs[key].shape), tuple(tensor.shape)
            raise InputError(f"{name} was changed since it was built: {key} is of shape {is_}, its arguments make {was}; {advice}")
    others = dict(built.named_modules())
    for key, module in model.named_modules():
        other = others.get(key)
        synchronized = isinstance(module, _BatchNorm) and isinstance(other, _BatchNorm)  # over processes, with the same state
        if other is None or not (isinstance(module, type(other)) or synchronized):
            what = "is new" if other is None else f"is a {type(module).__name__}, its arguments make a {type(other).__name__}"
            raise InputError(f"{name} was changed since it was built: {key} {what}; {advice}")
        for attribute, value in vars(module).items():
            setting = isinstance(value, str | int | float | bool) and not attribute.startswith("_") and attribute != "training"
            if setting and attribute in vars(other) and vars(other)[attribute] != value and value == value:
                where = f"{key}.{attribute}" if key else attribute
                raise InputError(
                    f"{name} was changed since it was built: {where} is {value!r}, its arguments make {vars(other)[attribute]!r}; {advice}"
                )
