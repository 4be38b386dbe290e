"""Measure convolutions of many shapes, and fit to them the constants by which `method="auto"` chooses.

Writes flexseq/functional/measured_costs.py, for the type of the device that it ran on; the other's constants stay. About three minutes:
`python benchmarks/fit_costs.py`, and on a GPU `python benchmarks/fit_costs.py --device cuda`.
"""

import argparse
import json
import math
import platform
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from timing import timed

from flexseq.functional import spectral_conv
from flexseq.functional.blocks import Axis, possible_cuts
from flexseq.functional.costs import COSTS, Costs, direct_counts, is_depthwise, transforms_counts
from flexseq.functional.kernel_spectra import BasisSpectra
from flexseq.functional.long_conv import basis_long_conv
from flexseq.functional.measured_costs import SOURCES

FUNCTIONS = 33
"""Of which a kernel is a linear combination: MAGNet's 32, and a constant."""
TARGET = Path(__file__).parents[1] / "flexseq" / "functional" / "measured_costs.py"


def shapes(count: int, generator: random.Random, largest: float) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of inputs and kernels, logarithmically spread."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while len(found) < count:
        ndim = generator.choice([1, 1, 2])
        size = round(2 ** generator.uniform(5, 15)) if ndim == 1 else round(2 ** generator.uniform(3, 6))
        taps = max(1, round(size ** generator.uniform(0.2, 1)))
        batch, depthwise = round(2 ** generator.uniform(0, 6)), generator.random() < 0.3
        channels = generator.choice([16, 32, 64, 128]) if depthwise else generator.choice([8, 16, 24, 30, 48, 64])
        if largest / 300 < batch * channels * size**ndim < largest:
            found.append(((batch, channels, *[size] * ndim), (channels, 1 if depthwise else channels, *[taps] * ndim)))
    return found


def tensors(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], device: str) -> tuple[torch.Tensor, ...]:
    """Input, basis, weight, and the output's gradient."""
    x = torch.randn(x_shape, device=device, requires_grad=True)
    basis = torch.randn(FUNCTIONS, *kernel_shape[2:], device=device, requires_grad=True)
    weight = torch.randn(*kernel_shape[:2], FUNCTIONS, device=device, requires_grad=True)
    return x, basis, weight, torch.randn_like(x)


def through_transforms(inputs: tuple[torch.Tensor, ...], axes: tuple[Axis, ...], groups: int) -> Callable[[], None]:
    """A forward and a backward pass, cut in this way."""
    x, basis, weight, grad = inputs

    @torch.no_grad()
    def step() -> None:
        spectral_conv._forward(x, BasisSpectra(basis, weight, axes, groups), None, axes)
        mixes = BasisSpectra(basis, weight, axes, groups)
        spectral_conv._backward(grad, x, mixes, axes, needs_x=True, needs_kernel=True)
        mixes.gradients()

    return step


def directly(inputs: tuple[torch.Tensor, ...], groups: int) -> Callable[[], None]:
    """The same without transforms."""
    x, basis, weight, grad = inputs

    def step() -> None:
        y = basis_long_conv(x, basis, weight, causal=True, groups=groups, method="direct")
        torch.autograd.grad(y, [x, basis, weight], grad)

    return step


def seconds(run: Callable[[], None], device: str) -> float:
    """The median of a few runs, after one that warms up."""
    first = timed(run, device)
    first = min(first, timed(run, device))
    return statistics.median([timed(run, device) for _ in range(3 if first > 0.1 else 7)])


def measure(count: int, device: str, seed: int) -> tuple[list, list]:
    """Rows of what is counted, and seconds: of transforms, and of direct convolutions."""
    generator = random.Random(seed)
    through, direct = [], []
    largest = 2**21 if device == "cpu" else 2**25
    for number, (x_shape, kernel_shape) in enumerate(shapes(count, generator, largest), 1):
        inputs = tensors(x_shape, kernel_shape, device)
        before = [taps - 1 for taps in kernel_shape[2:]]
        groups = x_shape[1] // kernel_shape[1]
        cuts = [possible_cuts(n, k, b, "auto") for n, k, b in zip(x_shape[2:], kernel_shape[2:], before, strict=True)]
        for _ in range(2):
            axes = tuple(generator.choice(choices) for choices in cuts)
            blocks, points = math.prod(axis.blocks for axis in axes), math.prod(axis.points for axis in axes)
            if blocks * points * x_shape[0] * x_shape[1] <= 8 * largest:
                counts = transforms_counts(x_shape, kernel_shape, blocks, points, math.log2(points), FUNCTIONS)
                through.append((len(x_shape), counts, seconds(through_transforms(inputs, axes, groups), device)))
        counts = direct_counts(x_shape, kernel_shape, FUNCTIONS)
        if counts[0] < (2e10 if device == "cpu" else 2e12):
            direct.append((len(x_shape), is_depthwise(x_shape, kernel_shape), counts, seconds(directly(inputs, groups), device)))
        if number % 10 == 0:
            print(f"{number} of {count} shapes", flush=True)
    return through, direct


