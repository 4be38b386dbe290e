"""N-Jet kernels."""

import numpy as np
import pytest
import scipy.ndimage
import torch

import flexseq as fs


def pick(layer, *orders):
    """A layer of one kernel, the derivative of these orders alone."""
    readout = layer.kernel_network.readout
    with torch.no_grad():
        readout.weight.zero_()
        readout.bias.zero_()
        if sum(orders) == 0:
            readout.bias.fill_(1)
        else:
            readout.weight[0, layer.kernel_network.orders.index(orders)] = 1
    return layer.double()


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_is_scipys_derivative_in_1d(order, sigma):
    layer = pick(fs.NJetConv1d(1, 1, 81, order=4, sigma=sigma / 40, extent=8.0), order)
    x = torch.randn(1, 1, 120, dtype=torch.float64)
    ours = layer(x)[0, 0].detach().numpy()
    theirs = scipy.ndimage.gaussian_filter1d(x[0, 0].numpy(), sigma, order=order, mode="constant", truncate=8.0)
    # A cross-correlation with an odd function is minus the derivative.
    np.testing.assert_allclose(ours, (-sigma) ** order * theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("orders", [(0, 0), (1, 0), (0, 2), (1, 1), (2, 1)])
def test_is_scipys_derivative_in_2d(orders):
    layer = pick(fs.NJetConv2d(1, 1, 33, order=3, sigma=2 / 16, extent=7.5), *orders)
    x = torch.randn(1, 1, 40, 30, dtype=torch.float64)
    ours = layer(x)[0, 0].detach().numpy()
    theirs = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 2.0, order=orders, mode="constant", truncate=7.5)
    np.testing.assert_allclose(ours, (-2.0) ** sum(orders) * theirs, rtol=1e-6, atol=1e-6)


def test_has_all_derivatives_up_to_its_order():
    assert fs.NJetConv1d(1, 1, order=3).kernel_network.orders == [(1,), (2,), (3,)]
    assert sorted(fs.NJetConv2d(1, 1, order=2).kernel_network.orders) == [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("width", [0.0, 0.08, 0.3, 1.0, 3.0, 40.0])
def test_a_blur_keeps_the_sum_at_any_width(width):
    """In samples; at 0 nothing is left but the present tap, at 40 all taps count alike."""
    for layer in (fs.NJetConv1d(1, 1, 17), fs.NJetConv1d(1, 1, 17, causal=True), fs.NJetConv2d(1, 1, 17)):
        layer = pick(layer, *[0] * layer.ndim)
        layer.mask.threshold = 0.0
        with torch.no_grad():
            layer.mask.sigma.fill_(width / (16 if layer.causal else 8))
        kernel = layer.sample_kernel()[0, 0]
        total = kernel.sum() + (kernel[:-1].sum() if layer.causal else 0)  # a causal one with its mirror image
        torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_widths_train_at_the_full_rate():
    groups = fs.param_groups(fs.FlexNet(3, 4, 1, 6, conv="njet", image_size=8), lr=0.01)
    assert [group["lr"] for group in groups] == [0.01]


def test_width_is_learned_and_the_crop_follows():
    layer = fs.NJetConv1d(2, 2, 101, sigma=0.1)
    layer(torch.randn(1, 2, 101)).square().sum().backward()
    assert layer.mask.sigma.grad.abs() > 0
    assert "mask.mean" not in dict(layer.named_parameters())
    narrow = layer.sample_kernel().shape[-1]
    with torch.no_grad():
        layer.mask.sigma.mul_(2)
    assert layer.sample_kernel().shape[-1] > 1.8 * narrow


def test_same_function_at_another_resolution():
    layer = pick(fs.NJetConv1d(1, 1, 41, order=2, sigma=0.15, extent=6.0), 2)
    t = torch.arange(281, dtype=torch.float64)
    x = torch.exp(-0.5 * ((t - 140) / 20).square())[None, None]
    y = layer(x[..., ::2])
    fs.set_resolution(layer, 2)
    torch.testing.assert_close(layer(x)[..., ::2], y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"), [({"order": 0}, "order of at least 1"), ({"sigma": 0.0}, "sigma above 0"), ({"extent": -1.0}, "extent above 0")]
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(fs.InputError, match=f"NJetConv1d expected .*{message}"):
        fs.NJetConv1d(1, 1, **options)


def test_in_networks():
    x = torch.randn(2, 3, 20)
    assert fs.FlexTCN(3, 4, 1, 6, conv="njet", mask_sigma=0.2)(x).shape == (2, 4)
    assert fs.FlexNet(3, 4, 1, 6, conv="njet", image_size=8, mask_sigma=0.2)(x[..., None].expand(2, 3, 20, 8)).shape == (2, 4)


def test_widths_start_at_a_pixel_in_flexnet():
    for size, taps in ((8, 9), (16, 17), (33, 33)):
        layer = fs.FlexNet(3, 4, 1, 6, conv="njet", image_size=size).conv
        torch.testing.assert_close(layer.mask.sigma * (taps - 1) / 2, torch.ones(2))
    torch.testing.assert_close(fs.FlexNet(3, 4, 1, 6, image_size=16).conv.mask.sigma, torch.full((2,), 0.075))
