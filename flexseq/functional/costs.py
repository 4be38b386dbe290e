"""What a convolution costs, estimated from shapes alone: by this a method is chosen, and how to cut a signal.

Times of a training step (forward and backward), in picoseconds, on 2 CPU cores with AVX2. Fitted by least squares of the
relative error to 178 shapes of layers in one and two dimensions, kernels of 3 taps to the whole signal, batches of 1 to 64; half of the
estimates lie within 20 % of the measured time. The same rule serves inference and other devices, where ratios differ less than times.
"""

import math
from collections.abc import Sequence

TRANSFORM = 138
"""For each of the n log2(n) steps of a transform of n points."""
MOVE = 3140
"""For each number that is transformed: it is moved from layout to layout."""
MOVE_MORE = 2780
"""The same, on top, for more than one axis."""
CONTRACT = 172
"""For each product of two channels at one point."""
MIX = 146
"""For each function's share in each kernel, at one point."""
OPERATOR = 850_000_000
"""For a convolution through transforms, however small."""

DIRECT = {1: 71, 2: 35, 3: 35}
"""For each multiplication of a direct convolution, over so many axes."""
DIRECT_MOVE = {1: 0, 2: 2180, 3: 2180}
"""For each number of its input and output."""
DIRECT_MIX = 190
"""For each function's share in each kernel, at one tap."""
DIRECT_OPERATOR = 250_000_000
"""For a direct convolution, however small."""


def direct_cost(x_shape: Sequence[int], kernel_shape: Sequence[int], functions: int | None) -> int:
    """Of a direct convolution.

    Args:
        x_shape: (batch, in_channels, *grid).
        kernel_shape: (out_channels, in_channels / groups, *taps).
        functions: how many the kernels are mixes of; None where they are given as they are.
    """
    batch, in_channels, *grid = x_shape
    out_channels, in_per_group, *taps = kernel_shape
    ndim, samples = len(grid), batch * math.prod(grid)
    kernel = out_channels * in_per_group * math.prod(taps)
    products = DIRECT[ndim] * samples * kernel
    return products + DIRECT_MOVE[ndim] * samples * (in_channels + out_channels) + DIRECT_MIX * kernel * (functions or 0) + DIRECT_OPERATOR


def transforms_cost(
    x_shape: Sequence[int], kernel_shape: Sequence[int], blocks: int, points: int, log_points: float, functions: int | None
) -> float:
    """Of a convolution through transforms.

    Args:
        x_shape, kernel_shape, functions: as in `direct_cost`.
        blocks: into which each signal is cut.
        points: of a transform.
        log_points: their logarithm to base 2.
    """
    batch, in_channels, *grid = x_shape
    out_channels, in_per_group = kernel_shape[:2]
    kernels = out_channels * in_per_group
    each = TRANSFORM * points * log_points + (MOVE + (MOVE_MORE if len(grid) > 1 else 0)) * points
    made = kernels * each if functions is None else MIX * kernels * points * functions
    return batch * blocks * ((in_channels + out_channels) * each + CONTRACT * kernels * points) + made + OPERATOR
