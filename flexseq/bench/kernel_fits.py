"""Kernel networks and N-Jets fitted to kernels of known frequency."""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexseq.bench.fit_plots import plot_kernel_fits
from flexseq.bench.fits import LR, NO_EPOCHS, fit_function
from flexseq.bench.picture_fits import read_picture
from flexseq.bench.results import versions, where_it_ran, write_result
from flexseq.bench.study import claim_study, mean_and_spread
from flexseq.errors import InputError
from flexseq.files import replacing, write_text
from flexseq.kernels import KERNELS, KernelNetwork
from flexseq.nn import NJetConv2d
from flexseq.positions import tap_positions
from flexseq.words import duration

FREQUENCIES = (1, 4, 16, 64)
SIZE = 33


def gabor_target(frequency: float, size: int = SIZE) -> Tensor:
    """exp(-|x|^2 / (2 0.4^2)) sin(frequency (x + y) / sqrt 2) over [-1, 1]^2: frequency in radians per unit of position."""
    x, y = tap_positions((size, size))
    return torch.exp(-(x.square() + y.square()) / (2 * 0.4**2)) * torch.sin(frequency * (x + y) / math.sqrt(2))


def kernel_targets(seed: int) -> dict[str, Tensor]:
    """Gabor functions and noise over 33 x 33 taps, and an edge filter over 11 x 11 as AlexNet's first layer has them."""
    targets = {f"gabor {frequency}": gabor_target(frequency) for frequency in FREQUENCIES}
    targets["noise"] = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    x, y = tap_positions((11, 11))
    along, across = 0.8 * x + 0.6 * y, -0.6 * x + 0.8 * y
    targets["alexnet-like"] = torch.exp(-along.square() / (2 * 0.6**2) - across.square() / (2 * 0.35**2)) * torch.cos(7 * across + 0.6)
    return targets


KERNEL_MODELS = ("magnet", "magnet-small", "siren", "njet")
NJET_ORDER, NJET_SIGMAS = 9, (0.1, 0.3, 1.0)


class _Network(nn.Module):
    """A kernel network's single function over a grid."""

    def __init__(self, network: KernelNetwork, size: int):
        super().__init__()
        self.network = network
        self.register_buffer("positions", tap_positions((size, size)), persistent=False)

    def forward(self) -> Tensor:
        """(size, size)."""
        return self.network(self.positions)[0]


class _NJet(nn.Module):
    """A single kernel of Gaussian derivatives over a grid, not cropped."""

    def __init__(self, size: int, sigma: float):
        super().__init__()
        self.layer = NJetConv2d(1, 1, size, order=NJET_ORDER, sigma=sigma, bias=False)

    def forward(self) -> Tensor:
        """(size, size)."""
        return self.layer.sample_kernel(crop=False)[0, 0]


def _kernel_functions(model: str, size: int) -> list[nn.Module]:
    """What is fitted for a model: the best of several starts for N-Jet, whose width trains poorly from far away."""
    if model == "njet":
        return [_NJet(size, sigma) for sigma in NJET_SIGMAS]
    if model == "siren":
        return [_Network(KERNELS["siren"](2, 1), size)]
    hidden, layers = (32, 3) if model == "magnet" else (3, 1)  # 58 parameters, as N-Jet of order 9 has 57
    return [_Network(KERNELS["magnet"](2, 1, hidden=hidden, layers=layers, spatial_extent=1.0), size)]


