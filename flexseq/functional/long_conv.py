"""Convolution with kernels of any length."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flexseq.errors import InputError, unknown_name
from flexseq.functional.fft_conv import fft_conv

METHODS = ("auto", "direct", "fft")


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
        method: "direct", "fft", or "auto", which chooses between the two by shapes alone.

    Returns:
        (batch, out_channels, *grid). Under autocast in its dtype, with FFTs in float32.

    Raises:
        InputError: shapes that do not fit together; an unknown method.

    Warning:
        Through FFTs a causal output depends on the future by rounding: about 1e-7 of the largest input times the kernel's norm in
        float32. The direct method is exact.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> long_conv(x, torch.tensor([[[10.0, 1.0]]]), causal=True)
        tensor([[[ 1., 12., 23.]]])
    """
    _check(x, weight, bias, groups, method)
    # Outputs never reach taps further away than the input is long: drop them.
    before, after, trimmed = [], [], []
    for taps, size in zip(weight.shape[2:], x.shape[2:], strict=True):
        left = taps - 1 if causal else (taps - 1) // 2
        start, stop = max(0, left - (size - 1)), min(taps, left + size)
        before.append(left - start)
        after.append(stop - 1 - left)
        trimmed.append(slice(start, stop))
    index = (slice(None), slice(None), *trimmed)
    weight = weight[index]

    if method == "auto":
        method = choose_method(x.shape, weight.shape, groups)
    if method == "direct":
        padding = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
        conv = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
        return conv(F.pad(x, padding), weight, bias, groups=groups)

    out_dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        out_dtype = torch.get_autocast_dtype(x.device.type)
    work_dtype = torch.promote_types(x.dtype, torch.float32)  # FFTs know no half precision
    with torch.autocast(x.device.type, enabled=False):
        y = fft_conv(x.to(work_dtype), weight.to(work_dtype), before, after, groups)
        if bias is not None:
            y = y + bias.to(work_dtype).view(-1, *[1] * (x.ndim - 2))
    return y.to(out_dtype)


def choose_method(x_shape: Sequence[int], weight_shape: Sequence[int], groups: int) -> str:
    """The method that `long_conv` takes for these shapes: the one with the smaller estimated cost.

    The estimate counts multiplications, weighted as measured on 2 CPU cores (benchmarks/results): a direct one costs 1, a complex one in
    the contraction over channels 2, and a transform of n points costs 6 n log2(n), log2 rounded up.
    """
    batch, in_channels, *grid = x_shape
    out_channels, in_per_group, *taps = weight_shape
    direct = batch * out_channels * in_per_group * math.prod(grid) * math.prod(taps)
    points = math.prod([size + extent - 1 for size, extent in zip(grid, taps, strict=True)])
    transforms = batch * in_channels + batch * out_channels + out_channels * in_per_group
    contraction = batch * out_channels * in_per_group * points
    through_fft = 2 * contraction + 6 * transforms * points * _log2(points)
    return "direct" if direct <= through_fft else "fft"


def _log2(n: int) -> int:
    # Rounded up, by comparisons alone: under torch.compile n may be a symbol, and a comparison holds for a whole range of it.
    power = 0
    while n > 2**power:
        power += 1
    return power


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, method: str) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if x.ndim not in (3, 4, 5) or weight.ndim != x.ndim:
        raise InputError(
            "long_conv expected x of shape (batch, channels, *grid) and a weight with as many grid axes, one to three, "
            f"got shapes {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise InputError(
            f"long_conv expected a weight of shape (out_channels, in_channels / groups, *taps) with groups={groups}, "
            f"got {tuple(weight.shape)} for x of shape {tuple(x.shape)}"
        )
    if 0 in x.shape[2:] or 0 in weight.shape[2:]:
        raise InputError(f"long_conv expected at least one sample and one tap, got shapes {tuple(x.shape)} and {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"long_conv expected a bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}")
