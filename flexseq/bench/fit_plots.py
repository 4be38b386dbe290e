"""Pictures of fits."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from flexseq.files import replacing


def plot_fits(fits: dict[str, list[dict[str, Any]]], target: Tensor, fitted: dict[str, Tensor], path: Path) -> None:
    """PSNR over iterations, the mean over pictures; and the first picture beside what each network made of it.

    Args:
        fits: by network, one dict a picture, with `curve` and `psnr`.
        target: the first picture, (3, height, width) in [-1, 1].
        fitted: what each network made of it.
        path: the picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * (len(fits) + 1), 6), layout="constrained")
    grid = figure.add_gridspec(2, len(fits) + 1, height_ratios=[3, 2])
    curves: Any = figure.add_subplot(grid[0, :])
    for name, results in fits.items():
        curves.plot(results[0]["curve"]["steps"], np.mean([result["curve"]["psnr"] for result in results], 0), label=name)
    curves.set(xlabel="iteration", ylabel="PSNR, dB: mean over pictures")
    curves.grid(alpha=0.3)
    curves.legend(fontsize=8)
    shown = {"picture": target}
    shown |= {f"{name}: {fits[name][0]['psnr']:.2f} dB": values for name, values in fitted.items()}
    for i, (title, values) in enumerate(shown.items()):
        axis: Any = figure.add_subplot(grid[1, i])
        axis.imshow(((values + 1) / 2).permute(1, 2, 0).numpy())
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_kernel_fits(
    means: dict[str, dict[str, float]],
    possible: dict[str, float],
    shown: dict[str, dict[str, Tensor]],
    frequencies: tuple[int, ...],
    path: Path,
) -> None:
    """Error over the frequency of Gabor targets, and the kernels that each model learned.

    Args:
        means: by model and target, the mean squared error.
        possible: by target, the least that N-Jet can have.
        shown: by "target" or model, then by target: a fitted kernel.
        frequencies: of the Gabor targets.
        path: the picture to write.
    """
    from matplotlib.figure import Figure

    titles = list(shown["target"])
    figure = Figure(figsize=(5 + 1.3 * len(titles), 1.4 * len(shown) + 0.6), layout="constrained")
    left, right = cast(Any, figure).subfigures(1, 2, width_ratios=(5, 1.3 * len(titles)))
    axis: Any = left.subplots()
    for model, by_title in means.items():
        axis.loglog(frequencies, [by_title[f"gabor {f}"] for f in frequencies], marker="o", label=model)
    axis.loglog(frequencies, [possible[f"gabor {f}"] for f in frequencies], "k:", label="njet, least squares")
    axis.set(xlabel="frequency, radians per unit", ylabel="mean squared error", ylim=(1e-9, None))  # less is rounding
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    for row, (name, kernels) in zip(right.subplots(len(shown), len(titles), squeeze=False), shown.items(), strict=True):
        for panel, title in zip(row, titles, strict=True):
            height = float(shown["target"][title].abs().max())
            panel.imshow(kernels[title].numpy(), cmap="RdBu_r", vmin=-height, vmax=height, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.set_title(title, fontsize=7)
        row[0].set_ylabel(name, fontsize=7)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
