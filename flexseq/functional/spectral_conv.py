"""Convolution through FFTs, in overlapping blocks, with the kernel's spectrum made a few hundred frequencies at a time.

Long signals are cut into overlapping blocks of a few kernel lengths (overlap-save), so that short transforms do. The kernels come as they
are, or as mixes of a few functions, weight (out, in, H) of basis (H, *taps), which is how kernel networks give them: then only the H
functions are transformed, and the spectrum of the out * in kernels is one real matrix product for each chunk of frequencies, used while it
is in the cache, never kept, and made again in the backward pass. Inference may keep it, where it is small (`kept_basis_conv`).

The operators are registered with torch as opaque ones: torch.compile meets no FFT length that changes with every crop, and the backward
pass keeps the input and the kernel alone.

With X, K, Z the transforms of the input's blocks (blocks x channels in), the kernels (channels out x in) and the output's blocks, a
cross-correlation is at each frequency
    Z = X P^T,   conj(dX) = G P,   dK = G^T X, summed over blocks,   where P = conj(K), G = conj(dZ).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flexseq.functional.blocks import Axis, choose_axes, cut, join, overlap_add, spread
from flexseq.functional.circular_conv import product_of_spectra
from flexseq.functional.fft_length import fft_length
from flexseq.functional.programs import as_integers

WORKING_SET = 2**20
"""Numbers that a chunk of frequencies may take: what stays in a processor's cache."""

PART = 2**19
"""Numbers of signals that are transformed at a time, and moved to another layout while they are in the cache."""

BEYOND_CPU = 2**7
"""How many times more of both on other devices, where starting many small operations costs more than memory does."""

KEPT = 3
"""How many times the numbers that a layer's input and output have its spectra may have to be kept between calls."""


@torch.library.custom_op("flexseq::kernel_conv", mutates_args=())
def kernel_conv(x: Tensor, kernel: Tensor, bias: Tensor | None, before: list[int], groups: int, method: str) -> Tensor:
    """Cross-correlate through FFTs: y[t] = bias + sum_j kernel[j] x[t - before + j], with zeros outside x.

    Args:
        x: (batch, in_channels, *grid), float32 or float64.
        kernel: (out_channels, in_channels / groups, *taps); no tap further away than the grid is long.
        bias: (out_channels,).
        before: taps before the present one, for each axis.
        groups: as in torch.nn.
        method: "fft" for one transform of the whole signal, "overlap" for blocks, "auto" for the cheaper.

    Returns:
        (batch, out_channels, *grid).
    """
    axes = choose_axes(x.shape, kernel.shape, tuple(before), None, method)
    return _forward(x, _Kernels(kernel, axes, groups), bias, axes, groups)


@torch.library.custom_op("flexseq::basis_conv", mutates_args=())
def basis_conv(x: Tensor, basis: Tensor, weight: Tensor, bias: Tensor | None, before: list[int], groups: int, method: str) -> Tensor:
    """`kernel_conv` with the kernel `weight` (out_channels, in_channels / groups, H) @ `basis` (H, *taps), which is never formed."""
    axes = choose_axes(x.shape, (*weight.shape[:2], *basis.shape[1:]), tuple(before), basis.shape[0], method)
    return _forward(x, _Mixes(basis, weight, axes, groups), bias, axes, groups)


def kept_basis_conv(
    x: Tensor, basis: Tensor, weight: Tensor, bias: Tensor | None, before: list[int], groups: int, method: str, kept: dict[str, Any]
) -> Tensor:
    """`basis_conv` without gradients, which finds the spectra of the last call in `kept`, or leaves them there.

    Spectra of the out * in kernels are kept where they are small enough, else those of the basis alone.
    """
    axes = choose_axes(x.shape, (*weight.shape[:2], *basis.shape[1:]), tuple(before), basis.shape[0], method)
    key = (axes, groups, basis.dtype)
    found, mixes = kept.get("mixes", (None, None))
    if found != key:
        with torch.autocast(x.device.type, enabled=False):
            mixes = _Mixes(basis, weight, axes, groups)
            if may_be_kept(math.prod(weight.shape[:2]) * math.prod([axis.points for axis in axes]), x, weight.shape[0]):
                mixes.make_all()
        kept["mixes"] = key, mixes
    return _forward(x, mixes, bias, axes, groups)


