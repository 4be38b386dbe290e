"""Pictures of a network's filters, from `flexseq.analysis.filters`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flexseq.analysis.filters import Filters, mass_ratio, principal_components

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZOOM = 9
"""Samples along each axis of the kernels that are drawn large, as in the paper."""
COMPONENTS = 6


def plot_mass(stages: Mapping[str, Filters]) -> "Figure":
    """The share of the kernels' mass within centred squares, over their size: mean and standard deviation of each stage.

    Source:
        NIFF, Fig. 4.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    largest = 1
    for name, one in stages.items():
        sizes, shares = mass_ratio(one.kernels)
        shares = shares[~shares[:, 0].isnan()]
        if not len(shares):
            continue
        mean, std = shares.mean(0), shares.std(0) if len(shares) > 1 else torch.zeros(len(sizes))
        sizes = [one.reach(size) for size in sizes]
        (line,) = axis.plot(sizes, mean.numpy(), marker="o", markersize=3, label=_label(name, one, ", "))
        low, high = (mean - std).clamp(0, 1).numpy(), (mean + std).clamp(0, 1).numpy()
        axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        largest = max(largest, sizes[-1])
    kinds = {(one.kernels.ndim == 2, one.causal) for one in stages.values()}
    where = "last samples, up to the current one" if kinds == {(True, True)} else "samples around the current one"
    axis.set(
        xlabel=where if all(of_time for of_time, _ in kinds) else "side of the centred square, samples",
        ylabel="share of the kernels' mass",
        ylim=(0, 1.03),
        xlim=(0, largest + 1),
    )
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7, ncols=1 + len(stages) // 8)
    return figure


def plot_kernels(stages: Mapping[str, Filters], count: int = 10) -> "Figure":
    """The heaviest kernels of each stage, whole above and their middle below.

    Source:
        NIFF, Fig. A22.
    """
    rows = []
    for name, one in stages.items():
        order = one.kernels.abs().flatten(1).sum(1).argsort(descending=True)[:count]
        chosen = one.shown[order]
        rows.append((_label(name, one), chosen, [""] * len(chosen), one.causal))
        if max(one.extent) > ZOOM:
            rows.append((f"{'last' if one.causal else 'middle'} {ZOOM}", _near(chosen, one.causal), [""] * len(chosen), one.causal))
    return _rows(rows, count)


def plot_components(stages: Mapping[str, Filters], count: int = COMPONENTS) -> "Figure":
    """Principal components of each stage's kernels, their middle, with the variance that each explains.

    Source:
        NIFF, Figs. 1 and 6.
    """
    rows = []
    for name, one in stages.items():
        components, explained = principal_components(one.shown, count)
        rows.append((_label(name, one), _near(components, one.causal), [f"{100 * share:.0f} %" for share in explained], one.causal))
    return _rows(rows, count)


def plot_spectrum_components(stages: Mapping[str, Filters], count: int = COMPONENTS) -> "Figure":
    """Principal components of the real and of the imaginary part of each stage's spectra, frequency 0 in the middle.

    Source:
        NIFF, Fig. A14.
    """
    rows = []
    for name, one in stages.items():
        for part, values in (("real", one.spectra.real), ("imaginary", one.spectra.imag)):
            components, explained = principal_components(values, count)
            rows.append((f"{name}\n{part}", components, [f"{100 * share:.0f} %" for share in explained], False))
    return _rows(rows, count)


def plot_sigma_ratios(rows: list[dict[str, Any]]) -> "Figure":
    """The ratio of fitted Gaussians' widths, across to down, of each stage, median and quartiles: 1 for filters as wide as they are high.

    Args:
        rows: of `sigma_table`.

    Source:
        NIFF, Fig. A3.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(max(4, 1 + 0.9 * len(rows)), 3.2), layout="constrained")
    axis = figure.subplots()
    positions = list(range(len(rows)))
    ratios = [row["ratio"] for row in rows]
    below = [row["ratio"] - row["ratio_low"] for row in rows]
    above = [row["ratio_high"] - row["ratio"] for row in rows]
    axis.errorbar(positions, ratios, [below, above], fmt="o", capsize=4)
    axis.axhline(1, color="tab:red", linestyle="--", linewidth=1)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axis.set(xticks=positions, ylabel="sigma across / sigma down")
    axis.set_xticklabels([row["stage"] for row in rows], rotation=30, ha="right", fontsize=7)
    axis.grid(alpha=0.3)
    return figure


def _label(name: str, one: Filters, between: str = "\n") -> str:
    """A stage's name and its kernels' size, which some names have in them."""
    grid = "x".join(map(str, one.extent))
    return name if grid in name else f"{name}{between}{grid}"


def _near(values: Tensor, causal: bool) -> Tensor:
    """The samples next to the current one, which is the last of causal kernels and in the middle of others."""
    for axis in range(1, values.ndim):
        size = values.shape[axis]
        if size > ZOOM:
            values = values.narrow(axis, size - ZOOM if causal else size // 2 - ZOOM // 2, ZOOM)
    return values


def _rows(rows: list[tuple[str, Tensor, list[str], bool]], columns: int) -> "Figure":
    """Images in rows, each of its own scale of colors around 0; or curves over samples from the current one, which a causal one ends at."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.15 * columns, 0.4 + 1.3 * len(rows)), layout="constrained")
    grid: Any = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (name, images, labels, causal) in zip(grid, rows, strict=True):
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axis, image, label in zip(axes, images, labels, strict=False):
            height = image.abs().max().item() or 1.0
            if image.ndim == 1:
                first = 1 - len(image) if causal else -(len(image) // 2)
                axis.plot(range(first, first + len(image)), image.numpy(), linewidth=1)
                axis.set_xticks([first, 0])
                axis.tick_params(labelsize=6, length=2)
                axis.axhline(0, color="0.7", linewidth=0.5)
            else:
                axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-height, vmax=height, interpolation="nearest")
            axis.set_title(label, fontsize=7)
    return figure
