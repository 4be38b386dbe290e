"""A kernel's size and resolution as numbers that survive what is done to a network's state.

They decide what a layer's parameters mean, so they have to be part of what is saved, cast, copied, averaged and broadcast: a buffer.
Casting to half precision would round an integer of 1,001 to 1,000, and averaging would mix two sizes; so a size is written as hexadecimal
digits, each exact in every floating point type, behind a flag that an average of different codes does not pass.
"""

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DIGITS = 8
"""Of each axis; a size is below 16 ** DIGITS."""
RATIO_DIGITS = 16
"""Of the 8 bytes of a double."""
TOLERANCE = 0.01
"""How far from a whole number a digit may be: averages of equal codes differ from them by rounding alone."""


class KernelSize(NamedTuple):
    """What a layer's parameters are for.

    Args:
        size: samples along each axis at ratio 1; None where it is not known yet.
        settled: whether it was given, or taken from a training batch; else it is that of an input in eval mode, until training begins.
        ratio: how many times as densely as in training inputs are sampled.
    """

    size: tuple[int, ...] | None = None
    settled: bool = False
    ratio: float = 1.0


def encode(value: KernelSize, ndim: int) -> Tensor:
    """A code of `ndim` axes: float32, (2 + 8 * ndim + 16,), digits of 0 to 15.

    Example:
        >>> decode(encode(KernelSize((1001, 7), True, 1.5), 2).bfloat16().tolist(), 2)
        KernelSize(size=(1001, 7), settled=True, ratio=1.5)
    """
    digits = [0 if value.size is None else 1, int(value.settled)]
    for size in value.size or (0,) * ndim:
        digits += [size >> 4 * i & 15 for i in range(DIGITS)]
    bits = int.from_bytes(struct.pack(">d", value.ratio), "big")
    digits += [bits >> 4 * i & 15 for i in range(RATIO_DIGITS)]
    return torch.tensor(digits, dtype=torch.float32, device="cpu")


def decode(code: Sequence[float], ndim: int) -> KernelSize | None:
    """The reverse of `encode`; None where it is no code, as in the middle of an average of two."""
    if len(code) != 2 + DIGITS * ndim + RATIO_DIGITS or not all(math.isfinite(digit) for digit in code):
        return None
    digits = [round(digit) for digit in code]
    if any(abs(digit - exact) > TOLERANCE * max(1, digit) or not 0 <= digit < 16 for digit, exact in zip(digits, code, strict=True)):
        return None
    numbers = [sum(digit << 4 * i for i, digit in enumerate(part)) for part in _parts(digits[2:], ndim)]
    (ratio,) = struct.unpack(">d", numbers.pop().to_bytes(8, "big"))
    if not 0 < ratio < math.inf or digits[0] > 1 or digits[1] > 1 or (digits[0] and min(numbers) < 1):
        return None
    return KernelSize(tuple(numbers) if digits[0] else None, bool(digits[1]), ratio)


def _parts(digits: list[int], ndim: int) -> list[list[int]]:
    sizes = [digits[i * DIGITS : (i + 1) * DIGITS] for i in range(ndim)]
    return [*sizes, digits[ndim * DIGITS :]]
