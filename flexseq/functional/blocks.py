"""Cutting a signal into overlapping blocks for transforms, and putting the pieces together again."""

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from flexseq.functional.fft_length import fft_length


class Axis(NamedTuple):
    """How one axis of a signal is cut.

    With one block, the block is the signal with zeros behind it; the kernel's taps before the present wrap round the end. With more,
    block j begins `before` samples before its outputs j * hop .. (j + 1) * hop.

    Args:
        size: samples of the signal.
        taps: of the kernel.
        before: taps before the present one.
        points: of a transform.
        hop: samples of output from each block.
        blocks: how many there are.
    """

    size: int
    taps: int
    before: int
    points: int
    hop: int
    blocks: int

    @property
    def start(self) -> int:
        """Where outputs begin within a block."""
        return self.before if self.blocks > 1 else 0


def cut(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(batch, channels, *grid) -> (batch, channels, *blocks, *points): the overlapping blocks, a view where possible."""
    for i, axis in enumerate(axes):
        dim = 2 + i
        whole = (axis.blocks - 1) * axis.hop + axis.points
        x = _padded(x, dim, axis.start, whole - axis.size - axis.start)
        x = x.unfold(dim, axis.points, axis.hop)
    return x


def join(z: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(batch, channels, *blocks, *points) -> (batch, channels, *grid): each block's outputs, one after the other."""
    ndim = len(axes)
    for i, axis in enumerate(axes):
        z = z.narrow(2 + ndim + i, axis.start, axis.hop)
    order = [0, 1, *itertools.chain.from_iterable((2 + i, 2 + ndim + i) for i in range(ndim))]
    z = z.permute(order).reshape(*z.shape[:2], *[axis.blocks * axis.hop for axis in axes])
    for i, axis in enumerate(axes):
        z = z.narrow(2 + i, 0, axis.size)
    return z.contiguous()


def spread(grad: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The adjoint of `join`: (batch, channels, *grid) -> (batch, channels, *blocks, *points), zeros where blocks give no output."""
    ndim = len(axes)
    for i, axis in enumerate(axes):
        grad = _padded(grad, 2 + i, 0, axis.blocks * axis.hop - axis.size)
    shape = itertools.chain.from_iterable((axis.blocks, axis.hop) for axis in axes)
    grad = grad.reshape(*grad.shape[:2], *shape)
    grad = grad.permute(0, 1, *range(2, 2 + 2 * ndim, 2), *range(3, 3 + 2 * ndim, 2))
    for i, axis in enumerate(axes):
        grad = _padded(grad, 2 + ndim + i, axis.start, axis.points - axis.start - axis.hop)
    return grad


def overlap_add(pieces: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The adjoint of `cut`: (batch, channels, *blocks, *points) -> (batch, channels, *grid), overlapping samples summed."""
    for i in reversed(range(len(axes))):
        axis = axes[i]
        pieces = pieces.movedim(2 + i, -2)  # (..., blocks, points)
        if axis.blocks > 1:
            heads, tails = pieces[..., : axis.hop], pieces[..., axis.hop :]  # only neighbours overlap: tails are no longer than heads
            whole = F.pad(heads.flatten(-2), (0, axis.hop))
            whole[..., axis.hop :] += F.pad(tails, (0, axis.hop - tails.shape[-1])).flatten(-2)
        else:
            whole = pieces.squeeze(-2)
        pieces = whole.narrow(-1, axis.start, axis.size).movedim(-1, 2 + i)
    return pieces.contiguous()


@lru_cache(maxsize=4096)
def choose_axes(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], before: tuple[int, ...], groups: int, functions: int | None, method: str
) -> tuple[Axis, ...]:
    """The cheapest way to cut a signal, by an estimate from shapes alone.

    Args:
        x_shape: (batch, in_channels, *grid).
        kernel_shape: (out_channels, in_channels / groups, *taps).
        before: taps before the present one, for each axis.
        groups: of channels.
        functions: how many the kernels are mixes of; None where they are given as they are.
        method: "fft" for one block, "overlap" for more where the kernel leaves room, "auto" for the cheaper.
    """
    choices = []
    for size, taps, first in zip(x_shape[2:], kernel_shape[2:], before, strict=True):
        whole = Axis(size, taps, first, fft_length(size + max(first, taps - 1 - first)), size, 1)
        several = []
        for lengths in (2, 2.5, 3, 4, 5, 6, 8, 12, 16, 24, 32):  # at least 2: then only neighbouring blocks overlap
            points = fft_length(max(math.ceil(lengths * taps), 16))
            hop = points - taps + 1
            if hop < size:
                several.append(Axis(size, taps, first, points, hop, -(-size // hop)))
        choices.append({"fft": [whole], "overlap": several or [whole], "auto": [whole, *several]}[method])
    return min(itertools.product(*choices), key=lambda axes: spectral_cost(x_shape, kernel_shape, axes, groups, functions))


def spectral_cost(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], axes: tuple[Axis, ...], groups: int, functions: int | None
) -> float:
    """Estimated cost of a convolution cut in this way, in multiplications of a direct one.

    The weights are estimates set by hand: a transform of n points costs 4 n log2(n), a complex multiplication between channels at one
    frequency 4, mixing one function into one kernel's real and imaginary part there 2, moving a number from one layout to another 8.
    """
    batch, in_channels = x_shape[:2]
    out_channels, in_per_group = kernel_shape[:2]
    blocks = batch * math.prod(axis.blocks for axis in axes)
    points = math.prod(axis.points for axis in axes)
    kernels = out_channels * in_per_group
    transform = 4 * points * math.log2(points)
    numbers = blocks * (in_channels + out_channels) * points
    cost = blocks * (in_channels + out_channels) * transform + blocks * kernels * points / 2 * 4 + 8 * numbers
    if functions is None:
        return cost + kernels * (transform + 8 * points)
    return cost + functions * transform + kernels * functions * points


def _padded(x: Tensor, dim: int, front: int, back: int) -> Tensor:
    if not front and not back:
        return x
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [front, back])