def may_be_kept(numbers: int, x: Tensor, out_channels: int) -> bool:
    """Whether something of so many numbers is small beside the signals of a layer, or at all."""
    signals = x.numel() // x.shape[1] * (x.shape[1] + out_channels)
    return numbers <= max(2**20, KEPT * signals)


@torch.library.custom_op("flexseq::kernel_conv_backward", mutates_args=())
def kernel_conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, before: list[int], groups: int, method: str, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `kernel_conv` with respect to x and kernel; an empty tensor for one that is not needed."""
    axes = choose_axes(x.shape, kernel.shape, tuple(before), None, method)
    kernels = _Kernels(kernel, axes, groups)
    grad_x = _backward(grad, x, kernels, axes, groups, needs_x=needs[0], needs_kernel=needs[1])
    return grad_x, kernels.gradient() if needs[1] else kernel.new_empty(0)


@torch.library.custom_op("flexseq::basis_conv_backward", mutates_args=())
def basis_conv_backward(
    grad: Tensor, x: Tensor, basis: Tensor, weight: Tensor, before: list[int], groups: int, method: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `basis_conv` with respect to x, basis and weight; empty tensors for those that are not needed."""
    axes = choose_axes(x.shape, (*weight.shape[:2], *basis.shape[1:]), tuple(before), basis.shape[0], method)
    mixes = _Mixes(basis, weight, axes, groups)
    needs_kernel = needs[1] or needs[2]
    grad_x = _backward(grad, x, mixes, axes, groups, needs_x=needs[0], needs_kernel=needs_kernel)
    if not needs_kernel:
        return grad_x, basis.new_empty(0), weight.new_empty(0)
    return grad_x, *mixes.gradients()


class _Kernels:
    """Spectra of kernels that are given as they are."""

    def __init__(self, kernel: Tensor, axes: tuple[Axis, ...], groups: int):
        self.axes, self.groups, self.taps = axes, groups, kernel.shape[2:]
        self.out_channels, self.in_per_group = kernel.shape[:2]
        self.spectrum = _transform(_placed(kernel, axes), len(axes))  # (out, in / groups, frequencies)
        self.slope: Tensor | None = None

    def at(self, chunk: slice) -> Tensor:
        """conj(K) at some frequencies: (frequencies * groups, out / groups, in / groups)."""
        return rearrange(self.spectrum[..., chunk].conj(), "(g o) i f -> (f g) o i", g=self.groups).resolve_conj()

    def take_slope(self, slope: Tensor, chunk: slice) -> None:
        """Keep the gradient with respect to K at these frequencies, in the shape of `at`."""
        if self.slope is None:
            self.slope = torch.empty_like(self.spectrum)
        self.slope[..., chunk] = rearrange(slope, "(f g) o i -> (g o) i f", g=self.groups)

    def gradient(self) -> Tensor:
        """(out, in / groups, *taps)."""
        assert self.slope is not None  # there is at least one frequency
        return _taken(_inverse(self.slope, self.axes), self.axes, self.taps)


