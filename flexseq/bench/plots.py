"""Pictures of a run: curves over epochs, and which class was taken for which."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from flexseq.analysis.kernels import plot_kernels
from flexseq.analysis.masks import plot_masks
from flexseq.analysis.spectra import plot_spectra
from flexseq.analysis.steps import plot_steps
from flexseq.files import replacing

LEARNED = ("kernels.png", "masks.png", "steps.png", "spectra.png")
"""Pictures of what a network learned; those of layers that it does not have are left out."""


def plot_learned(model: nn.Module, folder: Path, *, ratio: float = 2.0) -> None:
    """Draw kernels over time, masks over depth, kernels step by step, and their spectra, those at `ratio` times the resolution too."""
    kernels, masks, steps, spectra = (folder / name for name in LEARNED)
    plot_kernels(model, kernels)
    plot_masks(model, masks)
    plot_steps(model, steps)
    plot_spectra(model, spectra, ratio=ratio)


def plot_curves(rows: list[dict[str, float]], best_epoch: int, measure: str, path: Path) -> None:
    """Loss and an objective's measure over epochs, training and validation, the best epoch marked."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axis, quantity in zip(figure.subplots(1, 2), ("loss", measure), strict=True):
        for split, colour in (("train", "tab:blue"), ("validation", "tab:orange")):
            axis.plot(
                epochs, [row[f"{split}_{quantity}"] for row in rows], color=colour, label=split, marker="." if len(rows) < 15 else None
            )
        axis.axvline(best_epoch, color="0.6", linestyle=":", label=f"best on validation: epoch {best_epoch}")
        axis.set_xlabel("epoch")
        axis.set_ylabel(quantity)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlim(0.5, len(rows) + 0.5)
    if len(rows) > 3 and all(row["train_loss"] > 0 and row["validation_loss"] > 0 for row in rows):
        figure.axes[0].set_yscale("log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_confusion(matrix: np.ndarray, classes: list[str], path: Path) -> None:
    """A confusion matrix, (true, predicted), coloured by the share of each true class."""
    from matplotlib.figure import Figure

    size = max(4.0, 0.5 * len(classes) + 1.5)
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 40:
        for row, column in np.argwhere(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axis.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title("test split, final epoch")
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_transfer(first: list[dict[str, float]], second: list[dict[str, float]], result: dict[str, Any], path: Path) -> None:
    """Validation accuracy over both trainings, test accuracy over the images' size before fine-tuning, and the accuracies at both sizes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    curve, over_size, bars = figure.subplots(1, 3, width_ratios=(3, 2, 2))
    epochs = range(1, len(first) + len(second) + 1)
    curve.plot(epochs[: len(first)], [row["validation_accuracy"] for row in first], label=f"at {result['source_size']} px", marker=".")
    curve.plot(epochs[len(first) :], [row["validation_accuracy"] for row in second], label=f"at {result['target_size']} px", marker=".")
    curve.set(xlabel="epoch", ylabel="validation accuracy")
    curve.grid(alpha=0.3)
    curve.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    sizes = result["accuracy_over_size"]
    over_size.plot([int(size) for size in sizes], list(sizes.values()), marker="o")
    over_size.axvline(result["source_size"], color="0.6", linestyle=":", label="trained at")
    over_size.set(xlabel="pixels along an edge", ylabel="test accuracy, not fine-tuned", ylim=(0, 1.08))
    over_size.grid(alpha=0.3)
    over_size.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    names = ["source", "target,\nas it is", "target,\nfine-tuned"]
    values = [result["value_at_source"], result["value_at_target_as_it_is"], result["value"]]
    drawn = bars.bar(names, values, color=["tab:blue", "tab:red", "tab:orange"])
    bars.bar_label(drawn, [f"{value:.1%}" for value in values])
    bars.set(ylabel="test accuracy", ylim=(0, 1.08))
    figure.suptitle(f"{result['task']}: {result['model']}, penalty {result['penalty']}", fontsize=10)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_table(title: str, columns: list[str], rows: list[dict[str, Any]], path: Path) -> None:
    """A table's figures, one panel a column: this project's mean and spread, and what was published."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 3.2 * len(columns), 1.2 + 0.4 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for panel, column in zip(panels, columns, strict=True):
        for y, row in enumerate(rows):
            figures = row["figures"].get(column)
            if figures is None:
                continue
            panel.errorbar(100 * figures["mean"], y, xerr=100 * (figures["spread"] or 0), fmt="o", color="tab:blue", capsize=3)
            if figures["paper"]:
                panel.plot(float(figures["paper"].partition(" ")[0]), y, "x", color="tab:red")
        panel.set_title(column, fontsize=9)
        panel.set_yticks(range(len(rows)), [row["row"] for row in rows])
        panel.grid(alpha=0.3)
        panel.set_xlabel("percent", fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(f"{title} (dots: here, with spread over seeds; crosses: published)", fontsize=9)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_over_size(curves: dict[str, list[dict[str, float]]], source: int, path: Path) -> None:
    """Test accuracy over the images' size without fine-tuning, a line for each network: the mean over seeds.

    Args:
        curves: for each network one dict a seed, size -> accuracy.
        source: the size of training.
        path: the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, seeds in curves.items():
        sizes = sorted({int(size) for one in seeds for size in one})
        means = [float(np.mean([one[str(size)] for one in seeds if str(size) in one])) for size in sizes]
        axis.plot(sizes, means, marker="o", label=name)
    axis.axvline(source, color="0.6", linestyle=":", label="trained at")
    axis.set(xlabel="pixels along an edge", ylabel="test accuracy, not fine-tuned", ylim=(0, 1))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def plot_grids(grids: dict[str, list[list[list[float]]]], sources: list[int], targets: list[int], path: Path) -> None:
    """Changes of accuracy, one grid of (source, target) each: lists of one value a seed."""
    from matplotlib.figure import Figure

    rows = -(-len(grids) // 2)
    figure = Figure(figsize=(2.5 + 1.6 * len(targets), (1.1 + 0.6 * len(sources)) * rows + 0.3), layout="constrained")
    means = {title: np.array([[np.mean(v) if v else np.nan for v in row] for row in grid]) for title, grid in grids.items()}
    height = max(np.nanmax(np.abs(grid)) for grid in means.values()) or 1.0
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axis, (title, grid) in zip(panels, means.items(), strict=False):
        axis.imshow(grid, cmap="RdYlGn", vmin=-height, vmax=height, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                axis.text(column, row, f"{value:+.1%}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(targets)), [f"{size} px" for size in targets], fontsize=8)
        axis.set_yticks(range(len(sources)), [f"{size} px" for size in sources], fontsize=8)
        axis.set_title(title, fontsize=9)
    figure.supxlabel("target", fontsize=9)
    figure.supylabel("source", fontsize=9)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
