"""Cutting a signal into overlapping blocks for transforms, and putting the pieces together again."""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flexseq.functional.costs import transforms_cost
from flexseq.functional.fft_length import fft_length

BLOCKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
"""Into how many blocks a signal may be cut."""


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


def join(z: Tensor, y: Tensor, bias: Tensor | None, axes: tuple[Axis, ...]) -> None:
    """Put each block's outputs one after the other, plus a bias: z (batch, channels, *blocks, *points) into y (batch, channels, *grid)."""
    for blocks, grid in _pieces(z, y, axes):
        if bias is None:
            grid.copy_(blocks)
        else:
            torch.add(blocks, bias.view(-1, *[1] * (blocks.ndim - 2)), out=grid)


def spread(grad: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The adjoint of `join`: (batch, channels, *grid) -> (batch, channels, *blocks, *points), zeros where blocks give no output."""
    z = grad.new_zeros(*grad.shape[:2], *[axis.blocks for axis in axes], *[axis.points for axis in axes])
    for blocks, grid in _pieces(z, grad, axes):
        blocks.copy_(grid)
    return z


def _pieces(z: Tensor, y: Tensor, axes: tuple[Axis, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the same outputs in blocks and in the grid: those of whole blocks, and what the last block of an axis still gives."""
    ndim = len(axes)
    choices = []
    for axis in axes:
        whole = axis.blocks - 1
        choices.append([(0, whole, axis.hop), (whole, 1, axis.size - whole * axis.hop)] if whole else [(0, 1, axis.size)])
    for choice in itertools.product(*choices):
        blocks, grid = z, y
        for i, (axis, (first, count, outputs)) in enumerate(zip(axes, choice, strict=True)):
            blocks = blocks.narrow(2 + i, first, count).narrow(2 + ndim + i, axis.start, outputs)
            dim = 2 + 2 * i  # each axis before has become two
            grid = grid.narrow(dim, first * axis.hop, count * outputs).unflatten(dim, (count, outputs))
        yield blocks.permute(0, 1, *itertools.chain.from_iterable((2 + i, 2 + ndim + i) for i in range(ndim))), grid


def overlap_add(pieces: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The adjoint of `cut`: (batch, channels, *blocks, *points) -> (batch, channels, *grid), overlapping samples summed."""
    for i in reversed(range(len(axes))):
        axis = axes[i]
        pieces = pieces.movedim(2 + i, -2)  # (..., blocks, points)
        if axis.blocks > 1:
            heads, tails = pieces[..., : axis.hop], pieces[..., axis.hop :]  # only neighbours overlap: tails are no longer than heads
            whole = pieces.new_empty(*pieces.shape[:-2], axis.blocks + 1, axis.hop)
            whole[..., :-1, :] = heads
            whole[..., -1, :] = 0
            whole[..., 1:, : tails.shape[-1]] += tails
            whole = whole.flatten(-2)
        else:
            whole = pieces.squeeze(-2)
        pieces = whole.narrow(-1, axis.start, axis.size).movedim(-1, 2 + i)
    return pieces


@lru_cache(maxsize=4096)
def choose_axes(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], before: tuple[int, ...], functions: int | None, method: str
) -> tuple[Axis, ...]:
    """The cheapest way to cut a signal, by an estimate from shapes alone.

    Args:
        x_shape: (batch, in_channels, *grid).
        kernel_shape: (out_channels, in_channels / groups, *taps).
        before: taps before the present one, for each axis.
        functions: how many the kernels are mixes of; None where they are given as they are.
        method: "fft" for one block, "overlap" for more where the kernel leaves room, "auto" for the cheaper.
    """
    choices = []
    for size, taps, first in zip(x_shape[2:], kernel_shape[2:], before, strict=True):
        whole = Axis(size, taps, first, fft_length(size + max(first, taps - 1 - first)), size, 1)
        several = []
        for count in BLOCKS:
            # At least two kernels long: then only neighbouring blocks overlap.
            points = fft_length(max(-(-size // count) + taps - 1, 2 * taps, 16))
            hop = points - taps + 1
            if hop < size:
                several.append(Axis(size, taps, first, points, hop, -(-size // hop)))
        choices.append({"fft": [whole], "overlap": several or [whole], "auto": [whole, *several]}[method])
    return min(itertools.product(*choices), key=lambda axes: spectral_cost(x_shape, kernel_shape, axes, functions))


def spectral_cost(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], axes: tuple[Axis, ...], functions: int | None) -> float:
    """Estimated time of a training step of a convolution cut in this way, in picoseconds; see `flexseq.functional.costs`."""
    points = math.prod([axis.points for axis in axes])
    blocks = math.prod([axis.blocks for axis in axes])
    return transforms_cost(x_shape, kernel_shape, blocks, points, math.log2(points), functions)


def _padded(x: Tensor, dim: int, front: int, back: int) -> Tensor:
    if not front and not back:
        return x
    return F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [front, back])