class _Mixes:
    """Spectra of kernels that are mixes of a basis."""

    def __init__(self, basis: Tensor, weight: Tensor, axes: tuple[Axis, ...], groups: int):
        self.axes, self.groups, self.taps, self.shape = axes, groups, basis.shape[1:], weight.shape
        self.out_channels, self.in_per_group = weight.shape[:2]
        spectrum = _transform(_placed(basis, axes), len(axes))
        self.basis = rearrange(torch.view_as_real(spectrum), "h f p -> p f h").contiguous()
        self.weight = weight.flatten(0, 1)  # (out * in / groups, H)
        self.minus_weight = -self.weight
        self.basis_slope: Tensor | None = None
        self.weight_slope: Tensor | None = None
        self.all: Tensor | None = None

    def make_all(self) -> None:
        """Make the spectra of all kernels now, rather than when they are asked for."""
        self.all = self.at(slice(None))

    def at(self, chunk: slice) -> Tensor:
        """conj(K) at some frequencies: (frequencies * groups, out / groups, in / groups)."""
        if self.all is not None:
            return self.all.unflatten(0, (-1, self.groups))[chunk].flatten(0, 1)
        real = torch.mm(self.basis[0, chunk], self.weight.T)
        imaginary = torch.mm(self.basis[1, chunk], self.minus_weight.T)
        return torch.complex(real, imaginary).view(-1, self.out_channels // self.groups, self.in_per_group)

    def take_slope(self, slope: Tensor, chunk: slice) -> None:
        """Add up the gradient with respect to K at these frequencies, in the shape of `at`."""
        if self.basis_slope is None:
            self.basis_slope = torch.empty_like(self.basis)
            self.weight_slope = torch.zeros_like(self.weight)
            self.share = _share(self.axes, self.basis)[:, None]  # Parseval: a sum over taps is one over frequencies
        parts = rearrange(torch.view_as_real(slope), "(f g) o i p -> p f (g o i)", g=self.groups).contiguous()
        self.basis_slope[:, chunk] = torch.matmul(parts, self.weight)
        weighted = self.basis[:, chunk] * self.share[chunk]
        assert self.weight_slope is not None
        self.weight_slope.addmm_(parts.flatten(0, 1).T, weighted.flatten(0, 1))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """(H, *taps) and (out, in / groups, H)."""
        assert self.basis_slope is not None  # there is at least one frequency
        assert self.weight_slope is not None
        spectrum = torch.view_as_complex(rearrange(self.basis_slope, "p f h -> h f p").contiguous())
        return _taken(_inverse(spectrum, self.axes), self.axes, self.taps), self.weight_slope.view(self.shape)


def _forward(x: Tensor, kernels: _Kernels | _Mixes, bias: Tensor | None, axes: tuple[Axis, ...], groups: int) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        y = x.new_empty(x.shape[0], kernels.out_channels, *x.shape[2:])
        spectra = _spectra(x, cut, axes, groups)
        result = _like(spectra, kernels.out_channels)
        for chunk in _chunks(spectra, kernels):
            result[chunk] = _products(spectra[chunk], kernels.at(chunk).mT)
        for part in _parts(y, axes, groups):
            join(_signals(result, part, axes), y[part], None if bias is None else bias[part[1]], axes)
        return y


def _backward(
    grad: Tensor, x: Tensor, kernels: _Kernels | _Mixes, axes: tuple[Axis, ...], groups: int, *, needs_x: bool, needs_kernel: bool
) -> Tensor:
    """The gradient with respect to x, or an empty tensor; the kernel's is left with `kernels`."""
    with torch.autocast(x.device.type, enabled=False):
        slopes = _spectra(grad, spread, axes, groups, conj=True)
        if needs_kernel:
            spectra = _spectra(x, cut, axes, groups)
        if needs_x:
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            result = _like(slopes, x.shape[1])
        for chunk in _chunks(slopes, kernels):
            if needs_kernel:
                kernels.take_slope(_rows(slopes[chunk]).mT @ _rows(spectra[chunk]), chunk)
            if needs_x:
                result[chunk] = _products(slopes[chunk], kernels.at(chunk))
        if not needs_x:
            return x.new_empty(0)
        for part in _parts(grad_x, axes, groups):
            grad_x[part] = overlap_add(_signals(result, part, axes, conj=True), axes)
        return grad_x


def _transform(signal: Tensor, ndim: int) -> Tensor:
    """(..., *points) -> (..., frequencies)."""
    return torch.fft.rfftn(signal, dim=list(range(-ndim, 0))).flatten(-ndim)


def _inverse(spectrum: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(..., frequencies) -> (..., *points)."""
    points = [axis.points for axis in axes]
    return torch.fft.irfftn(spectrum.unflatten(-1, [*points[:-1], points[-1] // 2 + 1]), s=points, dim=list(range(-len(axes), 0)))


def _parts(signal: Tensor, axes: tuple[Axis, ...], groups: int) -> Iterator[tuple[slice, slice]]:
    """Slices of a signal's batch and channels, so large that a processor's cache holds the transforms of each."""
    batch, channels = signal.shape[:2]
    numbers = math.prod([axis.blocks * axis.points for axis in axes])
    size = PART * _patience(signal.device)
    some_channels = channels if groups > 1 else min(channels, max(2, size // numbers))
    some_examples = max(1, size // (numbers * channels)) if some_channels == channels else 1
    for example in range(0, batch, some_examples):
        for channel in range(0, channels, some_channels):
            yield slice(example, example + some_examples), slice(channel, channel + some_channels)


def _spectra(
    signal: Tensor, cut_or_spread: Callable[[Tensor, tuple[Axis, ...]], Tensor], axes: tuple[Axis, ...], groups: int, *, conj: bool = False
) -> Tensor:
    """Transforms of all blocks, frequencies first.

    Args:
        signal: (batch, channels, *grid).
        cut_or_spread: gives its blocks, (batch, channels, *blocks, *points).
        conj: conjugated.

    Returns:
        (frequencies, groups, batch, blocks, channels / groups).
    """
    batch, channels = signal.shape[:2]
    *others, last = [axis.points for axis in axes]
    shape = math.prod(others) * (last // 2 + 1), groups, batch, math.prod([axis.blocks for axis in axes]), channels // groups
    spectra = torch.empty(shape, dtype=signal.dtype.to_complex(), device=signal.device)
    for examples, some in _parts(signal, axes, groups):
        part = _transform(cut_or_spread(signal[examples, some], axes), len(axes)).flatten(2, -2)  # (batch, channels, blocks, frequencies)
        part = rearrange(part.conj() if conj else part, "b (g c) m f -> f g b m c", g=groups)
        spectra[:, :, examples, :, some if groups == 1 else slice(None)] = part
    return spectra


def _signals(spectra: Tensor, part: tuple[slice, slice], axes: tuple[Axis, ...], *, conj: bool = False) -> Tensor:
    """The reverse of `_spectra` for one of `_parts`: (batch, channels, *blocks, *points)."""
    groups = spectra.shape[1]
    some = spectra[:, :, part[0], :, part[1] if groups == 1 else slice(None)]
    some = rearrange(some.conj() if conj else some, "f g b m c -> b (g c) m f").contiguous()
    return _inverse(some.unflatten(2, [axis.blocks for axis in axes]), axes)


def _placed(kernel: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(..., *taps) -> (..., *points): the present tap at 0, those before it at the end."""
    dims = list(range(-len(axes), 0))
    padding = [amount for axis in reversed(axes) for amount in (0, axis.points - axis.taps)]
    return torch.roll(F.pad(kernel, padding), [-axis.before for axis in axes], dims)


def _taken(signal: Tensor, axes: tuple[Axis, ...], taps: torch.Size) -> Tensor:
    """The adjoint of `_placed`."""
    signal = torch.roll(signal, [axis.before for axis in axes], list(range(-len(axes), 0)))
    for i, count in enumerate(taps):
        signal = signal.narrow(i - len(axes), 0, count)
    return signal.contiguous()


def _share(axes: tuple[Axis, ...], like: Tensor) -> Tensor:
    """How much each kept frequency stands for in a mean over all of them: (frequencies,)."""
    *others, last = [axis.points for axis in axes]
    half = like.new_full((last // 2 + 1,), 2.0)
    half[0] = half[-1] = 1  # points are even
    return half.repeat(math.prod(others)) / (last * math.prod(others))


def _chunks(spectra: Tensor, kernels: _Kernels | _Mixes) -> Iterator[slice]:
    """Slices of the frequencies, each as many as fit the working set."""
    frequencies, groups, batch, blocks, _ = spectra.shape
    out, in_per_group = kernels.out_channels, kernels.in_per_group
    numbers = 2 * out * in_per_group + 2 * batch * blocks * (in_per_group * groups + out)
    size = max(16, WORKING_SET * _patience(spectra.device) // numbers)
    for start in range(0, frequencies, size):
        yield slice(start, min(start + size, frequencies))


def _patience(device: torch.device) -> int:
    return 1 if device.type == "cpu" else BEYOND_CPU


def _like(spectra: Tensor, channels: int) -> Tensor:
    """Room for the spectra of other signals; `spectra` itself where they fit, since each chunk is read before it is written."""
    *shape, per_group = spectra.shape
    if per_group * spectra.shape[1] == channels:
        return spectra
    return spectra.new_empty(*shape, channels // spectra.shape[1])


def _rows(spectra: Tensor) -> Tensor:
    """(frequencies, groups, batch, blocks, channels) -> (frequencies * groups, batch * blocks, channels)."""
    return spectra.flatten(2, 3).flatten(0, 1)


def _products(spectra: Tensor, k: Tensor) -> Tensor:
    """Rows times k for each frequency and group; for a single pair of channels without a matrix product."""
    rows = _rows(spectra)
    products = rows * k if k.shape[-2:] == (1, 1) else torch.bmm(rows, k)
    return products.view(*spectra.shape[:-1], k.shape[-1])


def _fake_like_x(x: Tensor, out_channels: int) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *x.shape[2:]))


def _fake_gradient(tensor: Tensor, needed: bool) -> Tensor:
    return tensor.new_empty(tensor.shape if needed else 0)


@kernel_conv.register_fake
def _(x, kernel, bias, before, groups, method):
    return _fake_like_x(x, kernel.shape[0])


@basis_conv.register_fake
def _(x, basis, weight, bias, before, groups, method):
    return _fake_like_x(x, weight.shape[0])


@kernel_conv_backward.register_fake
def _(grad, x, kernel, before, groups, method, needs):
    return _fake_gradient(x, needs[0]), _fake_gradient(kernel, needs[1])


@basis_conv_backward.register_fake
def _(grad, x, basis, weight, before, groups, method, needs):
    return _fake_gradient(x, needs[0]), _fake_gradient(basis, needs[1] or needs[2]), _fake_gradient(weight, needs[1] or needs[2])


class KernelConv(torch.autograd.Function):
    """`kernel_conv` with its gradient, which may be differentiated again; not in forward mode, and torch says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, kernel, bias, before, groups, method):
        return kernel_conv(x, kernel, bias, before, groups, method)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, kernel, _, *ctx.options = inputs
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            return _differentiable_gradients(lambda kernel: kernel, ctx, grad)
        return _gradients(kernel_conv_backward, ctx, grad)


class BasisConv(torch.autograd.Function):
    """`basis_conv` with its gradient, which may be differentiated again; not in forward mode, and torch says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, basis, weight, bias, before, groups, method):
        return basis_conv(x, basis, weight, bias, before, groups, method)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, basis, weight, _, *ctx.options = inputs
        ctx.save_for_backward(x, basis, weight)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            return _differentiable_gradients(lambda basis, weight: torch.tensordot(weight, basis, 1), ctx, grad)
        return _gradients(basis_conv_backward, ctx, grad)


def _gradients(operator: Callable[..., tuple[Tensor, ...]], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """What a Function's backward returns: gradients of the saved tensors and the bias that need one, and none of the options."""
    tensors, options = ctx.saved_tensors, ctx.options
    *needs, needs_bias = ctx.needs_input_grad[: len(tensors) + 1]
    gradients: list[Tensor | None] = [None] * len(tensors)
    if any(needs):
        computed = operator(grad, *tensors, *options, needs)
        gradients = [gradient if needed else None for gradient, needed in zip(computed, needs, strict=True)]
    bias = grad.sum([0, *range(2, grad.ndim)]) if needs_bias else None
    return *gradients, bias, *[None] * len(options)


def _differentiable_gradients(kernel_of: Callable[..., Tensor], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """`_gradients` with a graph of its own, where somebody wants gradients of gradients: by torch's transforms of the whole signal."""
    tensors, (before, groups, _) = ctx.saved_tensors, ctx.options
    *needs, needs_bias = ctx.needs_input_grad[: len(tensors) + 1]
    gradients: list[Tensor | None] = [None] * len(tensors)
    if any(needs):
        with torch.enable_grad():
            x, *parts = tensors
            y = plain_conv(x, kernel_of(*parts), before, groups)
            wanted = [tensor for tensor, needed in zip(tensors, needs, strict=True) if needed]
            computed = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
        gradients = [next(computed) if needed else None for needed in needs]
    bias = grad.sum([0, *range(2, grad.ndim)]) if needs_bias else None
    return *gradients, bias, *[None] * len(ctx.options)


def plain_conv(x: Tensor, kernel: Tensor, before: Sequence[int], groups: int) -> Tensor:
    """The convolution by one transform of the whole signal in torch's own operators, which can be differentiated any number of times."""
    axes = list(range(2, x.ndim))
    taps, grid = as_integers(kernel.shape[2:]), as_integers(x.shape[2:])
    points = [fft_length(size + count - 1) for size, count in zip(grid, taps, strict=True)]
    spectrum = product_of_spectra(torch.fft.rfftn(x, points, axes), torch.fft.rfftn(kernel, points, axes).conj(), groups)
    y = torch.roll(torch.fft.irfftn(spectrum, points, axes), list(before), axes)
    for axis, size in zip(axes, grid, strict=True):
        y = y.narrow(axis, 0, size)
    return y