def fit(rows: list[list[float]], times: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative constants of least squared relative error, in picoseconds, and the ratios of estimates to times."""
    table, measured = np.array(rows, float), np.array(times) * 1e12
    constants, _ = nnls(table / measured[:, None], np.ones(len(measured)), maxiter=1000)
    return constants, table @ constants / measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shapes", type=int, default=120, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    through, direct = measure(arguments.shapes, arguments.device, arguments.seed)
    rows = []
    for ndim, (steps, moved, elementwise, joined, contracted, mixed), _ in through:
        rows.append([steps, moved, moved if ndim > 3 else 0, elementwise, joined, contracted, mixed, 1])
    constants, ratios = fit(rows, [time for *_, time in through])
    transform, move, move_more, elementwise, joins, contract, mix, operator = constants
    direct_rows = []
    for ndim, depthwise, (products, moved, mixed), _ in direct:
        kind = (ndim > 3) + 2 * depthwise
        direct_rows.append([products * (kind == i) for i in range(4)] + [moved * (ndim == 3), moved * (ndim > 3), mixed, 1])
    direct_constants, direct_ratios = fit(direct_rows, [time for *_, time in direct])
    full_1, full_2, depthwise_1, depthwise_2, move_1, move_2, direct_mix, direct_operator = direct_constants
    found = Costs(
        transform=transform,
        move=move,
        move_more=move_more,
        elementwise=elementwise,
        join=joins,
        contract=contract,
        mix=mix,
        operator=operator,
        direct=(full_1, full_2, full_2),
        direct_depthwise=(depthwise_1, depthwise_2, depthwise_2),
        direct_move=(move_1, move_2, move_2),
        direct_mix=direct_mix,
        direct_operator=direct_operator,
    )
    for name, values in (("transforms", ratios), ("direct", direct_ratios)):
        near = np.mean(np.abs(values - 1) <= 0.2)
        print(f"{name}: {len(values)} times, {near:.0%} of the estimates within 20 %")
    for (ndim, depthwise, counts, time), ratio in zip(direct, direct_ratios, strict=True):
        if abs(math.log2(ratio)) > 1 and arguments.dry_run:
            print(f"far: {ndim - 2} axes, depthwise {depthwise}, {counts}, {time * 1e3:.2f} ms, estimated {ratio:.2f} times that")
    print(json.dumps(found._asdict(), indent=1))
    if not arguments.dry_run:
        name = torch.cuda.get_device_name() if arguments.device != "cpu" else f"{torch.get_num_threads()} threads of {platform.machine()}"
        source = (
            f"python benchmarks/fit_costs.py --device {arguments.device} --shapes {arguments.shapes}, torch {torch.__version__}, {name}"
        )
        write({**COSTS, arguments.device: found}, {**SOURCES, arguments.device: source})
        print(TARGET)


def write(costs: dict[str, Costs], sources: dict[str, str]) -> None:
    """The module of constants."""
    lines = [
        '"""Constants of `flexseq.functional.costs` in picoseconds, from benchmarks/fit_costs.py; SOURCES says which are measured."""',
        "",
        "from typing import Any",
    ]
    lines += [
        "",
        "SOURCES = {",
        *[f'    "{device}": "{source}",' for device, source in sources.items()],
        "}",
        '"""How each was found."""',
        "",
    ]
    lines.append("MEASURED: dict[str, Any] = {")
    for device, values in costs.items():
        lines.append(f'    "{device}": {{')
        for name, value in values._asdict().items():
            text = f"({', '.join(f'{one:.4g}' for one in value)})" if isinstance(value, tuple) else f"{value:.4g}"
            lines.append(f'        "{name}": {text},')
        lines.append("    },")
    TARGET.write_text("\n".join([*lines, "}", ""]))


if __name__ == "__main__":
    main()
