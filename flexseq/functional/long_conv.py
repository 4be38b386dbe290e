"""Convolution with kernels of any length."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flexseq.checks import check_integers, check_real, is_integer
from flexseq.errors import InputError, unknown_name
from flexseq.functional.costs import costs_of, direct_cost, transforms_cost
from flexseq.functional.dtypes import at_least_float32
from flexseq.functional.programs import is_exporting
from flexseq.functional.spectral_conv import BasisConv, KernelConv, kept_basis_conv, may_be_kept, plain_conv

METHODS = ("auto", "direct", "fft", "overlap")


def long_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    groups: int = 1,
    method: str = "auto",
) -> Tensor:
    """Convolve with kernels of any length: stride 1, zero padding, an output as large as the input.

    A cross-correlation, as in torch.nn. With k taps along an axis,
        causal:    y[t] = sum_j w[j] x[t - (k - 1) + j]           (along every axis)
        centred:   y[t] = sum_j w[j] x[t - floor((k - 1) / 2) + j]  (torch's padding="same", even kernels too)

    Args:
        x: (batch, in_channels, *grid), one to three grid axes.
        weight: (out_channels, in_channels / groups, *taps); any number of taps, also more than the input has.
        bias: (out_channels,).
        causal: whether an output sees only the present and the past.
        groups: as in torch.nn; both channel counts are multiples of it.
        method: "direct"; "fft", one transform of the whole signal; "overlap", transforms of overlapping blocks a few kernels long; or
            "auto", which chooses by shapes alone. Only "direct" can be differentiated in forward mode, or by torch.func; twice all can,
            through FFTs in more memory.

    Returns:
        (batch, out_channels, *grid). Under autocast in its dtype, with FFTs in float32.

    Raises:
        InputError: shapes that do not fit together; an unknown method.

    Warning:
        Through FFTs a causal output depends on the future by rounding: in float32 by less than 1e-6 of the largest input times the norm of
        an output channel's kernel, where that is above 1. The direct method is exact.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> long_conv(x, torch.tensor([[[10.0, 1.0]]]), causal=True)
        tensor([[[ 1., 12., 23.]]])
    """
    check_real("long_conv", x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    _check(x, weight.shape, bias, groups, method)
    (weight,), before = _reachable([weight], x, causal)
    if method == "auto":
        method = "direct" if is_exporting() else choose_method(x.device, x.shape, weight.shape, before, None)
    if method == "direct":
        return _direct(x, weight, bias, before, groups)
    return _through_ffts(KernelConv.apply, x, [weight], bias, before, groups, method)


def basis_long_conv(
    x: Tensor,
    basis: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    causal: bool = False,
    groups: int = 1,
    method: str = "auto",
    before: Sequence[int] | None = None,
    last: int | None = None,
    kept: dict[str, Any] | None = None,
) -> Tensor:
    """`long_conv` with kernels that are mixes of a few functions, which need not be formed.

    Args:
        basis: (H, *taps), the functions.
        weight: (out_channels, in_channels / groups, H); the kernel is weight @ basis.
        x, bias, causal, groups, method: as in `long_conv`.
        before: taps before the present one, for each axis; by default as `causal` says.
        last: compute only the last so many outputs of a causal convolution over one axis, from the samples that they see.
        kept: a dict, empty at first, that goes with this basis and weight: what depends on them alone is left there and found again.
            For calls without gradients.

    Returns:
        (batch, out_channels, *grid), or (batch, out_channels, last).

    Raises:
        InputError: shapes that do not fit together; an unknown method.

    Example:
        >>> import torch
        >>> x, basis, weight = torch.randn(2, 3, 50), torch.randn(4, 9), torch.randn(5, 3, 4)
        >>> y = basis_long_conv(x, basis, weight)
        >>> torch.allclose(y, long_conv(x, weight @ basis), atol=1e-4)
        True
    """
    check_real("basis_long_conv", x=x, basis=basis, weight=weight, **({} if bias is None else {"bias": bias}))
    _check(x, (*weight.shape[:2], *basis.shape[1:]), bias, groups, method)
    if weight.shape[2:] != basis.shape[:1] or not len(basis):
        raise InputError(
            f"basis_long_conv expected weights of one or more functions, got shapes {tuple(weight.shape)}, {tuple(basis.shape)}"
        )
    if last is not None and (not causal or x.ndim != 3 or not is_integer(last) or last < 1):
        raise InputError(
            f"basis_long_conv expected last of at least 1, for causal=True and one axis, got {last}, {causal} and {x.ndim - 2}"
        )
    (basis,), before = _reachable([basis], x, causal, before)
    outputs = x.shape[-1]
    if last is not None:
        outputs = min(last, outputs)
        x = x[..., -(outputs + before[0]) :]
        if outputs == 1:
            return _single_output(x, basis, weight, bias, groups)
    if method == "auto" and is_exporting():
        method = "direct"  # a program for other machines, of any batch: rules on shapes would fix them
    elif method == "auto":
        method = choose_method(x.device, (*x.shape[:-1], outputs), (*weight.shape[:2], *basis.shape[1:]), before, basis.shape[0])
    if method == "direct":
        return _direct(x, _kernel(basis, weight, x, kept), bias, before, groups, context=x.shape[-1] - outputs)
    if kept is not None:
        operator = functools.partial(kept_basis_conv, context=x.shape[-1] - outputs, kept=kept)
        return _through_ffts(operator, x, [basis, weight], bias, before, groups, method)
    y = _through_ffts(BasisConv.apply, x, [basis, weight], bias, before, groups, method)
    return y if last is None else y[..., -outputs:]


def _kernel(basis: Tensor, weight: Tensor, x: Tensor, kept: dict[str, Any] | None) -> Tensor:
    """weight @ basis in the type of x; kept where there is a place and it is not too large."""
    key = basis.shape, x.dtype
    if kept is not None and "kernel" in kept and kept["kernel"][0] == key:
        return kept["kernel"][1]
    with torch.autocast(x.device.type, enabled=False):  # half precision may convolve with the kernel, but not make it
        kernel = torch.tensordot(weight, basis, 1).to(x.dtype)
    if kept is not None and may_be_kept(kernel.numel(), x, len(weight)):
        kept["kernel"] = key, kernel
    return kernel


def choose_method(
    device: torch.device, x_shape: Sequence[int], kernel_shape: Sequence[int], before: Sequence[int], functions: int | None
) -> str:
    """The method that "auto" takes for these shapes on a device: "direct", or "auto" among the two through FFTs.

    By the estimates of `flexseq.functional.costs`, as if blocks of four kernels cost as much as one of the whole signal for what goes with
    the signal.

    Args:
        x_shape: (batch, in_channels, *grid).
        kernel_shape: (out_channels, in_channels / groups, *taps).
        before: taps before the present one, for each axis.
        functions: how many the kernels are mixes of; None where they are given as they are.
    """
    costs = costs_of(device)
    _, _, *grid = x_shape
    _, _, *taps = kernel_shape
    signal, block = 1, 1
    for size, extent, first in zip(grid, taps, before, strict=True):
        reach = size + max(first, extent - 1 - first)
        signal *= reach
        block *= min(reach, 4 * extent)
    through_signal = transforms_cost(costs, x_shape, kernel_shape, 1, signal, _log2(block), 0)
    kernels = transforms_cost(costs, (0, *x_shape[1:]), kernel_shape, 1, block, _log2(block), functions) - costs.operator
    return "direct" if direct_cost(costs, x_shape, kernel_shape, functions) <= through_signal + kernels else "auto"


def _log2(n: int) -> int:
    # Rounded up, by comparisons alone: under torch.compile n may be a symbol, and a comparison holds for a whole range of it.
    power = 0
    while n > 2**power:
        power += 1
    return power


def _reachable(kernels: list[Tensor], x: Tensor, causal: bool, given: Sequence[int] | None = None) -> tuple[list[Tensor], list[int]]:
    """Drop taps that lie further away than the input is long; say how many are left before the present one, for each axis."""
    ndim = x.ndim - 2
    before = []
    for i in range(ndim):
        taps, size = kernels[0].shape[i - ndim], x.shape[2 + i]
        first = given[i] if given is not None else taps - 1 if causal else (taps - 1) // 2
        start, stop = max(0, first - (size - 1)), min(taps, first + size)
        kernels = [kernel.narrow(i - ndim, start, stop - start) for kernel in kernels]
        before.append(first - start)
    return kernels, before


NARROW = 16
"""Input channels per group below which a CPU convolves bfloat16 directly in float32: on CPUs with AMX oneDNN 3.12, of torch 2.13 and
2.14, gives wrong values in bfloat16 for 2 to 14 channels where a kernel's last axis has 8, 16, 32 or more taps (a multiple of these)."""

SLOW_PADDING = {1: 3, 2: 7, 3: 7}
"""By the number of axes: from where torch's CPU convolutions are slower padding themselves than on a padded copy. Measured
over one and two axes on one thread: depthwise, 31 x 31 taps 23 times, 93 taps 18 times; a training step 1.4 to 2 times."""


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None, before: list[int], groups: int, *, context: int = 0) -> Tensor:
    """torch's convolution; the first `context` samples of the last axis stand where zeros would."""
    dtype = _out_dtype(x)
    if x.device.type == "cpu" and dtype == torch.bfloat16 and weight.shape[1] < NARROW:
        with torch.autocast("cpu", enabled=False):
            bias = bias if bias is None else bias.float()
            return _direct(x.float(), weight.float(), bias, before, groups, context=context).to(dtype)
    conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
    after = [taps - 1 - first for taps, first in zip(weight.shape[2:], before, strict=True)]
    pads_fast = x.device.type != "cpu" or max(after) < SLOW_PADDING[x.ndim - 2]
    if after == before and not context and pads_fast:
        return conv(x, weight, bias, padding=after, groups=groups)  # without a padded copy
    padding = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    padding[0] -= context
    return conv(F.pad(x, padding), weight, bias, groups=groups)


