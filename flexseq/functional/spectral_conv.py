"""Convolution through FFTs, in overlapping blocks, with the kernel's spectrum made a few hundred frequencies at a time.

Long signals are cut into overlapping blocks of a few kernel lengths (overlap-save), so that short transforms do. The kernels come as they
are, or as linear combinations of a few functions, weight (out, in, H) of basis (H, *taps), which is how kernel networks give them: then
only the H functions are transformed, and the spectrum of the out * in kernels is one real matrix product for each chunk of frequencies,
used while it is in the cache, never kept, and made again in the backward pass. Inference may keep it, where it is small
(`kept_basis_conv`).

The operators are registered with torch as opaque ones: torch.compile meets no FFT length that changes with every crop, and the backward
pass keeps the input and the kernel alone.

With X, K, Z the transforms of the input's blocks (blocks x channels in), the kernels (channels out x in), which begin at the first tap, and
the output's blocks, a cross-correlation is at each frequency
    Z = X P^T with P = conj(K),   dX = D K with D = dZ,   conj(dK) = D^T conj(X), summed over blocks.
Which of them are conjugated is chosen so that it costs nothing: while they are moved to another layout anyway. Depthwise, the products are
elementwise, and nothing moves.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flexseq.functional.blocks import Axis, choose_axes, cut, join, overlap_add, spread
from flexseq.functional.circular_conv import product_of_spectra
from flexseq.functional.fft_length import fft_length
from flexseq.functional.kernel_spectra import BasisSpectra, KernelSpectra, inverse, laid_out, transform
from flexseq.functional.programs import as_integers

WORKING_SET = 2**22
"""Numbers that a chunk of frequencies may take: what stays in a processor's cache."""

PART = 2**21
"""Numbers of signals that are transformed at a time, and moved to another layout while they are in the cache."""

BEYOND_CPU = 2**5
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
    axes = choose_axes(x.device, x.shape, kernel.shape, before, None, method)
    return _forward(x, KernelSpectra(kernel, axes, groups), bias, axes)


@torch.library.custom_op("flexseq::basis_conv", mutates_args=())
def basis_conv(x: Tensor, basis: Tensor, weight: Tensor, bias: Tensor | None, before: list[int], groups: int, method: str) -> Tensor:
    """`kernel_conv` with the kernel `weight` (out_channels, in_channels / groups, H) @ `basis` (H, *taps), which is never formed."""
    axes = choose_axes(x.device, x.shape, (*weight.shape[:2], *basis.shape[1:]), before, basis.shape[0], method)
    return _forward(x, BasisSpectra(basis, weight, axes, groups), bias, axes)


def kept_basis_conv(
    x: Tensor,
    basis: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: list[int],
    groups: int,
    method: str,
    *,
    context: int,
    kept: dict[str, Any],
) -> Tensor:
    """`basis_conv` without gradients, which finds the spectra of the last call in `kept`, or leaves them there.

    Spectra of the out * in kernels are kept where they are small enough, else those of the basis alone.

    Args:
        context: samples at the begin of x, along the last axis, that are only seen: there are no outputs for them.
    """
    x_shape = (*x.shape[:-1], x.shape[-1] - context)
    axes = choose_axes(x.device, x_shape, (*weight.shape[:2], *basis.shape[1:]), before, basis.shape[0], method)
    key = (axes, groups, basis.dtype)
    found, mixes = kept.get("mixes", (None, None))
    if found != key:
        with torch.autocast(x.device.type, enabled=False):
            mixes = BasisSpectra(basis, weight, axes, groups)
            if may_be_kept(math.prod(weight.shape[:2]) * math.prod([axis.points for axis in axes]), x, weight.shape[0]):
                mixes.make_all()
        kept["mixes"] = key, mixes
    return _forward(x, mixes, bias, axes, context)


def may_be_kept(numbers: int, x: Tensor, out_channels: int) -> bool:
    """Whether something of so many numbers is small beside the signals of a layer, or at all."""
    signals = x.numel() // x.shape[1] * (x.shape[1] + out_channels)
    return numbers <= max(2**20, KEPT * signals)


