"""Spectra of kernels, and how much of them lies above Nyquist."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flexseq.antialias import max_frequency
from flexseq.files import replacing
from flexseq.functional.band_limits import nyquist_frequency
from flexseq.nn.continuous import ContinuousConv
from flexseq.positions import tap_weights, taps_around
from flexseq.resolution import set_resolution

T = TypeVar("T")

MOST_TAPS = 2**18
"""At which some 33 functions are transformed: 140 MB."""

LONG = 50.0
"""Nyquist frequency, in cycles per unit, from which spectra are drawn on logarithmic axes."""


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, the first and the last among them.

    Example:
        >>> evenly_spaced("abcdefg", 3)
        ['a', 'd', 'g']
    """
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


@torch.no_grad()
def strongest_kernel(layer: ContinuousConv) -> tuple[int, int]:
    """The (out, in) channels of the kernel with the largest norm."""
    basis, weight = layer.sample_basis()
    basis = basis.flatten(1)
    squares = ((weight @ (basis @ basis.T)) * weight).sum(2)  # of the norms, and no kernel need be formed
    out_channel, in_channel = divmod(int(squares.argmax()), squares.shape[1])
    return out_channel, in_channel


@torch.no_grad()
def uncropped_kernel(layer: ContinuousConv, ratio: float, out_channel: int, in_channel: int) -> Tensor:
    """One of the layer's kernels with its mask at all taps, sampled `ratio` times as densely as in training: (*taps), on the CPU.

    The layer's own resolution stays as it is.
    """
    basis, weight = _plain_basis(layer, ratio)
    return torch.tensordot(weight[out_channel, in_channel], basis, 1).float()


def _plain_basis(layer: ContinuousConv, ratio: float) -> tuple[Tensor, Tensor]:
    """The functions that a layer's kernels are mixes of, times the mask, at all taps, and their weights; on the CPU.

    Not weighted as for a convolution: the weight of a causal kernel's present tap grows with the ratio, and would be a peak that the
    function does not have.
    """
    with set_resolution(layer, ratio):
        basis, weight = layer.sample_basis(crop=False)
    basis, weight = basis.cpu(), weight.cpu()
    if ratio == 1:
        return basis, weight
    assert layer.kernel_size is not None
    everything = [(0, n) for n in basis.shape[1:]]
    options: dict[str, Any] = {"causal": layer.causal, "keep": everything, "ratio": ratio, "dtype": basis.dtype, "device": basis.device}
    return basis / tap_weights(layer.kernel_size, **options), weight


def kernel_spectrum(kernel: Tensor, kernel_size: Sequence[int], ratio: float, *, finer: int = 4) -> tuple[Tensor, list[Tensor]]:
    """Kernels' Fourier transforms, and the frequencies along each axis.

    Args:
        kernel: (..., *taps), uncropped.
        kernel_size: taps along each axis at ratio 1.
        ratio: how many times as densely as in training the kernel was sampled.
        finer: pad with zeros to this many times the taps, so that the spectrum is smooth.

    Returns:
        (..., *frequencies), zero frequency in the middle; and the frequencies in cycles per unit of position.
    """
    axes = list(range(-len(kernel_size), 0))
    lengths = [finer * kernel.shape[axis] for axis in axes]
    spectrum = torch.fft.fftshift(torch.fft.fftn(kernel, lengths, axes), axes)
    spacing = [2 / (max(size - 1, 1) * ratio) for size in kernel_size]
    frequencies = [torch.fft.fftshift(torch.fft.fftfreq(n, d)) for n, d in zip(lengths, spacing, strict=True)]
    return spectrum, frequencies


