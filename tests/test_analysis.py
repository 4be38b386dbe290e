"""Figures of what a network learned, and their pictures."""

import math

import numpy as np
import pytest
import torch

import flexseq as fs
from flexseq.analysis.masks import masks_over_depth, plot_masks
from flexseq.analysis.spectra import energy_above_nyquist, frequencies_by_layer, kernel_spectrum, plot_spectra, strongest_kernel
from flexseq.analysis.steps import kernel_steps, plot_steps


@pytest.mark.parametrize(("layer", "size"), [(fs.FlexConv1d(2, 3, 21, mask_sigma=0.3), 21), (fs.FlexConv2d(2, 3, 9, mask_sigma=0.3), 9)])
def test_energy_above_nyquist_is_what_the_sampled_kernels_have_there(layer, size):
    ratio = 4
    with fs.set_resolution(layer, ratio):
        kernels = layer.sample_kernel(crop=False).detach().double().numpy()
    axes = tuple(range(2, kernels.ndim))
    for axis in axes:  # all taps count alike, but for the ends
        ends = np.ones(kernels.shape[axis])
        ends[[0, -1]] = 2 / (ratio + 1)
        kernels = kernels * ends.reshape([-1 if i == axis else 1 for i in range(kernels.ndim)])
    energy = np.abs(np.fft.fftn(kernels, axes=axes)) ** 2
    frequencies = np.fft.fftfreq(kernels.shape[-1], 2 / (size - 1) / ratio)
    inside = np.abs(frequencies) <= (size - 1) / 4
    below = energy[:, :, inside] if len(axes) == 1 else energy[:, :, inside][..., inside]
    assert energy_above_nyquist(layer, ratio=ratio) == pytest.approx(1 - below.sum() / energy.sum(), abs=1e-6)
    assert layer.ratio == 1


def test_energy_of_a_causal_kernel_does_not_depend_on_how_densely_it_is_sampled():
    """A Gaussian that ends at its peak: its spectrum falls as 1 / f, but is not flat, as a weighted present tap would make it."""
    layer = fs.FlexConv1d(1, 1, 65, mask_sigma=0.3, causal=True)
    with torch.no_grad():
        layer.kernel_network.readout.weight.zero_()
        layer.kernel_network.readout.bias.fill_(1.0)
    x = np.linspace(-1, 1, 64 * 256 + 1)
    energy = np.abs(np.fft.rfft(np.exp(-0.5 * ((x - 1) / 0.3) ** 2))) ** 2
    energy[0] /= 2  # of the two sides of a spectrum there is one zero
    frequencies = np.fft.rfftfreq(len(x), x[1] - x[0])
    expected = energy[frequencies > fs.nyquist_frequency(65)].sum() / energy.sum()
    for ratio in (8, 16):
        assert energy_above_nyquist(layer, ratio=ratio) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("sigma", [0.3, 0.03, 0.02])
def test_energy_of_a_gaussian_above_nyquist(sigma):
    layer = fs.FlexConv1d(1, 1, 33, mask_sigma=sigma)
    with torch.no_grad():
        readout = layer.kernel_network.readout
        readout.weight.zero_()
        readout.bias.fill_(1.0)  # the mask alone
    expected = math.erfc(2 * math.pi * fs.nyquist_frequency(33) * sigma)
    assert energy_above_nyquist(layer) == pytest.approx(expected, rel=0.2, abs=1e-6)


def test_strongest_kernel_and_its_steps():
    layer = fs.FlexConv2d(3, 4, 17, mask_sigma=0.2)
    kernels = layer.sample_kernel().detach()
    out_channel, in_channel = strongest_kernel(layer)
    assert kernels[out_channel, in_channel].norm() == kernels.flatten(2).norm(dim=2).max()
    network, mask, product, applied = kernel_steps(layer)
    assert network.shape == mask.shape == product.shape == (17, 17)
    torch.testing.assert_close(product, network * mask)
    torch.testing.assert_close(product, layer.sample_kernel(crop=False)[out_channel, in_channel])
    torch.testing.assert_close(applied, kernels[out_channel, in_channel])
    with fs.set_resolution(layer, 2):
        _, _, fine, applied_finely = kernel_steps(layer)
        edge = (33 - applied_finely.shape[0]) // 2
        torch.testing.assert_close(applied_finely, fine[edge:-edge, edge:-edge])
    edge = (17 - applied.shape[0]) // 2
    torch.testing.assert_close(applied, product[edge:-edge, edge:-edge])


def test_spectrum_of_a_cosine_peaks_at_its_frequency():
    x = torch.linspace(-1, 1, 65)
    kernel = torch.cos(2 * torch.pi * 3 * x) * torch.exp(-0.5 * (x / 0.3) ** 2)
    spectrum, (frequencies,) = kernel_spectrum(kernel, (65,), 1.0)
    assert abs(float(frequencies[spectrum.abs().argmax()])) == pytest.approx(3, abs=0.1)


def test_figures_over_depth():
    model = fs.FlexNet(depth=1, width=4, image_size=8)
    with torch.no_grad():
        model.blocks[0].conv1.mask.sigma.copy_(torch.tensor([-0.2, 0.4]))
    rows = masks_over_depth(model)
    assert [row["depth"] for row in rows] == [1, 2, 3]
    assert rows[1]["sigma"] == pytest.approx([0.2, 0.4])
    frequencies = frequencies_by_layer(model)
    assert [row["layer"] for row in frequencies] == ["conv", "blocks.0.conv1", "blocks.0.conv2"]
    for row in frequencies:
        assert row["kernel_limit"] < row["limit"]
        assert 0 <= row["energy_above_nyquist"] <= 1
    assert frequencies_by_layer(fs.FlexNet(depth=1, width=4, kernel="siren"))[0]["limit"] is None
    with fs.set_resolution(model, 2):
        assert frequencies_by_layer(model)[0]["limit"] == pytest.approx(frequencies[0]["limit"])


@pytest.mark.parametrize("plot", [plot_masks, plot_steps, plot_spectra])
def test_pictures(plot, tmp_path):
    for name, model in (
        ("image", fs.FlexNet(depth=1, width=4, image_size=8)),
        ("siren", fs.FlexNet(depth=1, width=4, kernel="siren", image_size=8)),
        ("mixed", torch.nn.Sequential(fs.FlexConv1d(1, 1, 9), fs.FlexConv2d(1, 1, 9))),
        ("series", fs.FlexTCN(depth=1, width=4, kernel_size=50)),
    ):
        assert plot(model, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert not plot(torch.nn.Linear(2, 2), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
