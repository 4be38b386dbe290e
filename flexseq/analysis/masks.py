"""Pictures of the sizes that masks have learned, over depth."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flexseq.files import replacing
from flexseq.nn.continuous import ContinuousConv
from flexseq.positions import tap_positions, taps_around

COLUMNS = 8


def masks_over_depth(model: nn.Module) -> list[dict[str, object]]:
    """One row for each continuous convolution with a mask, in the order of the model's modules.

    Returns:
        Dicts of `layer` (its name), `depth` (counted from 1), and `mean` and `sigma`, a list each with a number for each axis, in units
        of position.

    Example:
        >>> import flexseq as fs
        >>> [row["layer"] for row in masks_over_depth(fs.FlexNet(depth=1))]
        ['conv', 'blocks.0.conv1', 'blocks.0.conv2']
    """
    rows: list[dict[str, object]] = []
    for name, layer in _masked(model):
        assert layer.mask is not None
        mean, sigma = layer.mask.mean.tolist(), layer.mask.sigma.abs().tolist()
        rows.append({"layer": name or "layer", "depth": len(rows) + 1, "mean": mean, "sigma": sigma})
    return rows


@torch.no_grad()
def plot_masks(model: nn.Module, path: Path) -> bool:
    """Draw the mask of each continuous convolution over its whole kernel, and the masks' sigma over depth.

    Args:
        model: any module; layers over one or two axes are drawn.
        path: the picture, in a format that matplotlib knows.

    Returns:
        Whether there was a mask to draw.

    Source:
        FlexConv, Fig. 6.
    """
    layers = [(name, layer) for name, layer in _masked(model) if layer.ndim <= 2 and layer.kernel_size is not None]
    if not layers:
        return False
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(1.5 * columns + 0.5, 1.8 * rows + 2.4), layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1] * rows + [1.5])
    for i, (name, layer) in enumerate(layers):
        axis = figure.add_subplot(grid[divmod(i, columns)])
        assert layer.mask is not None
        assert layer.kernel_size is not None
        positions = tap_positions(layer.kernel_size, causal=layer.causal, ratio=layer.ratio, device=layer.mask.sigma.device)
        values = layer.mask(positions).float().cpu().numpy()
        if layer.ndim == 1:
            before, _ = taps_around(layer.kernel_size[0], causal=layer.causal, ratio=layer.ratio)
            samples = np.arange(len(values)) - before
            seen = samples[values >= 0.01] if (values >= 0.01).any() else samples
            axis.fill_between(samples, values, color="tab:blue", alpha=0.5, linewidth=0)
            axis.set(xlim=(seen[0] - 0.5, seen[-1] + 0.5), ylim=(0, 1.05), yticks=[])
            axis.set_xticks(sorted({int(seen[0]), 0, int(seen[-1])}))
            axis.set_xlabel("samples from the current one", fontsize=5)
        else:
            axis.imshow(values, cmap="viridis", vmin=0, vmax=1, extent=(-1, 1, 1, -1), interpolation="nearest", aspect="auto")
            axis.set(yticks=[], xticks=[-1, 0, 1])
            axis.set_xlabel("position across, kernel from -1 to 1", fontsize=5)
        axis.tick_params(labelsize=6)
        axis.set_title(f"{i + 1}: {name}", fontsize=6)
    below: Any = figure.add_subplot(grid[rows, :])
    sigmas = [layer.mask.sigma.abs().tolist() for _, layer in layers if layer.mask is not None]
    names = ("sigma",) if max(map(len, sigmas)) == 1 else ("sigma down the rows", "sigma across the columns")
    for of_axis, label in enumerate(names):
        drawn = [(depth, sigma[of_axis]) for depth, sigma in enumerate(sigmas, start=1) if of_axis < len(sigma)]
        below.plot(*zip(*drawn, strict=True), marker="o", label=label)
    below.set(xlabel="layer", ylabel="sigma (kernel spans -1 to 1)", ylim=(0, 1.15 * max(map(max, sigmas))))
    below.xaxis.get_major_locator().set_params(integer=True)
    below.grid(alpha=0.3)
    if len(names) > 1:
        figure.legend(loc="outside lower right", fontsize=7, ncols=len(names))
    figure.suptitle("masks over depth", fontsize=9)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
    return True


def _masked(model: nn.Module) -> list[tuple[str, ContinuousConv]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, ContinuousConv) and m.mask is not None]
