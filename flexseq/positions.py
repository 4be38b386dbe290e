"""Where a kernel's taps lie, and a spectrum's bins.

A kernel of k taps lies on linspace(-1, 1, k) along each axis, whatever k is; axes are in 'ij' order (axis 0 = rows).
The last tap of a causal kernel, at +1, is the present sample; the middle of a centred one, at 0, is the sample itself (of an even one, the
tap before the middle). At another resolution, where inputs are sampled `ratio` times as densely as in training, taps lie `ratio` times as
densely round the present one, as far as they lay before.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Keep = Sequence[tuple[int, int]]
"""The taps that are kept, as one (start, stop) for each axis."""


def taps_around(size: int, *, causal: bool, ratio: float = 1.0) -> tuple[int, int]:
    """How many taps lie before and after the present one, along an axis of `size` taps at ratio 1.

    Example:
        >>> taps_around(9, causal=False), taps_around(9, causal=False, ratio=2.0), taps_around(9, causal=True, ratio=1.5)
        ((4, 4), (8, 8), (12, 0))
    """
    before = size - 1 if causal else (size - 1) // 2
    slack = 1e-9  # a product that is a whole number but for rounding
    return math.floor(before * ratio + slack), math.floor((size - 1 - before) * ratio + slack)


def tap_positions(
    kernel_size: Sequence[int],
    *,
    causal: bool = False,
    keep: Keep | None = None,
    ratio: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of a kernel's taps, each correctly rounded at ratio 1.

    Args:
        kernel_size: taps along each axis at ratio 1, before cropping.
        causal: a kernel of one tap lies at +1 where causal, else at 0.
        keep: the taps wanted, a (start, stop) for each axis; all by default.
        ratio: how many times as densely as in training inputs are sampled.

    Returns:
        (ndim, *taps), in [-1, 1].

    Example:
        >>> tap_positions((5,), keep=[(2, 5)])
        tensor([[0.0000, 0.5000, 1.0000]])
    """
    if keep is None:
        keep = [(0, sum(taps_around(size, causal=causal, ratio=ratio)) + 1) for size in kernel_size]
    axes = []
    for size, (start, stop) in zip(kernel_size, keep, strict=True):
        before, _ = taps_around(size, causal=causal, ratio=ratio)
        from_present = torch.arange(start - before, stop - before, dtype=dtype, device=device) / ratio  # in samples of training
        last = size - 1
        # (2 i - last) / last has one rounding where -1 + i * step would have two.
        index = from_present + taps_around(size, causal=causal)[0]
        axes.append((2 * index - last) / last if last else index + float(causal))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def bin_frequencies(
    grid: Sequence[int],
    kernel_size: Sequence[int],
    *,
    ratio: float = 1.0,
    as_published: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The frequency of each bin of a Fourier transform, in cycles per kernel: (ndim, *grid), in torch.fft's order.

    A kernel as large as the images that it was trained on has whole numbers there, from -(n // 2) to (n - 1) // 2. On another grid the bins
    lie more or less densely in the same range, since frequencies per pixel stay; at another `ratio` in a wider or narrower one. Those above
    training's Nyquist frequency are left as they are: see `in_band`.

    Args:
        grid: samples along each axis.
        kernel_size: samples along each axis in training.
        ratio: how many times as densely as in training inputs are sampled.
        as_published: for an odd grid half a bin lower, as in NIFF's code.

    Example:
        >>> bin_frequencies((4,), (4,)).tolist(), bin_frequencies((6,), (3,)).tolist()
        ([[0.0, 1.0, -2.0, -1.0]], [[0.0, 0.5, 1.0, -1.5, -1.0, -0.5]])
        >>> bin_frequencies((6,), (3,), ratio=2.0).tolist()
        [[0.0, 1.0, 2.0, -3.0, -2.0, -1.0]]
    """
    axes = []
    for count, size in zip(grid, kernel_size, strict=True):
        index = torch.arange(count, dtype=dtype, device=device)
        bins = torch.where(index < (count + 1) // 2, index, index - count)
        if as_published and count % 2:
            bins = bins - 0.5
        frequencies = bins * (size * ratio) / count
        if size % 2 == 0:  # where both are there, the highest and its opposite are the one that training had
            frequencies = torch.where((frequencies - size / 2).abs() < 1e-4, -frequencies, frequencies)
        axes.append(frequencies)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def in_band(frequencies: Tensor, kernel_size: Sequence[int]) -> Tensor:
    """Which frequencies, (ndim, *bins) in cycles per kernel, training's images can have held: (*bins), of bools."""
    half = torch.tensor([size / 2 for size in kernel_size], dtype=frequencies.dtype, device=frequencies.device)
    return (frequencies.abs() <= half.view(-1, *[1] * (frequencies.ndim - 1)) + 1e-4).all(0)


def unit_coordinates(positions: Tensor, sizes: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """Where places in a flattened array lie along its axes, in [0, 1]: (n, axes).

    Example:
        >>> unit_coordinates(torch.tensor([0, 5]), (2, 3), dtype=torch.float32).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    coordinates = []
    for size in reversed(sizes):
        coordinates.append((positions % size).to(dtype) / max(1, size - 1))
        positions = positions // size
    return torch.stack(coordinates[::-1], 1)


def tap_weights(kernel_size: Sequence[int], *, causal: bool, keep: Keep, ratio: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a tap counts at another resolution, so that the sum over taps stays the same integral: (*taps).

    1 / ratio for each axis, since taps lie more densely. Where the kernel ends in a jump, at the present tap of a causal one and at both
    ends where nothing is cropped, the sum at ratio 1 counts the last tap in full, which is half a sample more than the integral. So that
    it is half a sample of training at any ratio, that tap counts (ratio + 1) / 2 times the others, and more if it lies short of the end.
    An axis of one tap is no integral, and counts 1.
    """
    weights = torch.ones((), dtype=dtype, device=device)
    for size, (start, stop) in zip(kernel_size, keep, strict=True):
        axis = torch.full((stop - start,), 1 / ratio if size > 1 else 1.0, dtype=dtype, device=device)
        if size > 1:
            ends = taps_around(size, causal=causal, ratio=1.0)
            first, last = taps_around(size, causal=causal, ratio=ratio)
            if start == 0:
                axis[0] *= (ratio + 1) / 2 + ends[0] * ratio - first
            if stop == first + last + 1:
                axis[-1] *= (ratio + 1) / 2 + ends[1] * ratio - last
        weights = weights[..., None] * axis
    return weights


def kept_taps(
    kernel_size: Sequence[int],
    mean: Sequence[float],
    sigma: Sequence[float],
    *,
    threshold: float,
    causal: bool,
    ratio: float = 1.0,
) -> list[tuple[int, int]]:
    """Taps at which a Gaussian mask is at least `threshold`, as FlexConv crops its kernels.

    The mask falls to the threshold at mean +- sigma sqrt(-2 ln threshold). A causal kernel keeps the taps above the lower
    cut up to the present, and all of them once |cut| >= 1. A centred one keeps, on each axis, the taps with |position| below the
    larger of the two absolute cuts, and so stays symmetric. At least the present tap, or the middle, is always kept; all are where
    the mask is NaN.

    Args:
        kernel_size: taps along each axis at ratio 1.
        mean, sigma: the mask's, for each axis, in units of position.
        threshold: in (0, 1); 0 keeps everything.
        ratio: how many times as densely as in training inputs are sampled.

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
        before, after = taps_around(size, causal=causal, ratio=ratio)
        count = before + after + 1
        if size == 1:
            keep.append((0, 1))
            continue
        per_unit = (size - 1) * ratio / 2  # taps
        first = (2 * ((size - 1 if causal else (size - 1) // 2) - before / ratio) - (size - 1)) / (size - 1)  # where the taps begin
        reach = abs(width) * math.sqrt(-2 * math.log(threshold)) if threshold else math.inf
        if causal:
            cut = centre - reach
            start = math.floor((cut - first) * per_unit) + 1 if abs(cut) < 1 else 0
            keep.append((min(max(start, 0), before), count))
        else:
            cut = max(abs(centre - reach), abs(centre + reach))
            dropped = [0, 0]
            if cut <= 1:
                last = first + (count - 1) / per_unit
                dropped = [max(0, math.floor((edge - cut) * per_unit) + 1) for edge in (-first, last)]
            opposite = 0 if size % 2 else math.ceil(ratio - 1e-9)  # the present tap of an even kernel has one opposite the middle
            keep.append((min(dropped[0], before), count - min(dropped[1], max(after - opposite, 0))))
    return keep


def taps_inside(kernel_size: Sequence[int], mean: Tensor, sigma: Tensor, *, threshold: float, causal: bool, ratio: float = 1.0) -> Tensor:
    """`kept_taps` for a mask whose numbers cannot be read: which of all taps it keeps, (*taps), of bools.

    Args:
        kernel_size, threshold, causal, ratio: as for `kept_taps`.
        mean, sigma: (ndim,), in float64.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> taps_inside((7,), 1 * one, 0.3 * one, threshold=0.1, causal=True).tolist()
        [False, False, False, False, False, True, True]
    """
    inside = torch.ones((), dtype=torch.bool, device=mean.device)
    for axis, size in enumerate(kernel_size):
        before, after = taps_around(size, causal=causal, ratio=ratio)
        count = before + after + 1
        index = torch.arange(count, dtype=torch.float64, device=mean.device)
        if size == 1 or not threshold:
            inside = inside[..., None] & (index >= 0)
            continue
        per_unit = (size - 1) * ratio / 2
        first = (2 * ((size - 1 if causal else (size - 1) // 2) - before / ratio) - (size - 1)) / (size - 1)
        reach = sigma[axis].abs() * math.sqrt(-2 * math.log(threshold))
        if causal:
            cut = mean[axis] - reach
            start = torch.where(cut.abs() < 1, ((cut - first) * per_unit).floor() + 1, 0.0).clamp(0, before)
            kept = index >= start
        else:
            cut = torch.maximum((mean[axis] - reach).abs(), (mean[axis] + reach).abs())
            last = first + (count - 1) / per_unit
            dropped = [torch.where(cut <= 1, (((edge - cut) * per_unit).floor() + 1).clamp_min(0), 0.0) for edge in (-first, last)]
            opposite = 0 if size % 2 else math.ceil(ratio - 1e-9)
            kept = (index >= dropped[0].clamp_max(before)) & (index < count - dropped[1].clamp_max(max(after - opposite, 0)))
        inside = inside[..., None] & kept
    return inside


def rounded_up(keep: Keep, counts: Sequence[int], *, causal: bool) -> Keep:
    """A crop with so many taps more that there are few sizes, so that what depends on shapes repeats while masks grow.

    Along each axis the number of taps, of centred kernels that on either side, is the next of 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20
    and so on.

    Args:
        keep: the taps that a mask leaves.
        counts: of all taps along each axis.
        causal: the last tap is the present, and stays; else the crop grows on both sides.

    Example:
        >>> rounded_up([(92, 101)], (101,), causal=True), rounded_up([(14, 19), (8, 25)], (33, 33), causal=False)
        ([(91, 101)], [(14, 19), (8, 25)])
    """
    rounded = []
    for (start, stop), count in zip(keep, counts, strict=True):
        if causal:
            rounded.append((max(0, stop - _step_up(stop - start)), stop))
            continue
        more = _step_up((stop - start) // 2) - (stop - start) // 2
        rounded.append((max(0, start - more), min(count, stop + more)))
    return rounded


def _step_up(number: int) -> int:
    """The next number with at most three binary digits before its zeros."""
    step = 1 << max(0, number.bit_length() - 3)
    return -(-number // step) * step
