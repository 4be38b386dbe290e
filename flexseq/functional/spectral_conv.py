"""Convolution through FFTs, in overlapping blocks, with the kernel's spectrum made a few hundred frequencies at a time.

Long signals are cut into overlapping blocks of a few kernel lengths (overlap-save), so that short transforms do. The kernels come as they
are, or as mixes of a few functions, weight (out, in, H) of basis (H, *taps), which is how kernel networks give them: then only the H
functions are transformed, and the spectrum of the out * in kernels is one real matrix product for each chunk of frequencies, used while it
is in the cache, never kept, and made again in the backward pass.

The operators are registered with torch as opaque ones: torch.compile meets no FFT length that changes with every crop, and the backward
pass keeps the input and the kernel alone.

With X, K, Z the transforms of an input block, the kernel and an output block, a cross-correlation is
    Z = X conj(K),   dX = dZ K,   dK = X conj(dZ), summed over blocks.
In real numbers, with real and imaginary parts stacked, A = [Xr; Xi], K = [Kr; Ki] and E = [[dZr, -dZi], [dZi, dZr]], the four quarters
of A K' give Z, E K is dA, and E' A is dK.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flexseq.functional.blocks import Axis, choose_axes, cut, join, overlap_add, spread

WORKING_SET = 2**20
"""Numbers that a chunk of frequencies may take: what stays in a processor's cache."""


@torch.library.custom_op("flexseq::kernel_conv", mutates_args=())
def kernel_conv(x: Tensor, kernel: Tensor, before: list[int], groups: int, method: str) -> Tensor:
    """Cross-correlate through FFTs: y[t] = sum_j kernel[j] x[t - before + j], with zeros outside x.

    Args:
        x: (batch, in_channels, *grid), float32 or float64.
        kernel: (out_channels, in_channels / groups, *taps); no tap further away than the grid is long.
        before: taps before the present one, for each axis.
        groups: as in torch.nn.
        method: "fft" for one transform of the whole signal, "overlap" for blocks, "auto" for the cheaper.

    Returns:
        (batch, out_channels, *grid).
    """
    axes = choose_axes(x.shape, kernel.shape, tuple(before), groups, None, method)
    return _forward(x, _Kernels(kernel, axes, groups), axes, groups)


@torch.library.custom_op("flexseq::basis_conv", mutates_args=())
def basis_conv(x: Tensor, basis: Tensor, weight: Tensor, before: list[int], groups: int, method: str) -> Tensor:
    """`kernel_conv` with the kernel `weight` (out_channels, in_channels / groups, H) @ `basis` (H, *taps), which is never formed."""
    axes = choose_axes(x.shape, (*weight.shape[:2], *basis.shape[1:]), tuple(before), groups, basis.shape[0], method)
    return _forward(x, _Mixes(basis, weight, axes, groups), axes, groups)


