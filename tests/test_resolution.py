"""A network at another sampling rate."""

import copy
import functools
import math

import pytest
import torch
from conftest import Golden, relative

import flexseq as fs
from flexseq.positions import kept_taps, tap_positions, taps_around

smooth = functools.partial(fs.kernels.Gabor, input_scale=4.0)  # far below Nyquist at every size here


def band_limited(length, ratio, ndim=1):
    """A few slow waves under a bump, the same function whatever the rate: (1, 2, *grid)."""
    count = round((length - 1) * ratio) + 1
    t = torch.arange(count, dtype=torch.float64) / ratio - (length - 1) / 2
    bump = torch.exp(-0.5 * (t / (length / 14)).square())
    rows = [bump * torch.cos(0.2 * t + 0.3), bump * torch.sin(0.31 * t)]
    if ndim == 1:
        return torch.stack(rows)[None]
    return torch.stack([row[:, None] * bump for row in rows])[None]


@pytest.mark.parametrize("kernel_size", [41, 40])
@pytest.mark.parametrize(("ratio", "every"), [(2.0, (2, 1)), (3.0, (3, 1)), (1.5, (3, 2)), (0.5, (1, 2))])
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_smooth_centred_layer_gives_the_same_function(kernel_size, ratio, every, method):
    layer = fs.FlexConv1d(2, 3, kernel_size, kernel=smooth, mask_sigma=0.15, mask_threshold=0.0, method=method).double()
    y = layer(band_limited(141, 1.0))
    fs.set_resolution(layer, ratio)
    fine = layer(band_limited(141, ratio))
    assert relative(fine[..., :: every[0]], y[..., :: every[1]]) < (1e-6 if ratio >= 1 else 1e-4)  # fewer taps hold less of a kernel


def test_smooth_centred_layer_over_images_gives_the_same_function():
    layer = fs.FlexConv2d(2, 3, 25, kernel=smooth, mask_sigma=0.15, mask_threshold=0.0).double()
    y = layer(band_limited(61, 1.0, 2))
    fs.set_resolution(layer, 2)
    assert relative(layer(band_limited(61, 2.0, 2))[..., ::2, ::2], y) < 1e-6


@pytest.mark.parametrize("ratio", [2.0, 4.0])
@pytest.mark.parametrize("options", [{"causal": True}, {"causal": False}, {"causal": True, "mask_threshold": 0.0}])
def test_cropped_or_causal_layer_gives_nearly_the_same_function(ratio, options):
    layer = fs.FlexConv1d(2, 3, 141, kernel=smooth, mask_sigma=0.3, **options).double()
    y = layer(band_limited(141, 1.0))
    fs.set_resolution(layer, ratio)
    assert relative(layer(band_limited(141, ratio))[..., :: int(ratio)], y) < 2e-2


@pytest.mark.parametrize(("ratio", "every"), [(2.0, (2, 1)), (3.0, (3, 1)), (1.5, (3, 2)), (1.3, (13, 10))])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["ck", "open mask"])
def test_uncropped_kernels_that_end_in_a_jump_give_nearly_the_same_function(ratio, every, causal, kind):
    torch.manual_seed(0)
    options = {"kernel": smooth, "causal": causal}
    layer = fs.CKConv1d(2, 3, 41, **options) if kind == "ck" else fs.FlexConv1d(2, 3, 41, mask_sigma=2.0, **options)
    layer = layer.double()
    y = layer(band_limited(141, 1.0))
    fs.set_resolution(layer, ratio)
    assert relative(layer(band_limited(141, ratio))[..., :: every[0]], y[..., :: every[1]]) < 2e-2


def test_jump_at_the_present_tap_is_what_the_weight_is_for():
    """Without it the outputs above differ by more than they may: half a sample of the kernel's peak."""
    layer = fs.FlexConv1d(2, 3, 141, kernel=smooth, mask_sigma=0.3, causal=True).double()
    y = layer(band_limited(141, 1.0))
    fs.set_resolution(layer, 4.0)
    kernel = layer.sample_kernel()
    kernel[..., -1] /= (4 + 1) / 2
    fine = fs.functional.long_conv(band_limited(141, 4.0), kernel, layer.bias, causal=True)
    assert relative(fine[..., ::4], y) > 2e-2


def test_wrong_ratio_gives_something_else():
    layer = fs.FlexConv1d(2, 3, 41, kernel=smooth, mask_sigma=0.15, mask_threshold=0.0).double()
    y = layer(band_limited(141, 1.0))
    assert relative(layer(band_limited(141, 2.0))[..., ::2], y) > 0.1


def test_taps_lie_where_design_says():
    assert taps_around(9, causal=True, ratio=2.0) == (16, 0)
    assert taps_around(9, causal=False, ratio=1.3) == (5, 5)
    assert taps_around(1, causal=False, ratio=5.0) == (0, 0)
    torch.testing.assert_close(tap_positions((5,), ratio=2.0), torch.linspace(-1, 1, 9)[None])
    coarse, fine = tap_positions((6,), dtype=torch.float64), tap_positions((6,), ratio=2.0, dtype=torch.float64)
    assert torch.equal(fine[:, ::2], coarse[:, : fine[:, ::2].shape[1]])
    assert torch.equal(tap_positions((7,), causal=True, ratio=3.0)[:, ::3], tap_positions((7,), causal=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7, 2.0, 5.0])
