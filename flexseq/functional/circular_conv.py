"""Circular convolution by a product of half spectra: kernels as large as the signal, given by their frequencies."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from flexseq.checks import check_integers, check_real, check_tensor, is_integer
from flexseq.errors import InputError
from flexseq.functional.dtypes import at_least_float32
from flexseq.functional.programs import as_integers, unrecorded

SMALL = 64
"""Samples up to which a depthwise convolution is a product of matrices."""


def circular_conv(x: Tensor, spectrum: Tensor, bias: Tensor | None = None, *, groups: int = 1) -> Tensor:
    """Convolve with kernels as large as the signal, whose edges are joined: y = irfft(rfft(x) * spectrum).

    A convolution, not a correlation: y[t] = sum_n k[n] x[(t - n) mod N], with spectrum = rfft(k). Transforms are of real numbers, and only
    the input's is kept for the backward pass. It can be differentiated once. Depthwise on a few samples it is a product of matrices.

    Args:
        x: (batch, in_channels, *grid), one to three grid axes.
        spectrum: (out_channels, in_channels / groups, *half), complex: of a real kernel, as torch.fft.rfftn over the grid gives it.
        bias: (out_channels,).
        groups: as in torch.nn.

    Returns:
        (batch, out_channels, *grid), in float32 at least within, under autocast in its dtype.

    Raises:
        InputError: shapes that do not fit together.

    Example:
        >>> x, kernel = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])
        >>> circular_conv(x, torch.fft.rfft(kernel))
        tensor([[[4., 1., 2., 3.]]])
    """
    check_real("circular_conv", x=x, **({} if bias is None else {"bias": bias}))
    check_tensor("circular_conv", "spectrum", spectrum)
    if not spectrum.is_complex():
        raise InputError(f"circular_conv expected a complex spectrum, got {spectrum.dtype}")
    check_integers("circular_conv", groups=groups)
    grid = as_integers(x.shape[2:])
    half = half_grid(grid)
    if (
        spectrum.ndim != x.ndim
        or not 1 <= len(grid) <= 3
        or tuple(spectrum.shape[2:]) != half
        or spectrum.shape[1] * groups != x.shape[1]
        or spectrum.shape[0] % groups
    ):
        raise InputError(
            f"circular_conv expected a spectrum of shape (out_channels, in_channels / groups, {', '.join(map(str, half))}) with "
            f"groups={groups}, got {tuple(spectrum.shape)} for x of shape {tuple(x.shape)}"
        )
    if 0 in grid:
        raise InputError(f"circular_conv expected at least one sample, got shape {tuple(x.shape)}")
    if x.shape[0] == 0:  # which some transforms refuse; with a gradient of zeros
        empty = x.new_zeros(0, spectrum.shape[0], *grid) + 0 * spectrum.real.sum().to(x.dtype) + 0 * x.sum()
        return empty if bias is None else empty + 0 * bias.sum().to(x.dtype)
    dtype = at_least_float32(x.dtype)
    convolve: Any = _plain if torch.jit.is_tracing() else _CircularConv.apply
    if _is_depthwise(spectrum.shape[0], spectrum.shape[1], groups) and math.prod(grid) <= SMALL:
        convolve = _by_matrices
    with torch.autocast(x.device.type, enabled=False):
        y = convolve(x.to(dtype), spectrum.to(torch.complex128 if dtype == torch.float64 else torch.complex64), groups)
        if bias is not None:
            y = y + bias.to(dtype).view(-1, *[1] * len(grid))
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return y.to(torch.get_autocast_dtype(x.device.type))
    return y.to(x.dtype)


def checked_grid(grid: object, ndim: int) -> tuple[int, ...]:
    """A grid as the user gave it, as a tuple.

    Raises:
        InputError: anything but one size of at least 1 for each axis.
    """
    sizes = tuple(grid) if isinstance(grid, Sequence) else ()
    if len(sizes) != ndim or not all(isinstance(n, numbers.Integral) and int(n) >= 1 for n in sizes):
        raise InputError(f"grid expected {ndim} size{'s' if ndim > 1 else ''} of at least 1, got {grid!r}")
    return tuple(int(n) for n in sizes)


def half_grid(grid: Sequence[int]) -> tuple[int, ...]:
    """The shape of the half spectrum of real numbers on a grid.

    Example:
        >>> half_grid((8, 7)), half_grid((1,))
        ((8, 4), (1,))
    """
    return (*(int(n) for n in grid[:-1]), int(grid[-1]) // 2 + 1)


def as_correlation(spectrum: Tensor, grid: Sequence[int]) -> Tensor:
    """The kernel of a half spectrum as a cross-correlation applies it: (..., *half) -> (..., *grid).

    The taps w of y[t] = sum_j w[j] x[t - (n - 1) // 2 + j], from those of the convolution y[t] = sum_n k[n] x[t - n].
    """
    axes = list(range(-len(grid), 0))
    kernel = torch.fft.irfftn(spectrum, s=list(grid), dim=axes)
    return torch.roll(torch.flip(kernel, axes), [-(size // 2) for size in grid], axes)


def mirrored(values: Tensor, ndim: int) -> Tensor:
    """Values at the bins of minus the frequencies: of the last `ndim` axes, in torch.fft's order, bin k becomes bin -k.

    Example:
        >>> mirrored(torch.tensor([0, 1, 2, 3]), 1)
        tensor([0, 3, 2, 1])
    """
    dims = list(range(-ndim, 0))
    return torch.roll(torch.flip(values, dims), [1] * ndim, dims)


def of_real(spectrum: Tensor, grid: Sequence[int]) -> Tensor:
    """A half spectrum with the part of real numbers alone in those columns that hold both of a conjugate pair: their Hermitian part.

    What else is there has no effect on a real output on a CPU, and an undefined one in some libraries' transforms.

    Args:
        spectrum: (..., *half).
        grid: of the signals.
    """
    others = len(grid) - 1
    result = spectrum.clone()
    for column in [0] if grid[-1] % 2 else [0, grid[-1] // 2]:
        values = spectrum[..., column]
        result[..., column] = (values + (mirrored(values, others) if others else values).conj()) / 2
    return result


def multiplicity(grid: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """How often each column of a half spectrum stands in the whole one, (last // 2 + 1,): 2, or 1 for those that mirror themselves."""
    last = int(grid[-1])
    weights = torch.full((last // 2 + 1,), 2.0, dtype=dtype, device=device)
    weights[0] = 1
    if last % 2 == 0:
        weights[-1] = 1
    return weights


def resample(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """The band-limited signal through x, sampled on another grid of the same extent; what that grid cannot hold is left out.

    An even grid's highest frequency, which it cannot tell from its opposite, is shared between the two.

    Args:
        x: (..., *grid), real.
        size: samples along each of the last axes; one number for the last two.

    Returns:
        (..., *size), of x's dtype.

    Raises:
        InputError: a size below 1.

    Source:
        Downsampling to half: FLC pooling, Grabinski et al. 2022.

    Example:
        >>> t = torch.arange(8) / 8
        >>> torch.allclose(resample(torch.cos(2 * torch.pi * t), (4,)), torch.cos(2 * torch.pi * t[::2]), atol=1e-6)
        True
    """
    check_real("resample", x=x)
    sizes: Any = (size, size) if is_integer(size) else tuple(size) if isinstance(size, Sequence) else ()
    if not sizes or not all(is_integer(one) and one >= 1 for one in sizes) or len(sizes) > x.ndim:
        raise InputError(f"resample expected a size of 1 or more for each axis, got {size!r} for shape {tuple(x.shape)}")
    dtype = at_least_float32(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.fftn(x.to(dtype), dim=list(range(-len(sizes), 0)), norm="forward")
        for axis, new in zip(range(-len(sizes), 0), sizes, strict=True):
            spectrum = _resize_axis(spectrum, axis, new)
        return torch.fft.ifftn(spectrum, dim=list(range(-len(sizes), 0)), norm="forward").real.to(x.dtype)


def resize_spectrum(spectrum: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """A kernel's half spectrum for another grid of the same extent: frequencies stay, those that only one grid has are 0 or left out.

    Args:
        spectrum: (..., *half of old), as rfftn gives it.
        old, new: the grids.

    Returns:
        (..., *half of new).
    """
    ndim = len(old)
    for axis, size in zip(range(-ndim, -1), new, strict=False):
        spectrum = _resize_axis(spectrum, axis, size)
    least = min(old[-1], new[-1])
    kept = spectrum[..., : least // 2 + 1]
    if new[-1] > old[-1]:
        if least % 2 == 0:
            kept = torch.cat([kept[..., :-1], kept[..., -1:] / 2], -1)
        kept = torch.cat([kept, kept.new_zeros(*kept.shape[:-1], new[-1] // 2 - least // 2)], -1)
    return kept


def _resize_axis(spectrum: Tensor, axis: int, new: int) -> Tensor:
    old = spectrum.shape[axis]
    if new == old:
        return spectrum
    least = min(old, new)
    positive, negative = (least + 1) // 2, (least - 1) // 2  # bins 0, 1, ... and -1, -2, ... that both hold, below the highest
    start, end = spectrum.narrow(axis, 0, positive), spectrum.narrow(axis, old - negative, negative)
    shape = list(spectrum.shape)
    if least % 2 == 0:
        if new < old:  # both of its kinds fall on one bin: the mean, so that a real signal of that frequency keeps its height
            highest = (spectrum.narrow(axis, least // 2, 1) + spectrum.narrow(axis, old - least // 2, 1)) / 2
            return torch.cat([start, highest, end], axis)
        highest = spectrum.narrow(axis, least // 2, 1) / 2
        shape[axis] = new - least - 1
        return torch.cat([start, highest, spectrum.new_zeros(shape), highest, end], axis)
    shape[axis] = new - least
    return torch.cat([start, spectrum.new_zeros(shape), end], axis)


def _by_matrices(x: Tensor, spectrum: Tensor, groups: int) -> Tensor:
    """Depthwise on small grids: a circulant matrix for each channel, where starting transforms would cost more than they save."""
    grid = as_integers(x.shape[2:])
    kernel = torch.fft.irfftn(spectrum[:, 0], s=grid, dim=list(range(1, 1 + len(grid))))
    count = math.prod(grid)
    matrices = kernel.flatten(1).index_select(1, _differences(grid, x.device)).view(-1, count, count)  # (channels, from, to)
    return torch.bmm(x.flatten(2).transpose(0, 1), matrices).transpose(0, 1).reshape(x.shape)


@functools.lru_cache(maxsize=64)
def _differences(grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Where k[t - s] stands in the flattened kernel, for samples s and t: flattened, (s * t,)."""
    with torch.inference_mode(False), unrecorded():  # it is kept for later calls, which may need gradients
        index = torch.arange(math.prod(grid), device=device)
        places = torch.stack(torch.unravel_index(index, grid))  # (axes, samples)
        sizes = torch.tensor(grid, device=device)[:, None, None]
        differences = (places[:, None, :] - places[:, :, None]) % sizes
        strides = torch.tensor([math.prod(grid[axis + 1 :]) for axis in range(len(grid))], device=device)
        return (differences * strides[:, None, None]).sum(0).flatten()


class _CircularConv(torch.autograd.Function):
    """Written out, since torch's gradient of a real transform takes a whole complex one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, spectrum: Tensor, groups: int) -> Tensor:
        axes = list(range(2, x.ndim))
        transformed = torch.fft.rfftn(x, dim=axes)
        if not any(ctx.needs_input_grad) and _is_depthwise(spectrum.shape[0], spectrum.shape[1], groups):
            return torch.fft.irfftn(transformed.mul_(spectrum[:, 0]), s=x.shape[2:], dim=axes)
        y = torch.fft.irfftn(product_of_spectra(transformed, spectrum, groups), s=x.shape[2:], dim=axes)
        ctx.save_for_backward(x, transformed, spectrum)
        ctx.groups, ctx.grid = groups, x.shape[2:]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, transformed, spectrum = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of gradients
            grad_x, grad_spectrum = _differentiable_gradients(x, spectrum, ctx.groups, grad, ctx.needs_input_grad)
            return grad_x, grad_spectrum, None
        axes = list(range(2, grad.ndim))
        slope = torch.fft.rfftn(grad, dim=axes)
        grad_x = grad_spectrum = None
        if ctx.needs_input_grad[0]:
            back = product_of_spectra(slope, _transposed(spectrum, ctx.groups).conj(), ctx.groups)
            grad_x = torch.fft.irfftn(back, s=ctx.grid, dim=axes)
        if ctx.needs_input_grad[1]:
            counts = multiplicity(ctx.grid, dtype=grad.dtype, device=grad.device) / math.prod(ctx.grid)
            grad_spectrum = _outer(slope, transformed, ctx.groups, spectrum.shape) * counts
        return grad_x, grad_spectrum, None


def _differentiable_gradients(x: Tensor, spectrum: Tensor, groups: int, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients with a graph of their own, by torch's transforms."""
    with torch.enable_grad():
        y = _plain(x, spectrum, groups)
        wanted = [tensor for tensor, needed in zip((x, spectrum), needs, strict=False) if needed]
        computed = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(computed) if needed else None for needed in needs[:2]]


def _plain(x: Tensor, spectrum: Tensor, groups: int) -> Tensor:
    """In torch's own operators, which can be differentiated any number of times and written into a program."""
    axes = list(range(2, x.ndim))
    return torch.fft.irfftn(product_of_spectra(torch.fft.rfftn(x, dim=axes), spectrum, groups), s=as_integers(x.shape[2:]), dim=axes)


def _is_depthwise(out_channels: int, in_per_group: int, groups: int) -> bool:
    return out_channels == groups and in_per_group == 1


def product_of_spectra(x: Tensor, spectrum: Tensor, groups: int) -> Tensor:
    """(batch, in, *half) times (out, in / groups, *half), summed over the inputs of each group: (batch, out, *half)."""
    if _is_depthwise(spectrum.shape[0], spectrum.shape[1], groups):
        return x * spectrum[:, 0]
    half = x.shape[2:]
    rows = rearrange(x.flatten(2), "b (g i) f -> (f g) b i", g=groups)
    columns = rearrange(spectrum.flatten(2), "(g o) i f -> (f g) i o", g=groups)
    return rearrange(torch.bmm(rows, columns), "(f g) b o -> b (g o) f", g=groups).unflatten(2, half)


def _transposed(spectrum: Tensor, groups: int) -> Tensor:
    """From outputs to inputs: (in, out / groups, *half)."""
    return spectrum if spectrum.shape[1] == 1 and spectrum.shape[0] == groups else _swap(spectrum, groups)


def _swap(spectrum: Tensor, groups: int) -> Tensor:
    return rearrange(spectrum.flatten(2), "(g o) i f -> (g i) o f", g=groups).unflatten(2, spectrum.shape[2:])


def _outer(slope: Tensor, x: Tensor, groups: int, shape: torch.Size) -> Tensor:
    """The sum over the batch of slope (batch, out, *half) and conj(x) (batch, in, *half): (out, in / groups, *half)."""
    if _is_depthwise(shape[0], shape[1], groups):
        return (slope * x.conj()).sum(0)[:, None]
    rows = rearrange(slope.flatten(2), "b (g o) f -> (f g) o b", g=groups)
    columns = rearrange(x.conj().flatten(2), "b (g i) f -> (f g) b i", g=groups)
    return rearrange(torch.bmm(rows, columns), "(f g) o i -> (g o) i f", g=groups).unflatten(2, shape[2:])
