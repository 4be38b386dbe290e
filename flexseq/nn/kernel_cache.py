"""What eval mode keeps of a layer's kernel, and how it finds out whether that is still the layer's.

A kernel is a function of parameters and buffers, whose values are compared, since code may write into them in ways that no version tells
of, and of settings: plain attributes, lists, dicts and the classes of modules. A kernel that depends on anything else is not kept.
"""

import functools
import operator
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

INTERNAL = frozenset({*nn.Module().__dict__, "_arguments", "_conversions"})
"""Attributes of any module that are looked at by themselves, or have no part in what it computes."""
DEEPEST = 16
"""Of lists in lists; deeper ones may be circular."""
EXACT = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})


class CannotCompareError(Exception):
    """Something may change without anybody being able to tell."""


class Snapshot(NamedTuple):
    """Everything that a kernel is a function of.

    Args:
        settings: to be compared with ==.
        tensors: whose values are to be compared.
    """

    settings: Any
    tensors: list[Tensor]

    @classmethod
    def of(cls, *things: Any) -> "Snapshot | None":
        """Of modules and settings; None where one of them cannot be compared."""
        tensors: list[Tensor] = []
        try:
            settings = tuple(_frozen(thing, tensors, 0) for thing in things)
        except CannotCompareError:
            return None
        if len({value.device for value in tensors}) > 1:
            return None
        return cls((settings, [(value.shape, value.dtype, value.device) for value in tensors]), tensors)


class Watched:
    """Modules' parameters and buffers as they are now, to be asked later, quickly, whether they still are.

    Args:
        modules: with all that is in them.
    """

    def __init__(self, modules: Sequence[nn.Module | None]):
        self.parts: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        tensors: list[Tensor] = []
        waiting = [module for module in modules if module is not None]
        while waiting:
            own = waiting.pop().__dict__
            for part in (own["_parameters"], own["_buffers"]):
                if part:
                    tensors += [value for value in part.values() if value is not None]
                    self.parts.append((part, tuple(part.values())))
            if own["_modules"]:
                waiting += [child for child in own["_modules"].values() if child is not None]
                self.parts.append((own["_modules"], tuple(own["_modules"].values())))
        self.tensors = [value for value in tensors if not value.is_inference()]  # which have no versions
        self.states = self._states()

    def is_unchanged(self) -> bool:
        """Whether all are the same tensors, nobody wrote into them, and they require gradients as they did."""
        for part, values in self.parts:
            if len(part) != len(values) or not all(map(operator.is_, part.values(), values)):
                return False
        return self.states == self._states()

    def _states(self) -> list[Any]:
        return [value._version for value in self.tensors] + [value.requires_grad for value in self.tensors]


class Entry(NamedTuple):
    """What is kept.

    Args:
        settings: of the snapshot that it was made from.
        values: the tensors' of that snapshot, copied into one vector.
        made: from them.
    """

    settings: Any
    values: Tensor
    made: Any


class KernelCache:
    """One layer's kernel between calls in eval mode without gradients."""

    def __init__(self) -> None:
        self.entry: Entry | None = None

    def keep(self, snapshot: Snapshot, values: Tensor, made: Any) -> None:
        """Keep `made`, which was made after the snapshot and its `values` were taken: should anything change meanwhile, that is noticed."""
        self.entry = Entry(snapshot.settings, values, made)

    def forget(self) -> None:
        """Keep nothing."""
        self.entry = None

    def __getstate__(self) -> dict[str, Any]:
        return {"entry": None}  # copies and files do without


def vector(snapshots: Sequence[Snapshot]) -> Tensor:
    """The values of all tensors, copied into one vector."""
    with torch.no_grad():
        values = [value.reshape(-1) for snapshot in snapshots for value in snapshot.tensors]
        dtypes = {value.dtype for value in values}
        if not all(dtype.is_floating_point or dtype.is_complex for dtype in dtypes):  # whose sizes hold integers exactly
            values = [value.to(torch.complex128 if value.is_complex() else torch.float64) for value in values]
        return torch.cat(values) if values else torch.empty(0)


def split(values: Tensor, snapshots: Sequence[Snapshot]) -> list[Tensor]:
    """`vector` in parts, one for each snapshot."""
    return list(values.split([sum(value.numel() for value in snapshot.tensors) for snapshot in snapshots]))


def unchanged(entries: Sequence[Entry | None], snapshots: Sequence[Snapshot], values: Tensor) -> Tensor | None:
    """Whether what each entry holds is what its snapshot would make: a bool on the device of `values`, their `vector`.

    None where the host knows already that it is not.
    """
    kept = [entry.values for entry in entries if entry is not None]
    if len(kept) < len(entries) or any(
        entry is not None and entry.settings != snapshot.settings for entry, snapshot in zip(entries, snapshots, strict=True)
    ):
        return None
    return (values == _joined(kept)).all()


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts one after the other, without a copy where they lie so."""
    base = parts[0]._base
    if base is not None and base.ndim == 1 and base.numel() == sum(part.numel() for part in parts):
        offset = 0
        for part in parts:
            if part._base is not base or part.storage_offset() != base.storage_offset() + offset:
                break
            offset += part.numel()
        else:
            return base
    return torch.cat(parts)


def _frozen(value: Any, tensors: list[Tensor], depth: int) -> Any:
    """A value as something that does not change with it and can be compared; tensors are put aside."""
    kind = value.__class__
    if kind in EXACT:
        return kind, value
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor
    if depth > DEEPEST:
        raise CannotCompareError
    if isinstance(value, nn.Module):
        return _frozen_module(value, tensors, depth)
    if kind in (list, tuple):
        return kind, [_frozen(one, tensors, depth + 1) for one in value]
    if kind is dict:
        return kind, [(_frozen(key, tensors, depth + 1), _frozen(one, tensors, depth + 1)) for key, one in value.items()]
    if kind in (set, frozenset):
        return kind, sorted((_frozen(one, tensors, depth + 1) for one in value), key=repr)
    if kind is functools.partial:
        return kind, [_frozen(one, tensors, depth + 1) for one in (value.func, value.args, value.keywords)]
    if isinstance(value, type | types.BuiltinFunctionType) or (isinstance(value, types.FunctionType) and value.__closure__ is None):
        return kind, value
    raise CannotCompareError


def _frozen_module(module: nn.Module, tensors: list[Tensor], depth: int) -> Any:
    own = module.__dict__
    if own["training"] or own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        raise CannotCompareError  # it may draw at random, or do anything
    frozen: list[Any] = [module.__class__]
    for name in sorted(own.keys() - INTERNAL):
        value = own[name]
        frozen.append(name)
        frozen.append((value.__class__, value) if value.__class__ in EXACT else _frozen(value, tensors, depth + 1))
    for part in (own["_parameters"], own["_buffers"]):
        for name, value in part.items():
            frozen.append(name)
            if value is None:
                frozen.append(None)
            else:
                tensors.append(value)
    for name, value in own["_modules"].items():
        frozen.append(name)
        frozen.append(None if value is None else _frozen_module(value, tensors, depth + 1))
    return frozen
