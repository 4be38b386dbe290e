"""Every case that the original implementation computed is reproduced from its weights."""

import functools

import pytest
import torch
from conftest import INDEX, Golden, relative

import flexseq as fs

NETWORKS = [name for name in INDEX if name.startswith("kernelnet_")]
LAYERS = [name for name in INDEX if name.startswith(("ckconv", "flexconv")) and "highres" not in name]


@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_network_gives_the_originals_values(name):
    case = Golden(name)
    factory = case.kernel(name.split("_")[1])
    if "steerable" in name:
        factory = functools.partial(factory, steerable=True)
    network = factory(case.config["ndim"], case.config["out_channels"])
    fs.compat.load_flexconv(network, case.state)
    assert relative(network(case.arrays["positions"][0]), case.arrays["values"][0]) < 1e-5


@pytest.mark.parametrize("method", ["direct", "fft", "auto"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_gives_the_originals_kernel_and_output(name, method):
    case = Golden(name)
    config = case.config
    kind = getattr(fs, f"{'FlexConv' if name.startswith('flex') else 'CKConv'}{config['ndim']}d")
    layer = kind(
        config["in_channels"],
        config["out_channels"],
        None if config["kernel_size"] == "same" else config["kernel_size"],
        causal=config["ndim"] == 1,
        kernel=case.kernel(config["kernel"]),
        method=method,
    ).eval()
    fs.compat.load_flexconv(layer, case.state)
    assert relative(layer.sample_kernel(), case.arrays["kernel"]) < 1e-5
    assert relative(layer(case.arrays["x"]), case.arrays["y"]) < 1e-5


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_flextcn_gives_the_originals_logits(method):
    case = Golden("FlexTCN")
    model = fs.FlexTCN(depth=case.config["depth"], width=case.config["width"], method=method).eval()
    fs.compat.load_flexconv(model, case.state)
    assert relative(model(case.arrays["x"]), case.arrays["logits"]) < 1e-5


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_flexnet_gives_the_originals_logits(method):
    case = Golden("FlexNet")
    factors = [1.0, 1.5, 1.5]
    model = fs.FlexNet(depth=3, width=case.config["width"], width_factors=factors, image_size=16, method=method).eval()
    fs.compat.load_flexconv(model, case.state)
    assert relative(model(case.arrays["x"]), case.arrays["logits"]) < 1e-5


@pytest.mark.parametrize("name", ["FlexTCN", "FlexNet"])
def test_golden_logits_are_not_the_bias_alone(name):
    """The cases above would say nothing if no feature reached the classifier."""
    case = Golden(name)
    assert (case.arrays["logits"].std(0) > 0).all()


def test_loading_names_what_is_missing_and_what_is_left_over():
    case = Golden("flexconv1d_cropped")
    state = dict(case.state)
    state["Kernel.extra.weight"] = state.pop("Kernel.output_linear.bias")
    layer = fs.FlexConv1d(3, 4, causal=True, kernel=case.kernel("magnet"))
    with pytest.raises(fs.InputError, match=r"wants \['kernel_network.readout.bias'\].*\['kernel_network.extra.weight'\]"):
        fs.compat.load_flexconv(layer, state)


def test_loading_refuses_another_width_by_name():
    case = Golden("flexconv1d_cropped")
    layer = fs.FlexConv1d(3, 5, causal=True, kernel=case.kernel("magnet"))
    with pytest.raises(fs.InputError, match=r"expected \S+ of shape \(5,\), got \(4,\)"):
        fs.compat.load_flexconv(layer, dict(case.state))


def test_loaded_kernel_size_is_the_originals():
    case = Golden("flexconv2d_cropped")
    layer = fs.FlexConv2d(3, 4, kernel=case.kernel("magnet"))
    assert fs.compat.load_flexconv(layer, case.state).kernel_size == (17, 17)
    assert torch.equal(layer.mask.sigma.detach(), case.state["mask_params"][:, 1])


def test_kernel_at_another_resolution_is_the_originals_but_for_its_factor():
    """flexconv2d_highres is a layer of 17 taps run at 33, its values scaled by the rate: here by hand."""
    case = Golden("flexconv2d_highres")
    layer = fs.FlexConv2d(3, 4, 33, kernel=case.kernel("magnet")).eval()
    fs.compat.load_flexconv(layer, {**case.state, "train_length": torch.tensor([33])})
    kernel = layer.sample_kernel() * case.config["sampling_rate_norm"]
    assert relative(kernel, case.arrays["kernel"]) < 1e-5
    for method in ("direct", "fft"):
        y = fs.functional.long_conv(case.arrays["x"], kernel, layer.bias, method=method)
        assert relative(y, case.arrays["y"]) < 1e-5


def test_loading_refuses_another_omega_0_and_another_threshold():
    case = Golden("flexconv1d_siren")
    for options in (
        {"kernel": functools.partial(case.kernel("siren"), omega_0=10.0)},
        {"kernel": case.kernel("siren"), "mask_threshold": 0.2},
    ):
        with pytest.raises(fs.InputError, match="as the model was built with, got"):
            fs.compat.load_flexconv(fs.FlexConv1d(3, 4, causal=True, **options), case.state)


def test_loading_a_deeper_network_is_refused_by_name():
    with pytest.raises(fs.InputError, match=r"has no place for \['blocks\.1\."):
        fs.compat.load_flexconv(fs.FlexTCN(depth=1), Golden("FlexTCN").state)