@torch.library.custom_op("flexseq::kernel_conv_backward", mutates_args=())
def kernel_conv_backward(
    grad: Tensor, x: Tensor, kernel: Tensor, before: list[int], groups: int, method: str, needs: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of `kernel_conv` with respect to x and kernel; an empty tensor for one that is not needed."""
    if not len(x):
        return _zeros(x, needs[0]), _zeros(kernel, needs[1])
    axes = choose_axes(x.device, x.shape, kernel.shape, before, None, method)
    kernels = KernelSpectra(kernel, axes, groups)
    grad_x = _backward(grad, x, kernels, axes, needs_x=needs[0], needs_kernel=needs[1])
    return grad_x, kernels.gradient() if needs[1] else kernel.new_empty(0)


@torch.library.custom_op("flexseq::basis_conv_backward", mutates_args=())
def basis_conv_backward(
    grad: Tensor, x: Tensor, basis: Tensor, weight: Tensor, before: list[int], groups: int, method: str, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `basis_conv` with respect to x, basis and weight; empty tensors for those that are not needed."""
    if not len(x):
        return _zeros(x, needs[0]), _zeros(basis, needs[1] or needs[2]), _zeros(weight, needs[1] or needs[2])
    axes = choose_axes(x.device, x.shape, (*weight.shape[:2], *basis.shape[1:]), before, basis.shape[0], method)
    mixes = BasisSpectra(basis, weight, axes, groups)
    needs_kernel = needs[1] or needs[2]
    grad_x = _backward(grad, x, mixes, axes, needs_x=needs[0], needs_kernel=needs_kernel)
    if not needs_kernel:
        return grad_x, basis.new_empty(0), weight.new_empty(0)
    return grad_x, *mixes.gradients()


def _forward(x: Tensor, kernels: KernelSpectra | BasisSpectra, bias: Tensor | None, axes: tuple[Axis, ...], context: int = 0) -> Tensor:
    grid = [axis.size for axis in axes]
    if not len(x):
        return x.new_empty(0, kernels.out_channels, *grid)
    with torch.autocast(x.device.type, enabled=False):
        parts = list(_parts(x, kernels, axes, channels=kernels.out_channels))
        out = None if len(parts) == 1 else x.new_empty(x.shape[0], kernels.out_channels, *grid)
        if kernels.is_depthwise:
            spectrum = _for_blocks(kernels.depthwise(conj=True), axes)
            for part in parts:
                z = inverse(transform(cut(x[part], axes, context), len(axes)).mul_(spectrum[part[1]]), axes)
                y = join(z, None if bias is None else bias[part[1]], axes, None if out is None else out[part])
            return y if out is None else out
        spectra = _spectra(x, functools.partial(cut, context=context), kernels, axes)
        result = _each_chunk(spectra, kernels, lambda part, chunk: _products(part, kernels.at(chunk, conj=True).transpose(-1, -2)))
        for part in parts:
            y = join(_signals(result, part, axes), None if bias is None else bias[part[1]], axes, None if out is None else out[part])
        return y if out is None else out


def _backward(
    grad: Tensor, x: Tensor, kernels: KernelSpectra | BasisSpectra, axes: tuple[Axis, ...], *, needs_x: bool, needs_kernel: bool
) -> Tensor:
    """The gradient with respect to x, or an empty tensor; the kernel's is left with `kernels`."""
    with torch.autocast(x.device.type, enabled=False):
        if kernels.is_depthwise:
            return _depthwise_backward(grad, x, kernels, axes, needs_x=needs_x, needs_kernel=needs_kernel)
        slopes = _spectra(grad, spread, kernels, axes)
        spectra = _spectra(x, cut, kernels, axes, conj=True) if needs_kernel else None

        def products(part: Tensor, chunk: slice) -> Tensor | None:
            if spectra is not None:
                slope = torch.bmm(_rows(part).transpose(-1, -2), _rows(spectra[chunk]))
                kernels.take_slope(slope.unflatten(0, (-1, part.shape[1])), chunk)
            return _products(part, kernels.at(chunk, conj=False)) if needs_x else None

        result = _each_chunk(slopes, kernels, products)
        if not needs_x:
            return x.new_empty(0)
        parts = list(_parts(x, kernels, axes))
        if len(parts) == 1:
            return overlap_add(_signals(result, parts[0], axes), axes).contiguous()
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part in parts:
            grad_x[part] = overlap_add(_signals(result, part, axes), axes)
        return grad_x


def _depthwise_backward(
    grad: Tensor, x: Tensor, kernels: KernelSpectra | BasisSpectra, axes: tuple[Axis, ...], *, needs_x: bool, needs_kernel: bool
) -> Tensor:
    spectrum = _for_blocks(kernels.depthwise(conj=False), axes) if needs_x else None
    parts = list(_parts(x, kernels, axes))
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else x.new_empty(0)
    slope: Tensor | None = None
    for part in parts:
        d = transform(spread(grad[part], axes), len(axes))  # (batch, channels, *blocks, frequencies)
        if needs_kernel:
            products = transform(cut(x[part], axes), len(axes)).conj_physical_().mul_(d)
            some = products.sum([0, *range(2, 2 + len(axes))])
            if len(parts) == 1:
                slope = some
            else:
                slope = some.new_zeros(x.shape[1], some.shape[1]) if slope is None else slope
                slope[part[1]] += some
        if spectrum is not None:
            grad_x[part] = overlap_add(inverse(d.mul_(spectrum[part[1]]), axes), axes)
    if slope is not None:
        kernels.take_depthwise_slope(slope)
    return grad_x


def _for_blocks(spectrum: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(channels, frequencies) -> (channels, 1, ..., frequencies), to be multiplied with the spectra of blocks."""
    return spectrum.view(len(spectrum), *[1] * len(axes), -1)


def _each_chunk(spectra: Tensor, kernels: KernelSpectra | BasisSpectra, run: Callable[[Tensor, slice], Tensor | None]) -> Tensor:
    """What `run` makes of the spectra of a chunk of frequencies, for all chunks; they are overwritten where the results fit."""
    chunks = list(_chunks(spectra, kernels))
    if len(chunks) == 1:
        result = run(spectra, chunks[0])
        return spectra if result is None else result
    whole: Tensor | None = None
    for chunk in chunks:
        result = run(spectra[chunk], chunk)
        if result is not None:
            if whole is None:
                fits = result.shape[1:] == spectra.shape[1:]
                whole = spectra if fits else spectra.new_empty(len(spectra), *result.shape[1:])
            whole[chunk] = result
    return spectra if whole is None else whole


def _parts(
    signal: Tensor, kernels: KernelSpectra | BasisSpectra, axes: tuple[Axis, ...], *, channels: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Slices of a signal's batch and channels, so large that a processor's cache holds the transforms of each."""
    batch, channels = signal.shape[0], signal.shape[1] if channels is None else channels
    numbers = math.prod([axis.blocks * axis.points for axis in axes])
    size = PART * _patience(signal.device)
    whole = kernels.groups > 1 and not kernels.is_depthwise
    some_channels = channels if whole else min(channels, max(2, size // numbers))
    some_examples = max(1, size // (numbers * channels)) if some_channels == channels else 1
    for channel in range(0, channels, some_channels):
        for example in range(0, batch, some_examples):
            yield slice(example, example + some_examples), slice(channel, channel + some_channels)


def _spectra(
    signal: Tensor,
    cut_or_spread: Callable[[Tensor, tuple[Axis, ...]], Tensor],
    kernels: KernelSpectra | BasisSpectra,
    axes: tuple[Axis, ...],
    *,
    conj: bool = False,
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
    groups = kernels.groups
    parts = list(_parts(signal, kernels, axes))
    spectra: Tensor | None = None
    for examples, some in parts:
        part = transform(cut_or_spread(signal[examples, some], axes), len(axes)).flatten(2, -2)  # (batch, channels, blocks, frequencies)
        part = (part.conj() if conj else part).unflatten(1, (groups, -1)).permute(4, 1, 0, 3, 2)
        if len(parts) == 1:
            return laid_out(part)
        if spectra is None:
            spectra = part.new_empty(part.shape[0], groups, batch, part.shape[3], channels // groups)
        spectra[:, :, examples, :, some if groups == 1 else slice(None)] = part
    assert spectra is not None
    return spectra


def _signals(spectra: Tensor, part: tuple[slice, slice], axes: tuple[Axis, ...]) -> Tensor:
    """The reverse of `_spectra` for one of `_parts`: (batch, channels, *blocks, *points)."""
    groups = spectra.shape[1]
    some = spectra[:, :, part[0], :, part[1] if groups == 1 else slice(None)].permute(2, 1, 4, 3, 0).flatten(1, 2)
    if _patience(some.device) == 1:  # a CPU's transform would copy it more slowly, a GPU's has to copy it anyway
        some = laid_out(some)
    return inverse(some.unflatten(2, [axis.blocks for axis in axes]), axes)


def _chunks(spectra: Tensor, kernels: KernelSpectra | BasisSpectra) -> Iterator[slice]:
    """Slices of the frequencies, each as many as fit the working set."""
    frequencies, groups, batch, blocks, _ = spectra.shape
    out, in_per_group = kernels.out_channels, kernels.in_per_group
    numbers = 2 * out * in_per_group + 2 * batch * blocks * (in_per_group * groups + out)
    size = max(16, WORKING_SET * _patience(spectra.device) // numbers)
    for start in range(0, frequencies, size):
        yield slice(start, min(start + size, frequencies))


def _patience(device: torch.device) -> int:
    """How much more than on a CPU is done at once; who counts operators on a CPU as another device runs them puts BEYOND_CPU here."""
    return 1 if device.type == "cpu" else BEYOND_CPU


def _rows(spectra: Tensor) -> Tensor:
    """(frequencies, groups, batch, blocks, channels) -> (frequencies * groups, batch * blocks, channels)."""
    return spectra.flatten(2, 3).flatten(0, 1)


def _products(spectra: Tensor, k: Tensor) -> Tensor:
    """Rows times k for each frequency and group."""
    return torch.bmm(_rows(spectra), k.flatten(0, 1)).view(*spectra.shape[:-1], k.shape[-1])


def _zeros(tensor: Tensor, needed: bool) -> Tensor:
    """The gradient where there is no input."""
    return tensor.new_zeros(tensor.shape if needed else 0)


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