@torch.no_grad()
def energy_above_nyquist(layer: ContinuousConv, *, ratio: float | None = None) -> float:
    """The share of a layer's kernels' energy at frequencies above the Nyquist frequency of training, along any axis.

    Args:
        layer: with a known kernel size.
        ratio: how many times as densely as in training the kernels are sampled for it. What lies above `ratio` times Nyquist folds back; by
            default enough for the highest frequency of the layer, as far as `MOST_TAPS` and a ratio of 16 allow, and 2 at least.

    Returns:
        In [0, 1], over all kernels of the layer with their mask, not cropped.
    """
    assert layer.kernel_size is not None
    if ratio is None:
        limit = float(max_frequency(layer, of_nyquist=True)) * layer.ratio
        affordable = (MOST_TAPS / math.prod(layer.kernel_size)) ** (1 / layer.ndim)
        ratio = float(max(2, math.ceil(min(16.0, limit, affordable))))
    basis, weight = _plain_basis(layer, ratio)
    weights = weight.flatten(0, 1).double()
    spectra, frequencies = kernel_spectrum(basis.double(), layer.kernel_size, ratio, finer=1)
    # Summed over kernels, |sum_h w_h F_h|^2 = F' (sum w w') F: no kernel need be formed.
    energy = (spectra.conj() * torch.tensordot((weights.T @ weights).to(spectra.dtype), spectra, 1)).sum(0).real
    below = energy
    for axis, (size, along) in enumerate(zip(layer.kernel_size, frequencies, strict=True)):
        if size > 1:
            below = below.index_select(axis, (along.abs() <= nyquist_frequency(size)).nonzero()[:, 0])
    return float(1 - below.sum() / energy.sum().clamp_min(1e-300))


@torch.no_grad()
def frequencies_by_layer(model: nn.Module) -> list[dict[str, Any]]:
    """How high the kernels of each continuous convolution reach, as fractions of training's Nyquist frequency.

    Returns:
        Dicts of `layer`; `kernel_limit` and `limit`, the bound without and with the mask (None where none is known); and
        `energy_above_nyquist`.
    """
    rows = []
    for name, layer in model.named_modules():
        if not isinstance(layer, ContinuousConv):
            continue
        row: dict[str, Any] = {"layer": name or "layer"}
        for key, include_mask in (("kernel_limit", False), ("limit", True)):
            limit = float(max_frequency(layer, include_mask=include_mask, of_nyquist=True)) * layer.ratio
            row[key] = limit if limit < float("inf") else None
        rows.append({**row, "energy_above_nyquist": energy_above_nyquist(layer)})
    return rows


