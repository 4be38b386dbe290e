"""Circular convolution with a kernel that is kept as a spectrum, of which a few values learn."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexseq.functional.circular_conv import half_grid, mirrored, multiplicity, of_real
from flexseq.functional.dtypes import at_least_float32

GATHERED = 2**16
"""Positions whose gradients are gathered at a time."""


class Sampled(NamedTuple):
    """The values of a state that learn.

    Args:
        values: (n, 2), real and imaginary part, of which the state's own are copies or averages.
        positions: (n,), where they stand in the flattened state.
        rate: what they count there.
    """

    values: Tensor
    positions: Tensor
    rate: float


def state_conv(x: Tensor, state: Tensor, sampled: Sampled | None = None, *, groups: int = 1, half: bool = True) -> Tensor:
    """y = irfft(rfft(x) * state), with gradients for x and for the sampled values alone.

    The gradient of each sampled value is gathered from the spectra of the input and of the output's gradient: sum over the batch of
    conj(X[f, i]) G[f, o]. No gradient of the whole state is formed.

    Args:
        x: (batch, in_channels, *grid).
        state: (*grid or half of it, in_channels / groups, out_channels, 2), real and imaginary part; it takes no gradient.
        sampled: of its values, those that learn; they are in it already.
        groups: as in torch.nn.
        half: whether the state is the half spectrum that a real kernel needs; else the whole one, of which the part that belongs to a real
            kernel counts.

    Returns:
        (batch, out_channels, *grid), in x's dtype, computed in float32 at least.
    """
    dtype = at_least_float32(x.dtype)
    if x.shape[0] == 0:  # which some transforms refuse; with a gradient of zeros
        empty = x.new_zeros(0, state.shape[-2], *x.shape[2:], dtype=dtype) + 0 * x.sum()
        return empty if sampled is None else empty + 0 * sampled.values.sum()
    with torch.autocast(x.device.type, enabled=False):
        values = None if sampled is None else sampled.values.to(dtype)
        positions, rate = (None, 0.0) if sampled is None else (sampled.positions, sampled.rate)
        return _StateConv.apply(x.to(dtype), values, state.detach().to(dtype), positions, rate, groups, half)


class _StateConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor | None, state: Tensor, positions: Tensor | None, rate: float, groups: int, half: bool
    ) -> Tensor:
        grid = x.shape[2:]
        spectrum = _spectrum(x)
        product = _times(_kernels(state, grid, groups, half).mT, spectrum, groups)
        y = _signal(product, grid)
        ctx.save_for_backward(spectrum, state, *([] if positions is None else [positions]))
        ctx.rate, ctx.groups, ctx.half, ctx.grid = rate, groups, half, grid
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        spectrum, state, *positions = ctx.saved_tensors
        slope = _spectrum(grad)
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = _signal(_times(_kernels(state, ctx.grid, ctx.groups, ctx.half).conj(), slope, ctx.groups), ctx.grid)
        if ctx.needs_input_grad[1]:
            grad_values = gathered_gradient(spectrum, slope, positions[0], ctx.grid, state.shape[-3:-1], ctx.groups, ctx.half) * ctx.rate
        return grad_x, grad_values, None, None, None, None, None


def gathered_gradient(
    spectrum: Tensor, slope: Tensor, positions: Tensor, grid: Sequence[int], channels: Sequence[int], groups: int, half: bool
) -> Tensor:
    """The gradient with respect to some values of a state: (n, 2).

    Args:
        spectrum: of the input, (frequencies, in_channels, batch), half of them.
        slope: of the output's gradient, (frequencies, out_channels, batch).
        positions: (n,), in the flattened state.
        grid: of the signals.
        channels: the state's, (in_channels / groups, out_channels).
        groups, half: see `state_conv`.
    """
    inputs, outputs = channels
    counts = multiplicity(grid, dtype=slope.real.dtype, device=slope.device) / math.prod(grid)
    rows, columns = spectrum.flatten(0, 1), slope.flatten(0, 1)
    result = torch.empty(len(positions), 2, dtype=slope.real.dtype, device=slope.device)
    for start in range(0, len(positions), GATHERED):
        part = positions[start : start + GATHERED]
        o = part % outputs
        rest = part // outputs
        i = rest % inputs + (o // (outputs // groups)) * inputs
        f = rest // inputs
        mirror = None
        if half:
            weight = counts[f % len(counts)]
        else:
            f, mirror = _in_half(f, grid)
            weight = torch.full_like(counts[:1], 1 / math.prod(grid))
        x, g = rows[f * spectrum.shape[1] + i], columns[f * outputs + o]
        value = torch.view_as_real((x.conj() * g).sum(1)) * weight[:, None]
        if mirror is not None:
            value[:, 1] = torch.where(mirror, -value[:, 1], value[:, 1])
        result[start : start + GATHERED] = value
    return result


def _in_half(f: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where whole-spectrum bins, or those of minus their frequency, stand in the half spectrum; and which are of minus."""
    index = []
    for size in reversed(grid):
        index.append(f % size)
        f = f // size
    last = index[0]
    mirror = last > grid[-1] // 2
    halves = half_grid(grid)
    flat = torch.zeros_like(last)
    for size, whole, place in zip(halves, grid, reversed(index), strict=True):
        flat = flat * size + torch.where(mirror, (whole - place) % whole, place)
    return flat, mirror


def _spectrum(x: Tensor) -> Tensor:
    """(batch, channels, *grid) -> (frequencies, channels, batch): what a sampled value needs of it lies together."""
    return torch.fft.rfftn(x, dim=list(range(2, x.ndim))).flatten(2).permute(2, 1, 0).contiguous()


def _signal(spectrum: Tensor, grid: Sequence[int]) -> Tensor:
    """The reverse; what no real signal has is left out, which is less here than in the state."""
    moved = of_real(spectrum.permute(2, 1, 0).unflatten(2, half_grid(grid)), grid)
    return torch.fft.irfftn(moved, s=list(grid), dim=list(range(2, 2 + len(grid))))


def _kernels(state: Tensor, grid: Sequence[int], groups: int, half: bool) -> Tensor:
    """The half spectrum: (frequencies * groups, in_channels / groups, out_channels / groups), complex."""
    spectrum = torch.view_as_complex(state.contiguous())
    if not half:
        moved = spectrum.movedim((-2, -1), (0, 1))
        moved = (moved + mirrored(moved, len(grid)).conj())[..., : grid[-1] // 2 + 1] / 2
        spectrum = moved.movedim((0, 1), (-2, -1))
    flat = spectrum.flatten(0, -3)
    if groups == 1:
        return flat
    return flat.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _times(matrices: Tensor, spectrum: Tensor, groups: int) -> Tensor:
    """A matrix for each frequency and group, times (frequencies, channels, batch)."""
    frequencies = len(spectrum)
    vectors = spectrum if groups == 1 else spectrum.unflatten(1, (groups, -1)).flatten(0, 1)
    return torch.bmm(matrices, vectors).view(frequencies, -1, spectrum.shape[2])
