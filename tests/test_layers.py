"""What is particular to CKConv and FlexConv."""

import functools

import pytest
import torch

import flexseq as fs
from flexseq.functional import long_conv
from flexseq.nn.forward_pass import read_crops
from flexseq.positions import tap_positions
from flexseq.training.parameters import kernel_penalty


def test_flexconv_is_network_times_mask_cropped():
    layer = fs.FlexConv2d(2, 3, 15, mask_sigma=0.2)
    with torch.no_grad():
        layer.mask.mean.copy_(torch.tensor([0.1, -0.2]))
    positions = tap_positions((15, 15))
    x, y = positions
    mask = torch.exp(-0.5 * ((x - 0.1) / 0.2) ** 2) * torch.exp(-0.5 * ((y + 0.2) / 0.2) ** 2)
    whole = (layer.kernel_network(positions) * mask).view(3, 2, 15, 15)
    kernel = layer.sample_kernel()
    rows, columns = kernel.shape[2:]
    assert 1 < rows < columns < 15
    assert rows % 2 == columns % 2 == 1
    a, b = (15 - rows) // 2, (15 - columns) // 2
    torch.testing.assert_close(kernel, whole[:, :, a : 15 - a, b : 15 - b])
    signal = torch.randn(1, 2, 15, 15)
    torch.testing.assert_close(layer(signal), long_conv(signal, kernel, method="direct"), rtol=1e-4, atol=1e-5)


def test_crop_follows_the_mask_as_it_trains():
    layer = fs.FlexConv1d(1, 1, 101, causal=True)
    before = layer.sample_kernel().shape[-1]
    layer.mask.sigma.data.fill_(0.3)  # .data leaves no trace in the parameter's version
    after = layer.sample_kernel().shape[-1]
    assert (before, after) == (9, 33)
    assert layer(torch.randn(1, 1, 101)).shape == (1, 1, 101)


def test_mask_learns_through_the_crop():
    layer = fs.FlexConv1d(1, 1, 101, causal=True)
    layer(torch.randn(1, 1, 101)).square().sum().backward()
    assert layer.mask.sigma.grad.abs() > 0
    assert layer.mask.mean.grad.abs() > 0


def test_mask_starts_at_the_present_when_causal_and_at_the_centre_otherwise():
    assert fs.FlexConv1d(1, 1, causal=True).mask.mean.tolist() == [1.0]
    assert fs.FlexConv2d(1, 1).mask.mean.tolist() == [0.0, 0.0]
    assert fs.FlexConv2d(1, 1).mask.sigma.tolist() == pytest.approx([0.075, 0.075])


def test_magnet_of_a_flexconv_starts_within_the_masks_reach():
    layer = fs.FlexConv1d(1, 1, causal=True, mask_sigma=0.1, kernel=functools.partial(fs.kernels.MAGNet, hidden=500))
    mu = torch.cat([g.mu for g in layer.kernel_network.filters])
    assert 0.16 < mu.abs().max() <= 0.1667


@pytest.mark.parametrize(("grid", "size"), [((100,), (100,)), ((101,), (101,))])
def test_kernel_size_of_sequences_is_their_length(grid, size):
    layer = fs.FlexConv1d(1, 1)
    layer(torch.randn(1, 1, *grid))
    assert layer.kernel_size == size


def test_kernel_size_of_images_is_odd():
    layer = fs.CKConv2d(1, 1)
    layer(torch.randn(1, 1, 32, 7))
    assert layer.kernel_size == (33, 7)


