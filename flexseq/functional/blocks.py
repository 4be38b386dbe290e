"""Cutting a signal into overlapping blocks for transforms, and putting the pieces together again."""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flexseq.functional.costs import costs_of, transforms_cost
from flexseq.functional.fft_length import fft_length
from flexseq.functional.programs import constant

BLOCKS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
"""Into how many blocks a signal may be cut."""


class Axis(NamedTuple):
    """How one axis of a signal is cut into blocks; outputs j * hop .. (j + 1) * hop are the first of what block j gives.

    Block j holds the samples that they see, from j * hop - before on. A single one may be shorter than the signal and the kernel together:
    the last outputs' taps then wrap round to the zeros before the signal.

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


def cut(x: Tensor, axes: tuple[Axis, ...], context: int = 0) -> Tensor:
    """(batch, channels, *grid) -> (batch, channels, *blocks, *points): the overlapping blocks, a view of the padded signal.

    Args:
        context: samples along the last axis before the first output; at most the taps before the present one.
    """
    amounts = [(axis.before, (axis.blocks - 1) * axis.hop + axis.points - axis.size - axis.before) for axis in axes]
    amounts[-1] = amounts[-1][0] - context, amounts[-1][1]
    x = padded(x, amounts)
    for dim, axis in enumerate(axes, start=2):
        x = x.unfold(dim, axis.points, axis.hop)
    return x


def join(z: Tensor, bias: Tensor | None, axes: tuple[Axis, ...], out: Tensor | None = None) -> Tensor:
    """Put each block's outputs one after the other, plus a bias: z (batch, channels, *blocks, *points) -> (batch, channels, *grid).

    Args:
        bias: (channels,).
        out: where to; a new tensor by default.
    """
    y = z.new_empty(*z.shape[:2], *[axis.size for axis in axes]) if out is None else out
    column = None if bias is None else bias.view(-1, *[1] * len(axes))
    if column is not None and all(axis.blocks == 1 for axis in axes):
        return torch.add(_first_outputs(z, axes), column, out=y)
    for blocks, grid in _pieces(z, y, axes):
        if column is None:
            grid.copy_(blocks)
        else:
            torch.add(blocks, column.view(-1, *[1] * (blocks.ndim - 2)), out=grid)
    return y


def spread(grad: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The adjoint of `join`: (batch, channels, *grid) -> (batch, channels, *blocks, *points), zeros where blocks give no output."""
    grad = padded(grad, [(0, axis.blocks * axis.hop - axis.size) for axis in axes])
    for i, axis in reversed(list(enumerate(axes))):
        grad = grad.unflatten(2 + i, (axis.blocks, axis.hop))
    n = len(axes)
    grad = grad.permute(0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2))
    return padded(grad, [(0, 0)] * n + [(0, axis.points - axis.hop) for axis in axes])


def _first_outputs(z: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Of single blocks: (batch, channels, 1, ..., *points) -> (batch, channels, *grid), a view."""
    z = z.flatten(1, 1 + len(axes))
    for i, axis in enumerate(axes):
        z = z.narrow(2 + i, 0, axis.size)
    return z


def _pieces(z: Tensor, y: Tensor, axes: tuple[Axis, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the same outputs in blocks and in the grid: those of whole blocks, and what the last block of an axis still gives."""
    ndim = len(axes)
    choices = []
    for axis in axes:
        whole = axis.size // axis.hop
        rest = axis.size - whole * axis.hop
        choices.append([piece for piece in ((0, whole, axis.hop), (whole, 1, rest)) if piece[1] and piece[2]])
    for choice in itertools.product(*choices):
        blocks, grid = z, y
        for i, (axis, (first, count, outputs)) in enumerate(zip(axes, choice, strict=True)):
            blocks = blocks.narrow(2 + i, first, count).narrow(2 + ndim + i, 0, outputs)
            dim = 2 + 2 * i  # each axis before has become two
            grid = grid.narrow(dim, first * axis.hop, count * outputs).unflatten(dim, (count, outputs))
        yield blocks.permute(0, 1, *itertools.chain.from_iterable((2 + i, 2 + ndim + i) for i in range(ndim))), grid


def overlap_add(pieces: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """The adjoint of `cut`: (batch, channels, *blocks, *points) -> (batch, channels, *grid), overlapping samples summed; may be a view."""
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
        pieces = whole.narrow(-1, axis.before, axis.size).movedim(-1, 2 + i)
    return pieces


def padded(x: Tensor, amounts: Sequence[tuple[int, int]]) -> Tensor:
    """Zeros before and after, along each of the last axes; x itself where there are none.

    Along a single axis by a concatenation, which writes each number once.
    """
    axes = [(dim, front, back) for dim, (front, back) in enumerate(amounts, start=x.ndim - len(amounts)) if front or back]
    if not axes:
        return x
    if len(axes) > 1:
        return F.pad(x, [amount for pair in reversed(amounts) for amount in pair])
    ((dim, front, back),) = axes
    zero = _zero(x.dtype, x.device)
    zeros = [zero.expand(*x.shape[:dim], count, *x.shape[dim + 1 :]) for count in (front, back)]
    return torch.cat([part for part in (zeros[0], x, zeros[1]) if part.shape[dim]], dim)


@constant
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)


def choose_axes(
    device: torch.device, x_shape: Sequence[int], kernel_shape: Sequence[int], before: Sequence[int], functions: int | None, method: str
) -> tuple[Axis, ...]:
    """The cheapest way to cut a signal, by an estimate from shapes alone.

    Args:
        device: on which it is convolved.
        x_shape: (batch, in_channels, *grid).
        kernel_shape: (out_channels, in_channels / groups, *taps).
        before: taps before the present one, for each axis.
        functions: how many the kernels are linear combinations of; None where they are given as they are.
        method: "fft" for one block, "overlap" for more where the kernel leaves room, "auto" for the cheaper.
    """
    return _choose_axes(torch.device(device.type), tuple(x_shape), tuple(kernel_shape), tuple(before), functions, method)


@lru_cache(maxsize=4096)
def _choose_axes(
    device: torch.device,
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    before: tuple[int, ...],
    functions: int | None,
    method: str,
) -> tuple[Axis, ...]:
    ways = itertools.product(
        *[possible_cuts(size, taps, first, method) for size, taps, first in zip(x_shape[2:], kernel_shape[2:], before, strict=True)]
    )
    return min(ways, key=lambda axes: spectral_cost(device, x_shape, kernel_shape, axes, functions))


def possible_cuts(size: int, taps: int, before: int, method: str) -> list[Axis]:
    """How one axis may be cut."""
    whole = Axis(size, taps, before, fft_length(size + max(before, taps - 1 - before)), size, 1)
    several = []
    for count in BLOCKS:
        # At least two kernels long: then only neighbouring blocks overlap.
        points = fft_length(max(-(-size // count) + taps - 1, 2 * taps, 16))
        hop = points - taps + 1
        if hop < size:
            several.append(Axis(size, taps, before, points, hop, -(-size // hop)))
    return {"fft": [whole], "overlap": several or [whole], "auto": [whole, *several]}[method]


def spectral_cost(
    device: torch.device, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], axes: tuple[Axis, ...], functions: int | None
) -> float:
    """Estimated time of a training step of a convolution cut in this way, in picoseconds; see `flexseq.functional.costs`."""
    points = math.prod([axis.points for axis in axes])
    blocks = math.prod([axis.blocks for axis in axes])
    return transforms_cost(costs_of(device), x_shape, kernel_shape, blocks, points, math.log2(points), functions)
