"""Convolution through FFTs, as an operator of its own.

It is registered with torch as one opaque operator: torch.compile then meets no FFT length that changes with every crop, and the backward
pass keeps the input and the kernel alone, transforming them again instead of holding their spectra.
"""

import torch
from einops import rearrange
from torch import Tensor

from flexseq.functional.fft_length import fft_length


@torch.library.custom_op("flexseq::fft_conv", mutates_args=())
def fft_conv(x: Tensor, weight: Tensor, before: list[int], after: list[int], groups: int) -> Tensor:
    """Cross-correlate: y[t] = sum_j weight[j] x[t - before + j], with zeros outside x.

    Args:
        x: (batch, in_channels, *grid), float32 or float64.
        weight: (out_channels, in_channels / groups, *taps) with before + 1 + after taps along each axis, both less than the grid.
        before, after: taps before and after the present one, for each axis.

    Returns:
        (batch, out_channels, *grid).
    """
    size = _transform_size(x, before, after)
    signal = rearrange(_spectrum(x, size), "b (g i) f -> b g i f", g=groups)
    kernel = rearrange(_spectrum(_flipped(weight), size), "(g o) i f -> g o i f", g=groups)
    if kernel.shape[1:3] == (1, 1):  # depthwise: no sum over channels
        spectrum = signal * kernel[:, 0]
    else:
        spectrum = torch.einsum("bgif,goif->bgof", signal, kernel)
    return _signal(rearrange(spectrum, "b g o f -> b (g o) f"), size, after, x.shape[2:])


@fft_conv.register_fake
def _(x, weight, before, after, groups):
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


@torch.library.custom_op("flexseq::fft_conv_backward", mutates_args=())
def fft_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, before: list[int], after: list[int], groups: int, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `fft_conv` with respect to x and weight; an empty tensor for one that is not needed."""
    size = _transform_size(x, before, after)
    start = [0] * len(before)
    out = rearrange(_spectrum(_delayed(grad, after), size), "b (g o) f -> b g o f", g=groups)
    depthwise = weight.shape[0] == groups and weight.shape[1] == 1
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if needs_x:
        kernel = rearrange(_spectrum(_flipped(weight), size).conj(), "(g o) i f -> g o i f", g=groups)
        spectrum = out * kernel[:, 0] if depthwise else torch.einsum("bgof,goif->bgif", out, kernel)
        grad_x = _signal(rearrange(spectrum, "b g i f -> b (g i) f"), size, start, x.shape[2:])
    if needs_weight:
        signal = rearrange(_spectrum(x, size).conj(), "b (g i) f -> b g i f", g=groups)
        spectrum = (out * signal).sum(0).unsqueeze(1) if depthwise else torch.einsum("bgof,bgif->goif", out, signal)
        grad_weight = _flipped(_signal(rearrange(spectrum, "g o i f -> (g o) i f"), size, start, weight.shape[2:]))
    return grad_x, grad_weight


@fft_conv_backward.register_fake
def _(grad, x, weight, before, after, groups, needs_x, needs_weight):
    return x.new_empty(x.shape if needs_x else 0), weight.new_empty(weight.shape if needs_weight else 0)


def _setup_context(ctx, inputs, output):
    x, weight, ctx.before, ctx.after, ctx.groups = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    grad_x, grad_weight = fft_conv_backward(grad, x, weight, ctx.before, ctx.after, ctx.groups, needs_x, needs_weight)
    return grad_x if needs_x else None, grad_weight if needs_weight else None, None, None, None


fft_conv.register_autograd(_backward, setup_context=_setup_context)


def _transform_size(x: Tensor, before: list[int], after: list[int]) -> list[int]:
    # What wraps round the end of the transform may fall where the output is not: grid + max(before, after) points are enough.
    return [fft_length(n + max(b, a)) for n, b, a in zip(x.shape[2:], before, after, strict=True)]


def _flipped(weight: Tensor) -> Tensor:
    return weight.flip(list(range(2, weight.ndim)))


def _delayed(signal: Tensor, by: list[int]) -> Tensor:
    """Put `by` zeros before the signal, along each grid axis."""
    if not any(by):
        return signal
    return torch.nn.functional.pad(signal, [amount for delay in reversed(by) for amount in (delay, 0)])


def _spectrum(signal: Tensor, size: list[int]) -> Tensor:
    """(a, b, *grid) -> (a, b, frequencies), of the signal with zeros behind it up to `size`."""
    return torch.fft.rfftn(signal, s=size, dim=list(range(2, signal.ndim))).flatten(2)


def _signal(spectrum: Tensor, size: list[int], start: list[int], shape: torch.Size) -> Tensor:
    """(a, b, frequencies) -> (a, b, *shape): the part of the inverse transform that begins at `start`."""
    half = [*size[:-1], size[-1] // 2 + 1]
    full = torch.fft.irfftn(spectrum.unflatten(-1, half), s=size, dim=list(range(2, 2 + len(size))))
    window = (slice(None), slice(None), *[slice(begin, begin + n) for begin, n in zip(start, shape, strict=True)])
    return full[window].contiguous()