def test_sampling_before_any_input_says_what_is_missing():
    with pytest.raises(fs.InputError, match="FlexConv1d has no kernel size yet: give kernel_size, or an input first"):
        fs.FlexConv1d(1, 1).sample_kernel()


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_separate_convolutions(groups):
    layer = fs.FlexConv1d(4, 8, 31, groups=groups, mask_sigma=0.3).double()
    x = torch.randn(2, 4, 50, dtype=torch.float64)
    kernel = layer.sample_kernel()
    assert kernel.shape[:2] == (8, 4 // groups)
    parts = [
        long_conv(x[:, g * (4 // groups) : (g + 1) * (4 // groups)], kernel[g * (8 // groups) : (g + 1) * (8 // groups)], method="direct")
        for g in range(groups)
    ]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))


def test_depthwise():
    layer = fs.CKConv2d(6, 6, 9, groups=6)
    assert layer.sample_kernel().shape == (6, 1, 9, 9)
    assert layer(torch.randn(2, 6, 12, 12)).shape == (2, 6, 12, 12)


def test_rotated_mask_turns_with_its_angle_and_is_not_cut_off():
    layer = fs.FlexConv2d(1, 1, 41, rotated_mask=True, mask_threshold=0.1)
    with torch.no_grad():
        layer.mask.sigma.copy_(torch.tensor([0.05, 0.3]))
        layer.mask.angle.fill_(torch.pi / 2)
    positions = tap_positions((41, 41))
    mask = layer.mask(positions)
    expected = torch.exp(-0.5 * ((positions[0] / 0.3) ** 2 + (positions[1] / 0.05) ** 2))  # a quarter turn swaps the axes
    torch.testing.assert_close(mask, expected, atol=1e-6, rtol=1e-4)
    layer.mask.angle.data.fill_(0.6)
    ((a, b), (c, d)) = read_crops([layer])[0]
    outside = layer.mask(positions)
    outside[a:b, c:d] = 0
    assert outside.max() <= 0.1 + 1e-6
    assert (b - a) < 41  # it does crop
    layer(torch.randn(1, 1, 10, 10)).square().sum().backward()
    assert layer.mask.angle.grad.abs() > 0


@pytest.mark.parametrize("length", [16, 256, 4000])
@pytest.mark.parametrize("kind", [fs.CKConv1d, fs.FlexConv1d])
def test_variance_preserving_at_any_kernel_length(kind, length):
    layer = kind(8, 16, causal=True, variance_preserving=True)
    x = torch.randn(16, 8, 3 * length)
    layer(x[..., :length])  # the first input fixes the kernel's length
    y = layer(x)[..., length:]
    assert layer.kernel_size == (length,)
    assert y.var().item() == pytest.approx(1, abs=0.2)
    assert kind(8, 16, length, causal=True)(x)[..., length:].var().item() != pytest.approx(1, abs=0.2)


def test_variance_preserving_does_not_touch_loaded_weights():
    layer = fs.FlexConv1d(2, 3, variance_preserving=True)
    x = torch.randn(1, 2, 50)
    y = layer(x)
    other = fs.FlexConv1d(2, 3, variance_preserving=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)


@pytest.mark.parametrize("kind", [fs.CKConv1d, fs.FlexConv1d, fs.CKConv2d, fs.FlexConv2d])
def test_kernel_norm_is_the_sampled_kernels(kind):
    layer = kind(3, 4, 21).double()
    norm = layer.kernel_norm()
    expected = layer.sample_kernel().norm()
    torch.testing.assert_close(norm, expected)
    got = torch.autograd.grad(norm, list(layer.kernel_network.parameters()))
    wanted = torch.autograd.grad(layer.sample_kernel().norm(), list(layer.kernel_network.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_kernel_norm_of_a_kernel_of_zeros_has_a_finite_gradient():
    layer = fs.FlexConv1d(1, 1, 11)
    layer.kernel_network.readout.scale_outputs(torch.zeros(1))
    layer.kernel_norm().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_all_masks_are_read_from_the_device_at_once(monkeypatch):
    model = fs.FlexTCN(depth=3).eval()
    model(torch.randn(1, 1, 50))  # the first input fixes the kernels' size
    reads = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(self.shape) or original(self))
    model(torch.randn(1, 1, 50))
    assert reads == [(12,)]  # six masks of two values
    reads.clear()
    kernel_penalty(model)
    assert reads == []  # the kernels of the forward pass
    with torch.no_grad():
        model.blocks[0].conv1.mask.sigma.mul_(1.01)
    kernel_penalty(model)
    assert reads == [(2,)]  # of the one that changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 3, "groups": 2}, "in_channels to be a positive multiple of groups=2, got 3"),
        ({"out_channels": 0}, "out_channels to be a positive multiple of groups=1, got 0"),
        ({"kernel_size": 0}, "kernel_size to be 1 or more, for 1 axes, got 0"),
        ({"kernel_size": (3, 3)}, r"for 1 axes, got \(3, 3\)"),
        ({"mask_sigma": 0.0}, "mask_sigma above 0, got 0.0"),
        ({"mask_threshold": 1.0}, r"mask_threshold in \[0, 1\), got 1.0"),
        ({"rotated_mask": True}, "two axes"),
        ({"kernel": "magnetic"}, "unknown kernel 'magnetic': did you mean 'magnet'"),
        ({"method": "slow"}, "unknown method 'slow'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(fs.InputError, match=message):
        fs.FlexConv1d(**{"in_channels": 2, "out_channels": 2, **arguments})


def test_ckconvs_siren_starts_with_its_papers_biases():
    assert 0.9 < fs.CKConv1d(30, 30).kernel_network.readout.bias.abs().max() <= 1
    assert fs.FlexConv1d(30, 30, kernel="siren").kernel_network.readout.bias.abs().max() < 0.2


def test_a_kernel_of_one_tap_is_warned_of():
    with pytest.warns(UserWarning, match=r"FlexConv2d with a kernel of 5x5 taps starts with a single one.*mask_sigma above 0\.23"):
        fs.FlexConv2d(1, 1, 5)
    assert fs.FlexConv2d(1, 1, 5, mask_sigma=0.24).sample_kernel().shape == (1, 1, 3, 3)


def test_a_layer_with_a_lambda_for_a_kernel_can_be_pickled_but_not_saved(tmp_path):
    import copy

    layer = copy.deepcopy(fs.FlexConv1d(1, 1, 30, kernel=lambda *a, **k: fs.kernels.SIREN(*a, **k)))
    assert "kernel" in str(layer._arguments)
    with pytest.raises(fs.InputError, match="cannot save the argument <function"):
        fs.save(layer, tmp_path / "layer.safetensors")


@pytest.mark.parametrize("sigma", [2, float(2)])
def test_whole_numbers_are_widths_too(sigma):
    assert fs.FlexConv1d(1, 1, 9, mask_sigma=sigma).mask.sigma.dtype == torch.float32


def test_input_of_another_dtype_is_refused_whatever_the_method():
    for method in ("direct", "fft"):
        with pytest.raises(fs.InputError, match=r"expected input of torch\.float32, as its parameters, got torch\.float64"):
            fs.FlexConv1d(1, 1, 50, method=method)(torch.zeros(1, 1, 50, dtype=torch.float64))


@pytest.mark.parametrize("last", [1, 2, 30, 99, 100, 500])
@pytest.mark.parametrize("method", ["direct", "fft", "overlap"])
@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
def test_last_outputs_are_those_of_all(last, method, sigma):
    layer = fs.FlexConv1d(4, 6, 100, causal=True, groups=2, mask_sigma=sigma, method=method).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 4, 100, dtype=torch.float64)
    torch.testing.assert_close(layer(x, last=last), layer(x)[..., -last:], rtol=1e-10, atol=1e-12)


def test_causal_layers_keep_to_the_bound_of_their_kernels_norm():
    layer = fs.CKConv1d(30, 30, 4000, causal=True, method="fft")
    x = torch.randn(1, 30, 4000)
    changed = x.clone()
    changed[..., 2000:] = torch.randn(1, 30, 2000)
    with torch.no_grad():
        leak = (layer(x) - layer(changed))[..., :2000].abs().max()
        norm = layer.sample_kernel().flatten(1).norm(dim=1).max()
    assert leak < 1e-6 * max(1, norm) * x.abs().max()


def test_last_outputs_are_for_causal_layers_over_one_axis():
    for layer, x in (
        (fs.FlexConv1d(1, 1, 33, mask_sigma=0.5), torch.zeros(1, 1, 40)),
        (fs.FlexConv2d(1, 1, 9, causal=True, mask_sigma=0.5), torch.zeros(1, 1, 9, 9)),
    ):
        with pytest.raises(fs.InputError, match="last of at least 1, for causal=True and one axis"):
            layer(x, last=1)
    with pytest.raises(fs.InputError, match="last of at least 1"):
        fs.FlexConv1d(1, 1, 33, causal=True)(torch.zeros(1, 1, 40), last=0)