def best_njet(target: Tensor) -> float:
    """The least mean squared error that an N-Jet of order 9 was found to have on a target.

    Given its two widths an N-Jet is linear in all its weights: least squares at every pair of widths of a grid, and of finer ones round the
    best.
    """
    size = target.shape[0]
    flat = target.double().flatten()[:, None]
    narrowest = 0.6 / (size - 1)  # reaches the neighbouring taps
    layer = NJetConv2d(1, 1, size, order=NJET_ORDER, sigma=1.0, bias=False).double()

    @torch.no_grad()
    def error(widths: tuple[float, float]) -> float:
        layer.mask.sigma.copy_(torch.tensor(widths))
        basis = layer.sample_basis(crop=False)[0].flatten(1).T
        basis = basis / basis.norm(dim=0).clamp_min(1e-30)
        solution = torch.linalg.lstsq(basis, flat, driver="gelsd").solution
        return float((basis @ solution - flat).square().mean())

    grid = np.geomspace(narrowest, 3, 14)
    step = grid[1] / grid[0]
    best = min(((error((a, b)), a, b) for a in grid for b in grid), key=lambda found: found[0])
    for _ in range(3):
        step = step**0.5
        around = [(best[1] * step**i, best[2] * step**j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = min(((error(widths), *widths) for widths in around), key=lambda found: found[0])
    return best[0]


def fit_kernels(folder: Path, *, iterations: int, seeds: list[int], pictures: list[Path], device: torch.device) -> Path:
    """Fit MAGNet, a small MAGNet, SIREN and N-Jet to kernels of known frequency, to noise, and to a filter like AlexNet's.

    Args:
        folder: where results go; one small file for each fit, so that a stopped run goes on.
        iterations: of Adam, at learning rate 0.01 (SIREN: 0.001).
        seeds: of initial weights and noise; mean and spread over them.
        pictures: more targets: their middle, in grey, at 33 x 33.
        device: where.

    Returns:
        The path of result.json.

    Raises:
        InputError: `folder` holds fits with other options.

    Source:
        FlexConv, Fig. 4.
    """
    if iterations < 1:
        raise InputError(f"--iterations expected at least 1, got {iterations}")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}
    recipe = {"task": "kernel_fit", "iterations": iterations, "pictures": sums}
    claim_study(folder, recipe)
    print(f"results go to {folder}", flush=True)
    errors: dict[str, dict[str, list[float]]] = {}
    shown: dict[str, dict[str, Tensor]] = {"target": {}}
    counts = {}
    began, ran, seconds = time.perf_counter(), 0, 0.0
    total = len(seeds) * (len(FREQUENCIES) + 2 + len(pictures)) * len(KERNEL_MODELS)
    done = 0
    for seed in seeds:
        targets = kernel_targets(seed) | {f"picture {path.name}": _small_grey(path) for path in pictures}
        for title, target in targets.items():
            shown["target"].setdefault(title, target)
            for model in KERNEL_MODELS:
                done += 1
                place = folder / "fits" / model / f"{title.replace(' ', '_')}-{seed}.npz"
                torch.manual_seed(seed)
                functions = _kernel_functions(model, target.shape[0])
                counts[model] = sum(p.numel() for p in functions[0].parameters())
                if not place.is_file():
                    best = None
                    for function in functions:
                        function.to(device)
                        fitted = fit_function(function, function, target.to(device), iterations=iterations, lr=LR.get(model, 0.01))
                        if best is None or fitted.errors[-1] < best.errors[-1]:
                            best = fitted
                    assert best is not None
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(place) as part:
                        np.savez(part, values=best.values.cpu().numpy(), error=best.errors[-1], seconds=best.seconds)
                    ran += 1
                    left = duration((time.perf_counter() - began) / ran * (total - done))
                    print(f"{done} of {total}: {model} on {title}, seed {seed}: error {best.errors[-1]:.2e}, about {left} left", flush=True)
                with np.load(place) as kept:
                    errors.setdefault(model, {}).setdefault(title, []).append(float(kept["error"]))
                    shown.setdefault(model, {}).setdefault(title, torch.from_numpy(kept["values"]))
                    seconds += float(kept["seconds"])
    print("searching the best widths of N-Jets", flush=True)
    possible = {title: best_njet(target) for title, target in shown["target"].items()}
    return _write_kernels_result(folder, errors, possible, counts, shown, seeds, seconds, recipe, device)


def _write_kernels_result(
    folder: Path,
    errors: dict[str, dict[str, list[float]]],
    possible: dict[str, float],
    counts: dict[str, int],
    shown: dict[str, dict[str, Tensor]],
    seeds: list[int],
    seconds: float,
    recipe: dict[str, Any],
    device: torch.device,
) -> Path:
    titles = list(shown["target"])
    means = {model: {title: mean_and_spread(values)[0] for title, values in by_title.items()} for model, by_title in errors.items()}
    lines = [f"| network | parameters | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles)]
    zero = [f"{float(target.square().mean()):.1e}" for target in shown["target"].values()]
    lines.append(f"| (zero) | 0 | {' | '.join(zero)} |")
    for model, by_title in errors.items():
        cells = [
            f"{np.mean(by_title[title]):.1e}" + (f" ± {np.std(by_title[title], ddof=1):.0e}" if len(seeds) > 1 else "") for title in titles
        ]
        lines.append(f"| {model} | {counts[model]:,} | {' | '.join(cells)} |")
    lines.append(
        f"| njet, least squares, widths searched | {counts['njet']:,} | {' | '.join(f'{possible[title]:.1e}' for title in titles)} |"
    )
    spread = f", mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f", seed {seeds[0]}"
    lines += ["", f"Mean squared error after {recipe['iterations']:,} iterations{spread}."]
    write_text(folder / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    plot_kernel_fits(means, possible, shown, FREQUENCIES, folder / "kernels.png")
    result = {
        "task": "kernel_fit",
        "model": "magnet",
        "parameters": counts["magnet"],
        "metric": "mean squared error, gabor 16",
        "value": means["magnet"]["gabor 16"],
        "paper_value": None,
        **NO_EPOCHS,
        "errors": errors,
        "least_squares_njet": possible,
        "network_parameters": counts,
        "seconds": seconds,
        **where_it_ran(device, "32-true"),
        "seed": seeds[0],
        "seeds": seeds,
        "dataset": {"name": "kernels", "source": "computed", "sizes": {"kernels": len(titles)}},
        "versions": versions(),
        "recipe": recipe,
    }
    return write_result(folder, result)


def _small_grey(path: Path) -> Tensor:
    picture = read_picture(path, None).mean(0)
    edge = min(picture.shape)
    top, left = ((n - edge) // 2 for n in picture.shape)
    square = picture[None, None, top : top + edge, left : left + edge]
    return nn.functional.interpolate(square, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)[0, 0]