def _single_output(x: Tensor, basis: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """The last output of a causal convolution over one axis: samples times functions, then times their weights."""
    dtype = at_least_float32(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        features = x.to(dtype) @ basis[:, -x.shape[-1] :].to(dtype).T  # (batch, in_channels, H)
        features = rearrange(features, "b (g i) h -> b g (i h)", g=groups)
        y = torch.einsum("bgi,goi->bgo", features, rearrange(weight.to(dtype), "(g o) i h -> g o (i h)", g=groups)).flatten(1)
        if bias is not None:
            y = y + bias.to(dtype)
    return y[..., None].to(_out_dtype(x))


def _out_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # which autocast leaves alone
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _through_ffts(operator, x: Tensor, kernel: list[Tensor], bias: Tensor | None, before: list[int], groups: int, method: str) -> Tensor:
    dtype = at_least_float32(x.dtype)  # FFTs know no half precision
    if bias is not None:
        bias = bias.to(dtype)
    if torch.jit.is_tracing():  # whose programs hold torch's operators alone
        parts = [part.to(dtype) for part in kernel]
        y = plain_conv(x.to(dtype), parts[0] if len(parts) == 1 else torch.tensordot(parts[1], parts[0], 1), before, groups)
        return (y if bias is None else y + bias.view(-1, *[1] * (x.ndim - 2))).to(_out_dtype(x))
    return operator(x.to(dtype), *[part.to(dtype) for part in kernel], bias, before, groups, method).to(_out_dtype(x))


def _check(x: Tensor, weight_shape: Sequence[int], bias: Tensor | None, groups: int, method: str) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    check_integers("long_conv", groups=groups)
    x_shape, weight_shape = tuple(x.shape), tuple(weight_shape)
    if x.ndim not in (3, 4, 5) or len(weight_shape) != x.ndim:
        raise InputError(
            "long_conv expected x of shape (batch, channels, *grid) and a weight with as many grid axes, one to three, "
            f"got shapes {x_shape} and {weight_shape}"
        )
    if x_shape[1] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise InputError(
            f"long_conv expected a weight of shape (out_channels, in_channels / groups, *taps) with groups={groups}, "
            f"got {weight_shape} for x of shape {x_shape}"
        )
    if 0 in x_shape[2:] or 0 in weight_shape[2:]:
        raise InputError(f"long_conv expected at least one sample and one tap, got shapes {x_shape} and {weight_shape}")
    if bias is not None and tuple(bias.shape) != weight_shape[:1]:
        raise InputError(f"long_conv expected a bias of shape ({weight_shape[0]},), got {tuple(bias.shape)}")
