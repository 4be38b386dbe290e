"""Arguments checked at the door: what is wrong is said in one sentence, with the argument's name and value."""

import math
import numbers
from typing import Any

from torch import Tensor

from flexseq.errors import InputError

LARGEST = 2**31 - 1
"""Sizes and counts: no tensor could hold more."""


def is_integer(value: object) -> bool:
    """Whether a value is a whole number, numpy's too, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite real number, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_integers(owner: str, least: int = 1, most: int = LARGEST, **values: Any) -> None:
    """Raise InputError unless every value is a whole number in a range.

    Args:
        owner: whose arguments they are.
        least, most: the range.
        values: by the arguments' names.

    Example:
        >>> check_integers("FlexTCN", depth=2.5)
        Traceback (most recent call last):
        flexseq.errors.InputError: FlexTCN expected depth to be an integer of at least 1, got 2.5
    """
    for name, value in values.items():
        if not is_integer(value) or value < least:
            raise InputError(f"{owner} expected {name} to be an integer of at least {least}, got {value!r}")
        if value > most:
            raise InputError(f"{owner} expected {name} to be an integer of at most {most}, got {value!r}")


def check_numbers(
    owner: str, *, above: float | None = None, least: float | None = None, below: float = math.inf, most: float | None = None, **values: Any
) -> None:
    """Raise InputError unless every value is a finite real number in a range.

    Args:
        owner: whose arguments they are.
        above, least: the lower bound, without and with itself.
        below, most: the upper one.
        values: by the arguments' names.

    Example:
        >>> check_numbers("FlexConv1d", above=0, mask_sigma="a")
        Traceback (most recent call last):
        flexseq.errors.InputError: FlexConv1d expected mask_sigma above 0, got 'a'
        >>> check_numbers("FlexTCN", least=0, below=1, dropout=1.0)
        Traceback (most recent call last):
        flexseq.errors.InputError: FlexTCN expected dropout in [0, 1), got 1.0
    """
    bounded = below < math.inf or most is not None
    if bounded:
        low = f"({above:g}" if above is not None else f"[{least:g}" if least is not None else "(-inf"
        high = f"{most:g}]" if most is not None else f"{below:g})"
        wanted = f"in {low}, {high}"
    else:
        wanted = f"above {above:g}" if above is not None else f"of at least {least:g}" if least is not None else "to be a number"
    for name, value in values.items():
        good = is_number(value) and (above is None or value > above) and (least is None or value >= least)
        if not (good and value < below and (most is None or value <= most)):
            raise InputError(f"{owner} expected {name} {wanted}, got {value!r}")


def check_tensor(owner: str, name: str, value: Any) -> None:
    """Raise InputError unless a value is a torch.Tensor."""
    if not isinstance(value, Tensor):
        hint = "; torch.as_tensor makes one of it" if type(value).__module__ == "numpy" or isinstance(value, list | tuple) else ""
        raise InputError(f"{owner} expected {name} to be a torch.Tensor, got {type(value).__name__}{hint}")


def check_real(owner: str, **tensors: Tensor) -> None:
    """Raise InputError unless tensors hold real numbers in floating point."""
    for name, tensor in tensors.items():
        check_tensor(owner, name, tensor)
        if not tensor.is_floating_point():
            raise InputError(f"{owner} expected {name} of real numbers in floating point, got {tensor.dtype}")
