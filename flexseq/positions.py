"""Where a kernel's taps lie.

A kernel of k taps lies on linspace(-1, 1, k) along each axis, whatever k is; axes are in 'ij' order (axis 0 = rows).
The last tap of a causal kernel, at +1, is the present sample; the middle of a centred one, at 0, is the sample itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Keep = Sequence[tuple[int, int]]
"""The taps that are kept, as one (start, stop) for each axis."""


def tap_positions(
    kernel_size: Sequence[int],
    *,
    causal: bool = False,
    keep: Keep | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of a kernel's taps, each correctly rounded.

    Args:
        kernel_size: taps along each axis, before cropping.
        causal: a kernel of one tap lies at +1 where causal, else at 0; longer ones do not differ.
        keep: the taps wanted, a (start, stop) for each axis; all by default.

    Returns:
        (ndim, *taps), in [-1, 1].

    Example:
        >>> tap_positions((5,), keep=[(2, 5)])
        tensor([[0.0000, 0.5000, 1.0000]])
    """
    if keep is None:
        keep = [(0, size) for size in kernel_size]
    axes = []
    for size, (start, stop) in zip(kernel_size, keep, strict=True):
        index = torch.arange(start, stop, dtype=dtype, device=device)
        last = size - 1
        # (2 i - last) / last has one rounding where -1 + i * step would have two.
        axes.append((2 * index - last) / last if last else index + float(causal))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def kept_taps(
    kernel_size: Sequence[int],
    mean: Sequence[float],
    sigma: Sequence[float],
    *,
    threshold: float,
    causal: bool,
) -> list[tuple[int, int]]:
    """Taps at which a Gaussian mask is at least `threshold`, as FlexConv crops its kernels.

    The mask falls to the threshold at mean +- sigma sqrt(-2 ln threshold). A causal kernel keeps the taps above the lower
    cut up to the present, and all of them once |cut| >= 1. A centred one keeps, on each axis, the taps with |position| below the
    larger of the two absolute cuts, and so stays symmetric. At least the present tap, or the middle, is always kept; all are where
    the mask is NaN.

    Args:
        kernel_size: taps along each axis.
        mean, sigma: the mask's, for each axis, in units of position.
        threshold: in (0, 1); 0 keeps everything.

    Returns:
        (start, stop) for each axis.

    Example:
        >>> kept_taps((101,), [1.0], [0.075], threshold=0.1, causal=True)
        [(92, 101)]
        >>> kept_taps((33, 33), [0.0, 0.1], [0.075, 0.2], threshold=0.1, causal=False)
        [(14, 19), (8, 25)]
    """
    keep = []
    for size, centre, width in zip(kernel_size, mean, sigma, strict=True):
        last = size - 1
        reach = abs(width) * math.sqrt(-2 * math.log(threshold)) if threshold else math.inf
        if causal:
            cut = centre - reach
            start = math.floor((cut + 1) * last / 2) + 1 if abs(cut) < 1 else 0
            keep.append((min(start, last), size))
        else:
            cut = max(abs(centre - reach), abs(centre + reach))
            start = math.floor((1 - cut) * last / 2) + 1 if cut <= 1 else 0
            start = min(start, last // 2)
            keep.append((start, size - start))
    return keep