@pytest.mark.parametrize("size", [1, 2, 16, 33])
def test_crop_keeps_what_lies_within_the_cut(causal, ratio, size):
    positions = tap_positions((size,), causal=causal, ratio=ratio, dtype=torch.float64)[0].tolist()
    before, _ = taps_around(size, causal=causal, ratio=ratio)
    for sigma in (0.01, 0.11, 0.32, 0.9):
        ((start, stop),) = kept_taps((size,), [float(causal)], [sigma], threshold=0.1, causal=causal, ratio=ratio)
        reach = sigma * 2.1459660262893472
        inside = [i for i, p in enumerate(positions) if (p > 1 - reach if causal else abs(p) < reach) or reach > (2 if causal else 1)]
        opposite = 0 if causal or size % 2 else min(math.ceil(ratio), len(positions) - 1 - before)
        assert (start, stop) == (min([*inside, before]), max([*inside, before + opposite]) + 1)


@pytest.mark.parametrize("options", [{}, {"method": "fft"}])
def test_originals_network_at_twice_the_resolution(options):
    case, weights = Golden("FlexNet_highres"), Golden("FlexNet")
    model = fs.FlexNet(depth=3, width=12, width_factors=[1.0, 1.5, 1.5], image_size=16, **options).eval()
    fs.compat.load_flexconv(model, weights.state)
    assert fs.set_resolution(model, 2) == []
    assert relative(model(case.arrays["x"]), case.arrays["logits"]) < 1e-5


def test_originals_layer_at_twice_the_resolution():
    case = Golden("flexconv2d_highres")
    layer = fs.FlexConv2d(3, 4, 17, kernel=case.kernel("magnet")).eval()
    fs.compat.load_flexconv(
        layer, {**case.state, "train_length": torch.tensor([17])}
    )  # the case gives the number of taps at twice the rate
    fs.set_resolution(layer, 2)
    assert relative(layer.sample_kernel(), case.arrays["kernel"]) < 1e-5
    assert relative(layer(case.arrays["x"]), case.arrays["y"]) < 1e-5


def test_block_goes_back_and_names_what_stays():
    model = fs.FlexTCN(depth=1, conv="conv", kernel_size=3)
    assert [name.rpartition(".")[2] for name in fs.set_resolution(model, 2)] != []
    model = fs.FlexTCN(2, depth=1, kernel_size=20).eval()
    x = torch.randn(1, 2, 20)
    with torch.no_grad():
        y = model(x)
        with fs.set_resolution(model, 2) as unchanged:
            assert unchanged == []
            assert model.blocks[0].conv1.ratio == 2
            assert relative(model(x), y) > 1e-3  # the kernel kept from before is not used
        assert torch.equal(model(x), y)
        with pytest.raises(ZeroDivisionError), fs.set_resolution(model, 3):
            raise ZeroDivisionError
        assert model.blocks[0].conv1.ratio == 1


def test_resolution_stays_in_the_state():
    layer = fs.FlexConv1d(2, 2, 31, mask_sigma=0.4)
    fs.set_resolution(layer, 2.5)
    other = fs.FlexConv1d(2, 2, 31, mask_sigma=0.4)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 50)
    assert other.ratio == copy.deepcopy(layer).ratio == 2.5
    assert torch.equal(other(x), layer(x))
    assert "ratio=2.5" in repr(layer)
    other.load_state_dict(fs.FlexConv1d(2, 2, 31).state_dict())
    assert other.ratio == 1


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf")])
def test_ratio_must_be_above_0_and_nothing_changes(ratio):
    model = fs.FlexTCN(depth=1, kernel_size=20)
    fs.set_resolution(model, 2)
    with pytest.raises(fs.InputError, match="ratio above 0"):
        fs.set_resolution(model, ratio)
    assert model.blocks[0].conv1.ratio == 2


def test_ratio_is_checked_where_there_is_nothing_to_change():
    with pytest.raises(fs.InputError, match="ratio above 0, got 0"):
        fs.set_resolution(fs.CIFARResNet(depth=8), 0)


def test_state_from_before_there_were_resolutions():
    layer = fs.FlexConv2d(2, 2, (5, 7))
    state = layer.state_dict()
    del state["kernel_size_code"]
    layer.load_state_dict({**state, "_extra_state": torch.tensor([9, 3])})
    assert (layer.kernel_size, layer.ratio) == ((9, 3), 1.0)
    layer.load_state_dict({**state, "_extra_state": torch.tensor([9, 4, 1.5])})
    assert (layer.kernel_size, layer.ratio) == ((9, 4), 1.5)
    with pytest.raises(fs.InputError, match="a state of 2 axes"):
        layer.load_state_dict({**state, "_extra_state": torch.tensor([9])})


def test_layer_without_a_size_is_refused():
    with pytest.raises(fs.InputError, match="no kernel size yet"):
        fs.set_resolution(fs.FlexTCN(depth=1), 2)


def test_training_at_another_resolution():
    layer = fs.FlexConv2d(2, 2, 9, mask_sigma=0.5)
    fs.set_resolution(layer, 2)
    layer(torch.randn(1, 2, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert float(layer.kernel_norm()) == pytest.approx(float(layer.sample_kernel().norm()), rel=1e-5)


@pytest.mark.parametrize("ratio", ["2", None, True, float("nan")])
def test_ratios_that_are_no_numbers_are_named(ratio):
    with pytest.raises(fs.InputError, match="expected a ratio above 0, got"):
        fs.set_resolution(fs.FlexConv1d(1, 1, 9), ratio)
