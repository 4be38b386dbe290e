"""Band limits, and the penalty on exceeding Nyquist."""

import functools
import json
import math

import pytest
import torch
from conftest import GOLDEN, Golden

import flexseq as fs

PUBLISHED = json.loads((GOLDEN / "alias_penalty.json").read_text())


def original(kernel_size=17):
    case = Golden("FlexNet")
    model = fs.FlexNet(depth=3, width=12, width_factors=[1.0, 1.5, 1.5], image_size=16)
    fs.compat.load_flexconv(model, case.state)
    for layer in model.modules():
        if isinstance(layer, fs.FlexConv2d):
            layer.kernel_size = (kernel_size, kernel_size)
    return model


@pytest.mark.parametrize("key", PUBLISHED["penalties"])
def test_penalty_is_the_originals(key):
    target, method, size = key.split("|")
    value = fs.alias_penalty(original(int(size)), include_mask=target == "gabor+mask", method=method, as_published=True)
    assert value.item() == pytest.approx(PUBLISHED["penalties"][key], rel=1e-4)


def test_frequencies_are_the_originals():
    layers = [layer for layer in original().modules() if isinstance(layer, fs.FlexConv2d)]
    for layer, filters, mask in zip(layers, PUBLISHED["frequencies"], PUBLISHED["mask_frequencies"], strict=True):
        ours = [fs.max_frequency(g, as_published=True).item() for g in layer.kernel_network.filters]
        assert ours == pytest.approx(filters, rel=1e-5)
        assert fs.max_frequency(layer.mask).item() == pytest.approx(mask, rel=1e-5)
        assert fs.max_frequency(layer, as_published=True).item() == pytest.approx(sum(filters) + mask, rel=1e-5)
        assert fs.max_frequency(layer) <= fs.max_frequency(layer, as_published=True)


def energy_above(layer, limits):
    """The share of an uncropped, densely sampled kernel's energy above a limit on any axis, the worst of the kernels."""
    half, count = 3.0, {1: 4096, 2: 640}[layer.ndim]
    axis = (torch.arange(count, dtype=torch.float64) - count / 2) * (2 * half / count)
    positions = torch.stack(torch.meshgrid(*[axis] * layer.ndim, indexing="ij"))
    kernels = layer.kernel_network(positions) * layer.mask(positions)
    spectrum = torch.fft.fftn(kernels, dim=list(range(1, layer.ndim + 1))).abs().square()
    frequencies = torch.fft.fftfreq(count, 2 * half / count, dtype=torch.float64).abs()
    outside = torch.zeros([count] * layer.ndim, dtype=torch.bool)
    for i, limit in enumerate(limits.tolist()):
        outside |= (frequencies > limit).view([-1 if j == i else 1 for j in range(layer.ndim)])
    assert limits.max() < frequencies.max()  # or there would be nothing above
    return (spectrum[:, outside].sum(1) / spectrum.flatten(1).sum(1)).max().item()


NETWORKS = {
    "magnet": functools.partial(fs.kernels.MAGNet, input_scale=10.0),
    "gabor": functools.partial(fs.kernels.Gabor, input_scale=10.0),
    "fourier": functools.partial(fs.kernels.Fourier, input_scale=20.0),
    "steerable": functools.partial(fs.kernels.MAGNet, input_scale=10.0, steerable=True),
}


@pytest.mark.parametrize(("sigma_cut", "share"), [(2.0, 0.05), (4.0, 1e-3)])
@pytest.mark.parametrize(("name", "ndim"), [("magnet", 1), ("gabor", 1), ("fourier", 1), ("magnet", 2), ("gabor", 2), ("steerable", 2)])
def test_little_energy_lies_above_the_limit(name, ndim, sigma_cut, share):
    options = {"rotated_mask": True} if name == "steerable" else {}
    layer = (fs.FlexConv1d if ndim == 1 else fs.FlexConv2d)(2, 4, 33, kernel=NETWORKS[name], mask_sigma=0.3, **options).double()
    with torch.no_grad():
        if ndim == 2:
            layer.mask.sigma.copy_(torch.tensor([0.25, 0.5]))
        if options:
            layer.mask.angle.fill_(0.7)
    limits = fs.max_frequency(layer, sigma_cut=sigma_cut, per_axis=True)
    assert energy_above(layer, limits) < share


def test_njet_limit_holds():
    layer = fs.NJetConv1d(1, 4, 101, order=3, sigma=0.1).double()
    layer.mask.threshold = 0.0
    kernel = torch.nn.functional.pad(layer.sample_kernel().flatten(0, 1), (0, 4096 - 101))
    spectrum = torch.fft.rfft(kernel).abs().square()
    frequencies = torch.fft.rfftfreq(4096, 2 / 100, dtype=torch.float64)
    above = frequencies > fs.max_frequency(layer)
    assert above.any()
    assert (spectrum[:, above].sum(1) / spectrum.sum(1)).max() < 0.05
    assert fs.max_frequency(layer, include_mask=False) == fs.max_frequency(layer)