@torch.library.custom_op("flexseq::kernel_conv_backward", mutates_args=())
def kernel_conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, before: list[int], groups: int, method: str, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `kernel_conv` with respect to x and kernel; an empty tensor for one that is not needed."""
    axes = choose_axes(x.shape, kernel.shape, tuple(before), groups, None, method)
    kernels = _Kernels(kernel, axes, groups)
    grad_x = _backward(grad, x, kernels, axes, groups, needs_x=needs[0], needs_kernel=needs[1])
    return grad_x, kernels.gradient() if needs[1] else kernel.new_empty(0)


@torch.library.custom_op("flexseq::basis_conv_backward", mutates_args=())
def basis_conv_backward(
    grad: Tensor, x: Tensor, basis: Tensor, weight: Tensor, before: list[int], groups: int, method: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `basis_conv` with respect to x, basis and weight; empty tensors for those that are not needed."""
    axes = choose_axes(x.shape, (*weight.shape[:2], *basis.shape[1:]), tuple(before), groups, basis.shape[0], method)
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
        """(frequencies * groups, 2 * out / groups, in / groups): real above imaginary parts."""
        values = torch.view_as_real(self.spectrum[..., chunk])
        return rearrange(values, "(g o) i f p -> (f g) (p o) i", g=self.groups)

    def take_slope(self, slope: Tensor, chunk: slice) -> None:
        """Keep the gradient with respect to `at(chunk)`."""
        if self.slope is None:
            self.slope = torch.empty_like(self.spectrum)
        torch.view_as_real(self.slope)[:, :, chunk] = rearrange(slope, "(f g) (p o) i -> (g o) i f p", g=self.groups, p=2)

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
        self.basis = rearrange(torch.view_as_real(spectrum), "h f p -> f p h").contiguous()
        self.weight = weight.flatten(0, 1)  # (out * in / groups, H)
        self.basis_slope: Tensor | None = None
        self.weight_slope = torch.zeros_like(self.weight)

    def at(self, chunk: slice) -> Tensor:
        """(frequencies * groups, 2 * out / groups, in / groups): real above imaginary parts."""
        values = torch.matmul(self.basis[chunk].flatten(0, 1), self.weight.T)
        if self.groups > 1:
            values = rearrange(values, "(f p) (g oi) -> f g p oi", p=2, g=self.groups)
        return values.reshape(-1, 2 * self.out_channels // self.groups, self.in_per_group)

    def take_slope(self, slope: Tensor, chunk: slice) -> None:
        """Add up the gradient with respect to `at(chunk)`."""
        slope = rearrange(slope, "(f g) (p o) i -> (f p) (g o i)", p=2, g=self.groups)
        basis = self.basis[chunk]
        if self.basis_slope is None:
            self.basis_slope = torch.empty_like(self.basis)
            self.share = _share(self.axes, self.basis)
        self.basis_slope[chunk] = torch.matmul(slope, self.weight).view_as(basis)
        weighted = basis * self.share[chunk, None, None]  # Parseval: a sum over taps is one over frequencies
        self.weight_slope.addmm_(slope.T, weighted.flatten(0, 1))

    def gradients(self) -> tuple[Tensor, Tensor]:
        """(H, *taps) and (out, in / groups, H)."""
        assert self.basis_slope is not None  # there is at least one frequency
        spectrum = torch.view_as_complex(rearrange(self.basis_slope, "f p h -> h f p").contiguous())
        return _taken(_inverse(spectrum, self.axes), self.axes, self.taps), self.weight_slope.view(self.shape)


def _forward(x: Tensor, kernels: _Kernels | _Mixes, axes: tuple[Axis, ...], groups: int) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        spectrum = _block_spectra(cut(x, axes), axes)
        result = spectrum.new_empty(spectrum.shape[0], kernels.out_channels, *spectrum.shape[2:])
        for chunk in _chunks(spectrum, kernels):
            quarters = _products(_stacked(spectrum, chunk, groups), kernels.at(chunk))
            quarters = rearrange(quarters, "(f g) (p b m) (q o) -> p q b (g o) m f", g=groups, p=2, q=2, b=spectrum.shape[0])
            values = torch.view_as_real(result)[:, :, :, chunk]
            torch.add(quarters[0, 0], quarters[1, 1], out=values[..., 0])
            torch.sub(quarters[1, 0], quarters[0, 1], out=values[..., 1])
        return join(_blocks(result, axes), axes)


def _backward(
    grad: Tensor, x: Tensor, kernels: _Kernels | _Mixes, axes: tuple[Axis, ...], groups: int, *, needs_x: bool, needs_kernel: bool
) -> Tensor:
    """The gradient with respect to x, or an empty tensor; the kernel's is left with `kernels`."""
    with torch.autocast(x.device.type, enabled=False):
        grad_spectrum = _block_spectra(spread(grad, axes), axes)
        if needs_kernel:
            spectrum = _block_spectra(cut(x, axes), axes)
        if needs_x:
            result = grad_spectrum.new_empty(x.shape[0], x.shape[1], *grad_spectrum.shape[2:])
        for chunk in _chunks(grad_spectrum, kernels):
            slopes = _turned(_stacked(grad_spectrum, chunk, groups))
            if needs_x:
                values = _products(slopes, kernels.at(chunk).mT)
                values = rearrange(values, "(f g) (p b m) i -> b (g i) m f p", g=groups, p=2, b=x.shape[0])
                torch.view_as_real(result)[:, :, :, chunk] = values
            if needs_kernel:
                kernels.take_slope(torch.bmm(slopes.mT, _stacked(spectrum, chunk, groups)), chunk)
        return overlap_add(_blocks(result, axes), axes) if needs_x else x.new_empty(0)


def _transform(signal: Tensor, ndim: int) -> Tensor:
    """(..., *points) -> (..., frequencies)."""
    return torch.fft.rfftn(signal, dim=list(range(-ndim, 0))).flatten(-ndim)


def _inverse(spectrum: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(..., frequencies) -> (..., *points)."""
    points = [axis.points for axis in axes]
    return torch.fft.irfftn(spectrum.unflatten(-1, [*points[:-1], points[-1] // 2 + 1]), s=points, dim=list(range(-len(axes), 0)))


def _block_spectra(blocks: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(batch, channels, *blocks, *points) -> (batch, channels, all blocks, frequencies)."""
    return _transform(blocks, len(axes)).flatten(2, -2)


def _blocks(spectra: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(batch, channels, all blocks, frequencies) -> (batch, channels, *blocks, *points)."""
    return _inverse(spectra.unflatten(2, [axis.blocks for axis in axes]), axes)


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


def _chunks(spectrum: Tensor, kernels: _Kernels | _Mixes) -> Iterator[slice]:
    """Slices of the frequencies, each as many as fit the working set."""
    batch, _, blocks, frequencies = spectrum.shape
    out, in_per_group = kernels.out_channels, kernels.in_per_group
    numbers = 2 * out * in_per_group + 2 * batch * blocks * (in_per_group * kernels.groups + 2 * out)
    size = max(16, WORKING_SET // numbers)
    for start in range(0, frequencies, size):
        yield slice(start, min(start + size, frequencies))


def _stacked(spectrum: Tensor, chunk: slice, groups: int) -> Tensor:
    """A chunk of (batch, channels, blocks, frequencies) as real above imaginary parts.

    Returns:
        (frequencies * groups, 2 * batch * blocks, channels / groups).
    """
    values = torch.view_as_real(spectrum[..., chunk])
    return rearrange(values, "b (g c) m f p -> (f g) (p b m) c", g=groups)


def _turned(d: Tensor) -> Tensor:
    """[dZr; dZi] -> [[dZr, -dZi], [dZi, dZr]]."""
    real, imaginary = d.chunk(2, 1)
    return torch.cat([d, torch.cat([-imaginary, real], 1)], 2)


def _products(a: Tensor, k: Tensor) -> Tensor:
    """a @ k', batch by batch; for a single pair of channels without a matrix product."""
    return a * k.mT if k.shape[-1] == 1 else torch.bmm(a, k.mT)


def _fake_like_x(x: Tensor, out_channels: int) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *x.shape[2:]))


def _fake_gradient(tensor: Tensor, needed: bool) -> Tensor:
    return tensor.new_empty(tensor.shape if needed else 0)


@kernel_conv.register_fake
def _(x, kernel, before, groups, method):
    return _fake_like_x(x, kernel.shape[0])


@basis_conv.register_fake
def _(x, basis, weight, before, groups, method):
    return _fake_like_x(x, weight.shape[0])


@kernel_conv_backward.register_fake
def _(grad, x, kernel, before, groups, method, needs):
    return _fake_gradient(x, needs[0]), _fake_gradient(kernel, needs[1])


@basis_conv_backward.register_fake
def _(grad, x, basis, weight, before, groups, method, needs):
    return _fake_gradient(x, needs[0]), _fake_gradient(basis, needs[1] or needs[2]), _fake_gradient(weight, needs[1] or needs[2])


class KernelConv(torch.autograd.Function):
    """`kernel_conv` with its gradient; not differentiable twice, nor in forward mode, and torch says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, kernel, before, groups, method):
        return kernel_conv(x, kernel, before, groups, method)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, kernel, *ctx.options = inputs
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx, grad):
        return _gradients(kernel_conv_backward, ctx, grad)


class BasisConv(torch.autograd.Function):
    """`basis_conv` with its gradient; not differentiable twice, nor in forward mode, and torch says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, basis, weight, before, groups, method):
        return basis_conv(x, basis, weight, before, groups, method)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, basis, weight, *ctx.options = inputs
        ctx.save_for_backward(x, basis, weight)

    @staticmethod
    def backward(ctx, grad):
        return _gradients(basis_conv_backward, ctx, grad)


def _gradients(operator: Callable[..., tuple[Tensor, ...]], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """What a Function's backward returns: gradients of the saved tensors that need one, and none of the options."""
    tensors, options = ctx.saved_tensors, ctx.options
    needs = list(ctx.needs_input_grad[: len(tensors)])
    gradients = operator(grad, *tensors, *options, needs)
    return *[gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)], *[None] * len(options)
