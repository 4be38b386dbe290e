"""What a convolution costs, estimated from shapes alone: by this a method is chosen, and how to cut a signal.

Times of a training step (forward and backward). Each device type has constants of its own, in measured_costs.py, which
benchmarks/fit_costs.py measures and writes. The same rule serves inference, where ratios differ less than times.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from flexseq.functional.measured_costs import MEASURED


class Costs(NamedTuple):
    """A device's constants, in picoseconds.

    Args:
        transform: for each of the n log2(n) steps of a transform of n points.
        move: for each number that is transformed: it is moved from layout to layout.
        move_more: the same, on top, for more than one axis.
        elementwise: for each number that is transformed, in a depthwise convolution, in the place of `move`.
        join: for each number of input and output, where the signal is cut into more than one block.
        contract: for each product of two channels at one point.
        mix: for each function's share in each kernel, at one point.
        operator: for a convolution through transforms, however small.
        direct: for each multiplication of a direct convolution, over so many axes.
        direct_depthwise: the same of a depthwise one.
        direct_move: for each number of its input and output, over so many axes.
        direct_mix: for each function's share in each kernel, at one tap.
        direct_operator: for a direct convolution, however small.
    """

    transform: float
    move: float
    move_more: float
    elementwise: float
    join: float
    contract: float
    mix: float
    operator: float
    direct: tuple[float, float, float]
    direct_depthwise: tuple[float, float, float]
    direct_move: tuple[float, float, float]
    direct_mix: float
    direct_operator: float


COSTS: dict[str, Costs] = {device: Costs(**values) for device, values in MEASURED.items()}


def costs_of(device: torch.device) -> Costs:
    """The constants for a device; those of a GPU for any that is no CPU."""
    return COSTS["cpu" if device.type == "cpu" else "cuda"]


def direct_cost(costs: Costs, x_shape: Sequence[int], kernel_shape: Sequence[int], functions: int | None) -> float:
    """Of a direct convolution.

    Args:
        costs: the device's.
        x_shape: (batch, in_channels, *grid).
        kernel_shape: (out_channels, in_channels / groups, *taps).
        functions: how many the kernels are linear combinations of; None where they are given as they are.
    """
    products, moved, mixed = direct_counts(x_shape, kernel_shape, functions)
    axes = len(x_shape) - 3
    each = costs.direct_depthwise if is_depthwise(x_shape, kernel_shape) else costs.direct
    return each[axes] * products + costs.direct_move[axes] * moved + costs.direct_mix * mixed + costs.direct_operator


def direct_counts(x_shape: Sequence[int], kernel_shape: Sequence[int], functions: int | None) -> tuple[int, int, int]:
    """How much there is of what `direct`, `direct_move` and `direct_mix` are for."""
    samples, kernel = x_shape[0] * _product(x_shape[2:]), _product(kernel_shape)
    return samples * kernel, samples * (x_shape[1] + kernel_shape[0]), kernel * (functions or 0)


def transforms_cost(
    costs: Costs, x_shape: Sequence[int], kernel_shape: Sequence[int], blocks: int, points: int, log_points: float, functions: int | None
) -> float:
    """Of a convolution through transforms.

    Args:
        costs, x_shape, kernel_shape, functions: as in `direct_cost`.
        blocks: into which each signal is cut.
        points: of a transform.
        log_points: their logarithm to base 2.
    """
    steps, moved, elementwise, joined, contracted, mixed = transforms_counts(x_shape, kernel_shape, blocks, points, log_points, functions)
    move = costs.move + (costs.move_more if len(x_shape) > 3 else 0)
    return (
        costs.transform * steps
        + move * moved
        + costs.elementwise * elementwise
        + costs.join * joined
        + costs.contract * contracted
        + costs.mix * mixed
        + costs.operator
    )


def transforms_counts(
    x_shape: Sequence[int], kernel_shape: Sequence[int], blocks: int, points: int, log_points: float, functions: int | None
) -> tuple[float, int, int, int, int, int]:
    """How much there is of what `transform`, `move`, `elementwise`, `join`, `contract` and `mix` are for."""
    batch, in_channels, *grid = x_shape
    out_channels, in_per_group = kernel_shape[:2]
    kernels, signals = out_channels * in_per_group, batch * blocks * (in_channels + out_channels)
    numbers = points * (signals + (kernels if functions is None else 0))
    joined = batch * (in_channels + out_channels) * _product(grid) if blocks > 1 else 0
    mixed = kernels * points * (functions or 0)
    if is_depthwise(x_shape, kernel_shape):
        return numbers * log_points, 0, numbers, joined, 0, mixed
    return numbers * log_points, numbers, 0, joined, batch * blocks * kernels * points, mixed


def is_depthwise(x_shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
    """Whether each output channel sees one input channel of its own."""
    return kernel_shape[1] == 1 and x_shape[1] == kernel_shape[0]


def _product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:  # math.prod would fix a symbol of torch.compile
        result = result * number
    return result
