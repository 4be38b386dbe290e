"""Pictures of how a kernel comes about, from network to crop."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flexseq.analysis.spectra import evenly_spaced, strongest_kernel
from flexseq.files import replacing
from flexseq.nn.flexconv import FlexConv
from flexseq.positions import tap_positions

TITLES = ("the network", "the mask", "their product", "cropped, as applied")


@torch.no_grad()
def kernel_steps(layer: FlexConv) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer's strongest kernel: the network's values, the mask, their product, and what is left of it after cropping.

    At a resolution other than training's the last two are weighted as they are applied.

    Returns:
        Each (*taps), on the CPU in float32; the first three over the whole kernel.
    """
    out_channel, in_channel = strongest_kernel(layer)
    assert layer.kernel_size is not None
    assert layer.mask is not None
    positions = tap_positions(layer.kernel_size, causal=layer.causal, ratio=layer.ratio, device=layer.mask.sigma.device)
    positions = positions.to(layer.mask.sigma.dtype)
    network = layer.kernel_network
    readout = network.readout
    channel = out_channel * (layer.in_channels // layer.groups) + in_channel
    values = torch.tensordot(readout.effective_weight()[channel], network.basis(positions), 1) + readout.bias[channel]
    mask = layer.mask(positions)
    product, applied = (layer.sample_kernel(crop=crop)[out_channel, in_channel] for crop in (False, True))
    return values.float().cpu(), mask.float().cpu(), product.float().cpu(), applied.float().cpu()


def plot_steps(model: nn.Module, path: Path, *, layers: int = 4) -> bool:
    """Draw the strongest kernel of some layers step by step: network, mask, product, crop.

    Args:
        model: any module; FlexConvs over one or two axes are drawn.
        path: the picture, in a format that matplotlib knows.
        layers: how many, evenly spaced over depth.

    Returns:
        Whether there was a layer to draw.

    Source:
        FlexConv, Fig. 7.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, FlexConv) and m.ndim <= 2 and m.kernel_size is not None]
    if not found:
        return False
    from matplotlib.figure import Figure

    chosen = evenly_spaced(found, layers)
    figure = Figure(figsize=(8.5, 2.1 * len(chosen) + 0.5), layout="constrained")
    for row, (name, layer) in zip(figure.subplots(len(chosen), 4, squeeze=False), chosen, strict=True):
        steps = kernel_steps(layer)
        for axis, title, values in zip(row, TITLES, steps, strict=True):
            if layer.ndim == 1:
                first = values.shape[0] - 1 if layer.causal else (values.shape[0] - 1) // 2
                axis.plot(np.arange(len(values)) - first, values.numpy(), linewidth=1)
                axis.axhline(0, color="0.6", linewidth=0.5)
                reach = np.flatnonzero(steps[-2].abs().numpy() >= 0.01 * (float(steps[-2].abs().max()) or 1.0)) - first
                if len(reach) > 1 and len(values) == len(steps[-2]):
                    margin = 0.05 * (reach[-1] - reach[0])
                    axis.set_xlim(reach[0] - margin, reach[-1] + margin)
                axis.set_xlabel("samples from the current one")
            else:
                height = values.abs().max().item() or 1.0
                limits = (
                    {"vmin": 0, "vmax": 1, "cmap": "viridis"}
                    if title == "the mask"
                    else {"vmin": -height, "vmax": height, "cmap": "RdBu_r"}
                )
                axis.imshow(values.numpy(), interpolation="nearest", **limits)
                axis.set(xticks=[], yticks=[], xlabel=" x ".join(map(str, values.shape)))
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=6)
            axis.xaxis.label.set_fontsize(6)
        row[0].set_ylabel(name, fontsize=7)
    figure.suptitle("the strongest kernel of some layers, step by step", fontsize=9)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
    return True
