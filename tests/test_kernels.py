"""Kernel networks against their formulas, and how they start."""

import functools
import math

import pytest
import torch

import flexseq as fs
from flexseq.kernels import KERNELS, MLP, SIREN, Fourier, Gabor, MAGNet, make_kernel


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_network_is_its_readout_of_its_basis(name, ndim):
    network = make_kernel(name, ndim, 6)
    positions = torch.rand(ndim, *[4, 3, 2][:ndim]) * 2 - 1
    basis = network.basis(positions)
    assert basis.shape == (32, *positions.shape[1:])
    expected = torch.tensordot(network.readout.weight, basis, 1) + network.readout.bias.view(-1, *[1] * ndim)
    torch.testing.assert_close(network(positions), expected)


@pytest.mark.parametrize("scales_bias", [True, False])
def test_siren_places_omega_0(scales_bias):
    network = SIREN(2, 3, hidden=8, omega_0=7.0, omega_0_scales_bias=scales_bias).double()
    x = torch.rand(2, 10, dtype=torch.float64)
    h = x
    for linear in network.linears:
        z = 7 * (linear.weight @ h)
        h = torch.sin(z + (7 if scales_bias else 1) * linear.bias[:, None])
    torch.testing.assert_close(network(x), network.readout.weight @ h + network.readout.bias[:, None])


def test_siren_starts_in_its_ranges():
    network = SIREN(2, 900, omega_0=30.0, bias_bound=1.0)
    assert network.linears[0].weight.abs().max() <= 1 / 2
    bound = math.sqrt(6 / 32) / 30
    for linear in (network.linears[1], network.readout):
        assert 0.8 * bound < linear.weight.abs().max() <= bound
    assert 0.9 < network.readout.bias.abs().max() <= 1
    assert SIREN(1, 900).readout.bias.abs().max() <= 1 / math.sqrt(32)


def test_weight_norm_starts_at_the_drawn_weights_and_splits_length_from_direction():
    network = SIREN(1, 5, weight_norm=True)
    linear = network.readout
    torch.testing.assert_close(linear.effective_weight(), linear.weight_v)
    with torch.no_grad():
        linear.weight_v.mul_(3)
    torch.testing.assert_close(linear.effective_weight().norm(dim=1, keepdim=True), linear.weight_g)


@pytest.mark.parametrize(("factory", "gamma_shape"), [(Gabor, (32, 1)), (MAGNet, (32, 2))])
def test_gabor_functions_have_their_formula(factory, gamma_shape):
    network = factory(2, 3).double()
    g = network.filters[1]
    assert g.gamma.shape == gamma_shape
    x = torch.rand(2, 7, dtype=torch.float64) * 2 - 1
    expected = torch.empty(32, 7, dtype=torch.float64)
    for c in range(32):
        for n in range(7):
            gamma = g.gamma[c].expand(2)
            power = sum((gamma[d] * (x[d, n] - g.mu[c, d])) ** 2 for d in range(2))
            expected[c, n] = torch.exp(-power / 2) * torch.sin(g.linear.weight[c] @ x[:, n] + g.linear.bias[c])
    torch.testing.assert_close(g(x), expected)


def test_multiplicative_recursion():
    network = Fourier(1, 3, hidden=5, layers=2).double()
    x = torch.rand(1, 6, dtype=torch.float64)
    h = network.filters[0](x)
    for linear, g in zip(network.linears, list(network.filters)[1:], strict=True):
        h = g(x) * (linear.weight @ h + linear.bias[:, None])
    torch.testing.assert_close(network.basis(x), h)
    assert len(network.filters) == 3


def test_magnet_draws_narrower_envelopes_in_later_filters_and_gabor_the_same_in_all():
    magnet, gabor = MAGNet(2, 1, hidden=4000), Gabor(2, 1, hidden=4000)
    for index in range(4):
        assert magnet.filters[index].gamma.mean().item() == pytest.approx(6 / (index + 1), rel=0.1)  # the mean of Gamma(alpha, 1)
        assert gabor.filters[index].gamma.mean().item() == pytest.approx(6 / 4, rel=0.1)


def test_magnet_starts_within_its_spatial_extent_and_with_frequencies_scaled_by_gamma():
    network = MAGNet(2, 1, hidden=2000, spatial_extent=0.125)
    g = network.filters[2]
    assert 0.12 < g.mu.abs().max() <= 0.125
    base = g.linear.weight / g.gamma
    bound = 1 / math.sqrt(2) * 25.6 / 2
    assert 0.95 * bound < base.abs().max() <= bound * (1 + 1e-5)
    assert 3.1 < g.linear.bias.abs().max() <= math.pi


def test_fourier_features_are_fixed_and_in_the_state_dict():
    network = MLP(2, 3, fourier_features=16, activation="silu")
    assert "directions" in network.state_dict()
    assert "directions" not in dict(network.named_parameters())
    assert network.linears[0].weight.shape == (32, 32)


def test_steerable_turns_the_envelope_alone():
    network = MAGNet(2, 1, steerable=True).double()
    g = network.filters[0]
    with torch.no_grad():
        g.theta.fill_(0.25)  # a quarter turn
        g.linear.bias.fill_(math.pi / 2)
        g.linear.weight.zero_()  # no sine left: the filter is its envelope
    x = torch.rand(2, 5, dtype=torch.float64)
    d = x[:, None] - g.mu.T[..., None]
    expected = torch.exp(-0.5 * ((g.gamma[:, 0, None] * d[1]) ** 2 + (g.gamma[:, 1, None] * d[0]) ** 2))
    torch.testing.assert_close(g(x), expected)


def test_bad_arguments_are_named():
    with pytest.raises(fs.InputError, match="unknown kernel 'sirne': did you mean 'siren'"):
        make_kernel("sirne", 1, 1)
    with pytest.raises(fs.InputError, match="ndim=2 with steerable=True, got ndim=1"):
        MAGNet(1, 1, steerable=True)
    with pytest.raises(fs.InputError, match="made a Linear"):
        make_kernel(lambda ndim, out, spatial_extent: torch.nn.Linear(1, 1), 1, 1)
    with pytest.raises(fs.InputError, match="unknown activation 'tanh'"):
        functools.partial(MLP, activation="tanh")(1, 1)