@torch.no_grad()
def plot_spectra(model: nn.Module, path: Path, *, ratio: float = 2.0, layers: int = 4) -> bool:
    """Draw the strongest kernel of some layers and its spectrum, as sampled in training and more densely.

    Solid lines show the Nyquist frequency of training, dotted red ones the highest frequency that is predicted for the layer.

    Args:
        model: any module; continuous convolutions over one or two axes are drawn.
        path: the picture, in a format that matplotlib knows.
        ratio: how many times as densely the second time.
        layers: how many, evenly spaced over depth.

    Returns:
        Whether there was a layer to draw.

    Source:
        FlexConv, Fig. 8.
    """
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, ContinuousConv) and m.ndim <= 2 and m.kernel_size is not None]
    if not found:
        return False
    from matplotlib.figure import Figure

    chosen = evenly_spaced(found, layers)
    figure = Figure(figsize=(9.5, 2.3 * len(chosen) + 0.5), layout="constrained")
    for row, (name, layer) in zip(figure.subplots(len(chosen), 4, squeeze=False), chosen, strict=True):
        out_channel, in_channel = strongest_kernel(layer)
        assert layer.kernel_size is not None
        limit = max_frequency(layer, per_axis=True).cpu().tolist()
        nyquist = [nyquist_frequency(size) for size in layer.kernel_size]
        multiple = max(f / n for f, n in zip(limit, nyquist, strict=True) if n) if max(nyquist) else 0.0
        bare = float(max_frequency(layer, include_mask=False, of_nyquist=True)) * layer.ratio
        shown = f"{multiple:.2g} x Nyquist,\n{bare:.2g} without mask" if multiple < math.inf else "unknown"
        for columns, density in ((row[:2], 1.0), (row[2:], ratio)):
            kernel = uncropped_kernel(layer, density, out_channel, in_channel)
            spectrum, frequencies = kernel_spectrum(kernel, layer.kernel_size, density)
            _draw_kernel(columns[0], kernel, layer, density)
            _draw_spectrum(columns[1], spectrum.abs(), frequencies, nyquist, limit)
            columns[0].set_title(f"{' x '.join(map(str, kernel.shape))} taps", fontsize=8)
            columns[1].set_title("its spectrum", fontsize=8)
            columns[0].set_xlabel(("samples from the current one", "samples across")[layer.ndim - 1], fontsize=6)
            columns[1].set_xlabel(
                ("cycles per unit; the kernel has 2", "cycles per unit across; the kernel has 2")[layer.ndim - 1], fontsize=6
            )
            columns[0].set_ylabel(("weight", "samples down")[layer.ndim - 1], fontsize=6)
            columns[1].set_ylabel(("magnitude", "cycles per unit down")[layer.ndim - 1], fontsize=6)
            for axis in columns:
                axis.tick_params(labelsize=6)
        row[0].set_ylabel(f"{name}\n{energy_above_nyquist(layer):.1%} above Nyquist\nlimit {shown}", fontsize=6)
    figure.suptitle(
        "strongest kernels with their masks; solid: Nyquist in training; red dotted: predicted limit, where within the picture",
        fontsize=8,
    )
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
    return True


def _draw_kernel(axis: Any, kernel: Tensor, layer: ContinuousConv, density: float) -> None:
    if layer.ndim == 1:
        assert layer.kernel_size is not None
        before, _ = taps_around(layer.kernel_size[0], causal=layer.causal, ratio=density)
        samples, values = np.arange(len(kernel)) - before, kernel.numpy()
        seen = samples[np.abs(values) >= 0.01 * (np.abs(values).max() or 1.0)]
        axis.plot(samples, values, linewidth=1)
        axis.axhline(0, color="0.6", linewidth=0.5)
        if len(seen) > 1:
            margin = 0.05 * (seen[-1] - seen[0])
            axis.set_xlim(seen[0] - margin, seen[-1] + margin)
        return
    height = kernel.abs().max().item() or 1.0
    axis.imshow(kernel.numpy(), cmap="RdBu_r", vmin=-height, vmax=height, interpolation="nearest")


def _draw_spectrum(axis: Any, spectrum: Tensor, frequencies: list[Tensor], nyquist: list[float], limit: list[float]) -> None:
    if len(frequencies) == 1:
        positive = frequencies[0] > 0  # a real kernel's other half is the same
        axis.plot(frequencies[0][positive].numpy(), spectrum[positive].numpy(), linewidth=1)
        for value, style in ((nyquist[0], "-k"), (limit[0], ":r")):
            if value <= 1.05 * float(frequencies[0].max()):
                axis.axvline(value, color=style[1], linestyle=style[0], linewidth=1)
        if nyquist[0] > LONG:  # of a long kernel all there is lies next to 0
            axis.set(xscale="log", yscale="log")
        return
    rows, columns = frequencies
    extent = (float(columns[0]), float(columns[-1]), float(rows[-1]), float(rows[0]))
    axis.imshow(spectrum.numpy(), cmap="magma", extent=extent, aspect="auto", interpolation="nearest")
    for (down, across), colour, style in ((nyquist, "white", "-"), (limit, "red", ":")):
        if max(down, across) < float("inf"):
            axis.plot(
                [-across, across, across, -across, -across], [-down, -down, down, down, -down], color=colour, linestyle=style, linewidth=1
            )
    axis.set(xlim=extent[:2], ylim=extent[2:])  # a limit above what is drawn is not to be seen
