"""Pictures of learned kernels over time."""

from pathlib import Path

import torch
from torch import nn

from flexseq.files import replacing
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.forward_pass import read_crops
from flexseq.positions import tap_positions, taps_around


@torch.no_grad()
def plot_kernels(model: nn.Module, path: Path, *, strongest: int = 4) -> bool:
    """Draw, for each 1-D continuous convolution, its strongest kernels and its mask over the taps, the present at 0.

    Args:
        model: any module.
        path: the picture, in a format that matplotlib knows.
        strongest: how many kernels of each layer, by their norm.

    Returns:
        Whether there was a layer to draw.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ContinuousConv) and m.ndim == 1}
    if not layers:
        return False
    from matplotlib.figure import Figure

    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.3 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, layer), keep in zip(axes, layers.items(), read_crops(list(layers.values())), strict=False):
        assert keep is not None
        assert layer.kernel_size is not None
        ((start, stop),), (size,) = keep, layer.kernel_size
        present, after = taps_around(size, causal=layer.causal, ratio=layer.ratio)
        count = present + after + 1
        kernels = layer.sample_kernel().flatten(0, 1).float().cpu()
        order = kernels.norm(dim=1).argsort(descending=True)[:strongest]
        taps = torch.arange(start, stop) - present
        height = kernels[order].abs().max().item() or 1.0
        for kernel in kernels[order]:
            axis.plot(taps, kernel, linewidth=1)
        title = f"{name}: {stop - start} of {count} taps"
        if layer.mask is not None:
            positions = tap_positions((size,), causal=layer.causal, ratio=layer.ratio, device=layer.mask.sigma.device)
            window = layer.mask(positions).float().cpu() * height
            axis.fill_between(torch.arange(count) - present, -window, window, color="0.85", linewidth=0, label="mask")
            title += f", sigma {layer.mask.sigma.item():.3f}"
        axis.axhline(0, color="0.6", linewidth=0.5)
        margin = max(2, (stop - start) // 10)
        axis.set_xlim(max(start - margin, 0) - present, min(stop + margin, count) - 1 - present or 0.5)
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[len(layers) :]:
        axis.set_axis_off()
    masks = "" if all(layer.mask is None for layer in layers.values()) else "; grey: the mask, scaled to the highest tap"
    figure.suptitle(f"strongest {strongest} kernels of each layer, as applied{masks}", fontsize=9)
    figure.supxlabel("samples from the current one", fontsize=8)
    figure.supylabel("weight", fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
    return True