@pytest.mark.parametrize("kernel", ["siren", "mlp"])
def test_networks_without_a_bound_say_so(kernel):
    model = fs.FlexTCN(depth=1, kernel=kernel, kernel_size=9)
    assert math.isinf(fs.max_frequency(model.blocks[0].conv1))
    with pytest.raises(fs.InputError, match=r"known highest frequency, got (SIREN|MLP) in blocks\.0\.conv1"):
        fs.alias_penalty(model)


def test_gradients_push_frequencies_down():
    layer = fs.FlexConv2d(2, 2, 9)
    before = fs.max_frequency(layer, include_mask=False).item()
    penalty = fs.alias_penalty(layer, include_mask=True)
    penalty.backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    assert fs.max_frequency(layer, include_mask=False).item() < before
    assert layer.mask.sigma.grad is not None


def test_at_the_resolution_that_the_model_is_set_to():
    layer = fs.FlexConv2d(2, 2, 17)
    coarse, share = fs.alias_penalty(layer), fs.max_frequency(layer, of_nyquist=True)
    fs.set_resolution(layer, 2)
    assert fs.alias_penalty(layer) < coarse
    assert fs.max_frequency(layer, of_nyquist=True).item() == pytest.approx(share.item() / 2)
    assert fs.nyquist_frequency(17) == 4.0


def test_each_axis_has_its_own_limit():
    layer = fs.FlexConv2d(2, 2, (9, 33))
    per_axis = fs.max_frequency(layer, per_axis=True)
    assert per_axis.shape == (2,)
    assert fs.max_frequency(layer) == per_axis.max()
    shares = fs.max_frequency(layer, per_axis=True, of_nyquist=True)
    torch.testing.assert_close(shares, per_axis / torch.tensor([2.0, 8.0]))


def test_bad_arguments_are_named():
    with pytest.raises(fs.InputError, match="method"):
        fs.alias_penalty(fs.FlexNet(depth=1), method="both")
    with pytest.raises(fs.InputError, match="got Linear"):
        fs.max_frequency(torch.nn.Linear(1, 1))
    with pytest.raises(fs.InputError, match="no kernel size yet"):
        fs.alias_penalty(fs.FlexConv1d(1, 1))
    with pytest.raises(fs.InputError, match="expected the kernel_size whose Nyquist frequency counts"):
        fs.max_frequency(fs.FlexConv1d(1, 1).mask, of_nyquist=True)
    with pytest.raises(fs.InputError, match="expected no kernel_size"):
        fs.max_frequency(fs.FlexConv1d(1, 1, 9), of_nyquist=True, kernel_size=9)
    with pytest.raises(fs.InputError, match="at least 1 for 1 axes"):
        fs.max_frequency(fs.FlexConv1d(1, 1).mask, of_nyquist=True, kernel_size=(9, 9))


@pytest.mark.parametrize("kernel_size", [9, (9, 33)])
def test_parts_as_a_fraction_of_nyquist(kernel_size):
    layer = fs.FlexConv2d(2, 3, kernel_size)
    options = {"per_axis": True, "of_nyquist": True}
    parts = (layer.kernel_network, layer.mask)
    network, mask = (fs.max_frequency(part, kernel_size=kernel_size, **options) for part in parts)
    torch.testing.assert_close(network + mask, fs.max_frequency(layer, **options))
    of_filters = [fs.max_frequency(one, kernel_size=kernel_size, **options) for one in layer.kernel_network.filters]
    torch.testing.assert_close(sum(of_filters), network)


def test_an_axis_of_one_tap_pays_nothing():
    layer = fs.FlexConv2d(2, 2, (1, 9))
    per_axis = fs.max_frequency(layer, per_axis=True, of_nyquist=True)
    assert per_axis[0] == 0
    assert per_axis[1] > 0
    assert fs.alias_penalty(layer).isfinite()
    assert fs.alias_penalty(torch.nn.ReLU()) == 0


def test_model_without_continuous_convolutions_pays_nothing():
    assert fs.alias_penalty(torch.nn.Linear(2, 2)) == 0


@pytest.mark.parametrize("kernel", ["magnet", "gabor", "fourier"])
def test_kernels_can_start_below_nyquist(kernel):
    model = fs.FlexNet(depth=1, width=4, kernel=kernel, image_size=16)
    assert fs.alias_penalty(model) > 0
    assert fs.limit_frequencies(model) is model
    for layer in (model.conv, model.blocks[0].conv1):
        assert fs.max_frequency(layer, include_mask=False, of_nyquist=True).item() <= 1 + 1e-5
    assert fs.alias_penalty(model).item() < 1e-6
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fs.limit_frequencies(model)  # what is below stays
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_limiting_keeps_what_is_low_and_refuses_what_is_unknown():
    layer = fs.FlexConv1d(1, 1, 5001)  # a Nyquist frequency far above any filter's
    before = [parameter.clone() for parameter in layer.parameters()]
    fs.limit_frequencies(layer)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    mixed = torch.nn.Sequential(fs.FlexConv2d(1, 1, 9), fs.FlexConv2d(1, 1, 9, kernel="siren"))
    before = [parameter.clone() for parameter in mixed.parameters()]
    with pytest.raises(fs.InputError, match="known highest frequency, got SIREN in 1"):
        fs.limit_frequencies(mixed)
    assert all(torch.equal(a, b) for a, b in zip(before, mixed.parameters(), strict=True))
