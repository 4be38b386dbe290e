"""CF-Conv: against sums by hand and dense gradients, and what is drawn when."""

import copy
import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import relative
from torch import nn

import flexseq as fs
from flexseq.functional.circular_conv import circular_conv
from flexseq.functional.state_conv import Sampled, state_conv
from flexseq.kernels.stacked import Rows, StackedMLP

GRIDS = [(8,), (7,), (6, 8), (5, 7), (8, 5), (1, 4), (4, 1)]


def random_layer(grid, groups=1, **options):
    kind = fs.CFConv1d if len(grid) == 1 else fs.CFConv2d
    options.setdefault("positions", 0.4)
    return kind(4, 6, grid, groups=groups, **options).double()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_forward_is_a_circular_convolution_with_the_states_inverse_transform(grid, half, groups):
    layer = random_layer(grid, groups, half=half, bias=False).eval()
    x = torch.randn(2, 4, *grid, dtype=torch.float64)
    axes = list(range(len(grid)))
    state = torch.view_as_complex(layer.state)
    if half:
        kernel = torch.fft.irfftn(state, s=grid, dim=axes)
    else:
        kernel = torch.fft.ifftn(state, dim=axes).real
    kernel = kernel.numpy()
    y = layer(x).numpy()
    for b in range(2):
        for o in range(6):
            expected = np.zeros(grid)
            for i in range(4 // groups):
                signal = x[b, i + (o // (6 // groups)) * (4 // groups)].numpy()
                for tap in np.ndindex(*grid):
                    expected += kernel[(*tap, i, o)] * np.roll(signal, tap, tuple(range(len(grid))))
            np.testing.assert_allclose(y[b, o], expected, atol=1e-10)


def test_sample_kernel_is_what_a_correlation_applies():
    layer = random_layer((6, 7), bias=False).eval()
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    kernel = layer.sample_kernel()
    y = F.conv2d(F.pad(x, (3, 3, 2, 3), mode="circular"), kernel)
    assert relative(layer(x), y) < 1e-10


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("update", ["replace", "average"])
def test_with_all_positions_sparse_and_naive_have_the_same_gradients(half, groups, update):
    torch.manual_seed(1)
    options = {"half": half, "update": update, "positions": 1.0, "seed": 3}
    sparse = random_layer((6, 5), groups, **options)
    others = [random_layer((6, 5), groups, gradient=gradient, **options) for gradient in ("naive", "rematerialised", "chunked")]
    x = torch.randn(3, 4, 6, 5, dtype=torch.float64)
    weight = torch.randn(3, 6, 6, 5, dtype=torch.float64)
    results = []
    for layer in (sparse, *others):
        layer.load_state_dict(sparse.state_dict()) if layer is not sparse else None
    for layer in (sparse, *others):
        input = x.clone().requires_grad_()
        y = layer(input)
        (y * weight).sum().backward()
        results.append([y.detach(), input.grad, layer.state.clone(), *(p.grad for p in layer.parameters())])
    for other in results[1:]:
        assert all(b.abs().max() > 0 for b in other)
        for a, b in zip(results[0], other, strict=True):
            assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("grid", [(6, 8), (5, 7), (8,)], ids=str)
def test_gathered_gradient_is_the_dense_ones_at_the_positions(half, grid):
    """Against autograd through torch's own transforms."""
    layer = random_layer(grid, 2, half=half)
    x = torch.randn(2, 4, *grid, dtype=torch.float64)
    weight = torch.randn(2, 6, *grid, dtype=torch.float64)
    state = layer.state.detach().clone().requires_grad_()
    layer_like = copy.copy(layer)
    spectrum = layer_like._as_half(state)
    axes = list(range(2, x.ndim))
    transformed = torch.fft.rfftn(x, dim=axes).unflatten(1, (2, -1))
    product = torch.einsum("bgi...,goi...->bgo...", transformed, spectrum.unflatten(0, (2, -1))).flatten(1, 2)
    (torch.fft.irfftn(product, s=grid, dim=axes) * weight).sum().backward()
    positions = torch.randperm(layer.total_positions)[:37]
    values = layer.state.view(-1, 2)[positions].clone().requires_grad_()
    (state_conv(x, layer.state, Sampled(values, positions, 1.0), groups=2, half=half) * weight).sum().backward()
    assert torch.allclose(values.grad, state.grad.view(-1, 2)[positions], atol=1e-12)


def test_gradcheck():
    layer = random_layer((4, 5), 1)
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    positions = torch.randperm(layer.total_positions)[:9].sort().values

    def run(x, values):
        state = layer.state.clone()
        with torch.no_grad():
            state.view(-1, 2)[positions] = values
        return state_conv(x, state, Sampled(values, positions, 1.0))

    values = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(run, (x, values))


def test_a_half_state_learns_twice_what_one_of_a_pair_does():
    """A value of a half state is both of a conjugate pair; of a whole one, each of them has half the gradient."""
    half, whole = random_layer((6, 8), half=True, seed=0), random_layer((6, 8), half=False, seed=0)
    spectrum = half.sample_spectrum()
    full = torch.fft.fftn(torch.fft.irfftn(spectrum, s=(6, 8), dim=(2, 3)), dim=(2, 3)).permute(2, 3, 1, 0)
    with torch.no_grad():
        whole.state.copy_(torch.view_as_real(full))
        half.state.copy_(torch.view_as_real(spectrum.permute(2, 3, 1, 0)))
    x, weight = torch.randn(1, 4, 6, 8, dtype=torch.float64), torch.randn(1, 6, 6, 8, dtype=torch.float64)
    gradients = []
    for layer in (half, whole):
        position = torch.tensor([np.ravel_multi_index((2, 3, 1, 4), tuple(layer.state.shape[:-1]))])
        values = layer.state.view(-1, 2)[position].clone().requires_grad_()
        (state_conv(x, layer.state, Sampled(values, position, 1.0), half=layer.keeps_half) * weight).sum().backward()
        gradients.append(values.grad)
    assert torch.allclose(gradients[0], 2 * gradients[1])


@pytest.mark.parametrize("parameterisation", ["hwio", "hwi", "hwo", "hw"])
def test_parameterisations_are_functions_of_what_they_say(parameterisation):
    layer = fs.CFConv2d(3, 4, (5, 6), parameterisation=parameterisation, positions=0.3, widths=(8, 1))
    with torch.no_grad():
        for network in (layer.real, layer.imaginary):
            for bias in network.biases:
                bias.normal_()
    layer.refresh()
    state = layer.state[..., 0]  # (5, 4, 3, 4)
    assert state.std() > 0
    count = {"hwio": 1, "hwi": 4, "hwo": 3, "hw": 12}[parameterisation]
    assert layer.real.count == count
    # By hand: one network at its coordinates.
    h, w, i, o = 3, 2, 1, 2
    which = {"hwio": 0, "hwi": o, "hwo": i, "hw": i * 4 + o}[parameterisation]
    coordinates = [h / 4, w / 3] + ([i / 2] if "i" in parameterisation else []) + ([o / 3] if "o" in parameterisation else [])
    hidden = (torch.tensor(coordinates) @ layer.real.weights[0][which] + layer.real.biases[0][which]).relu()
    value = hidden @ layer.real.weights[1][which] + layer.real.biases[1][which]
    assert torch.allclose(state[h, w, i, o], value[0], atol=1e-5)


def test_refresh_is_the_same_in_chunks_of_any_size():
    layer = fs.CFConv2d(2, 3, (5, 6), positions=0.1, parameterisation="hw")
    layer.refresh()
    first = layer.state.clone()
    layer.refresh(chunk=7)
    assert torch.allclose(layer.state, first, atol=1e-6)


def test_a_step_changes_the_drawn_positions_and_no_others():
    for update, rate in (("replace", 1.0), ("average", 0.1)):
        layer = fs.CFConv2d(2, 3, (6, 6), positions=50, update=update, seed=5)
        before = layer.state.clone()
        positions = layer.draw()
        assert len(positions.unique()) == 50
        layer(torch.randn(1, 2, 6, 6))
        changed = (layer.state != before).any(-1).flatten().nonzero()[:, 0]
        assert torch.equal(changed, positions)
        values = layer._evaluate(positions).detach()
        expected = (1 - rate) * before.view(-1, 2)[positions] + rate * values
        assert torch.allclose(layer.state.view(-1, 2)[positions], expected, atol=1e-6)
    layer.eval()
    before = layer.state.clone()
    layer(torch.randn(1, 2, 6, 6))
    assert torch.equal(layer.state, before)


@pytest.mark.parametrize("positions", [1, 20, 400, 0.999, 1.0])
def test_positions_are_drawn_uniformly_and_repeat(positions):
    layer = fs.CFConv1d(4, 4, 100, positions=positions, seed=1)  # 816
    again = fs.CFConv1d(4, 4, 100, positions=positions, seed=1)
    other = fs.CFConv1d(4, 4, 100, positions=positions, seed=2)
    counts = torch.zeros(layer.total_positions)
    for _ in range(60):
        drawn = layer.draw()
        assert torch.equal(drawn, again.draw())
        counts[drawn] += 1
        for one in (layer, again, other):
            one._steps += 1
    expected = 60 * layer.drawn_positions / layer.total_positions
    assert abs(counts.mean().item() - expected) < 1e-3
    assert counts.var() <= expected * (1 - layer.drawn_positions / layer.total_positions) * 1.5 + 0.02
    if layer.drawn_positions < layer.total_positions:
        assert not torch.equal(layer.draw(), other.draw())


def test_drawing_goes_on_after_loading():
    layer = fs.CFConv1d(2, 2, positions=10)
    x = torch.randn(1, 2, 30)
    for _ in range(3):
        layer(x)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    resumed = fs.CFConv1d(2, 2, positions=10)
    resumed.load_state_dict(torch.load(buffer))
    assert resumed.kernel_size == (30,)
    assert torch.equal(resumed.state, layer.state)
    for _ in range(3):
        assert torch.equal(layer(x), resumed(x))
    assert torch.equal(resumed.state, layer.state)


def test_two_forward_passes_before_a_backward_are_refused():
    layer = fs.CFConv1d(2, 2, positions=10)
    x = torch.randn(1, 2, 30, requires_grad=True)
    first = layer(x)
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()


def test_refresh_every():
    layer = fs.CFConv1d(2, 2, 30, positions=5, refresh_every=2, seed=0)
    x = torch.randn(1, 2, 30)
    layer(x)
    layer(x)
    before = layer.state.clone()
    layer(x)
    assert (layer.state != before).any(-1).sum() > 5
    assert torch.allclose(layer.state.view(-1, 2), layer._evaluate(torch.arange(layer.total_positions)), atol=1e-6)


def test_resolution_keeps_the_kernels_frequencies():
    layer = fs.CFConv1d(1, 1, 9, positions=1, bias=False).double().eval()
    t = torch.arange(9, dtype=torch.float64) / 9
    wave = (torch.cos(2 * torch.pi * 3 * t) + torch.sin(2 * torch.pi * t))[None, None]
    t = torch.arange(18, dtype=torch.float64) / 18
    finer = (torch.cos(2 * torch.pi * 3 * t) + torch.sin(2 * torch.pi * t))[None, None]
    with torch.no_grad():
        coarse = layer(wave)
        with fs.set_resolution(layer, 2):
            assert relative(layer(finer)[..., ::2], coarse) < 1e-10
            assert layer.sample_kernel().shape == (1, 1, 18)
            with torch.enable_grad(), pytest.raises(fs.InputError, match="trains at the resolution of its state alone"):
                layer.train()(finer)
            layer.eval()
        with pytest.raises(fs.InputError, match="kernel for inputs of 9 samples, got 18"):
            layer(finer)


@pytest.mark.parametrize("grid", [(8,), (6, 8)], ids=str)
def test_at_another_resolution_half_and_whole_states_of_the_same_kernel_agree(grid):
    half, whole = random_layer(grid, half=True).eval(), random_layer(grid, half=False).eval()
    axes = list(range(2, 2 + len(grid)))
    full = torch.fft.fftn(torch.fft.irfftn(half.sample_spectrum(), s=grid, dim=axes), dim=axes)
    whole.state.copy_(torch.view_as_real(full.movedim((0, 1), (-1, -2))))
    with fs.set_resolution(half, 2), fs.set_resolution(whole, 2):
        assert torch.allclose(half.sample_kernel(), whole.sample_kernel(), atol=1e-12)
        spectrum = torch.fft.rfftn(half.sample_kernel(), dim=axes)
        assert spectrum[..., grid[-1] // 2 + 1 :].abs().max() < 1e-12


def test_refresh_is_exact_under_autocast():
    layer = fs.CFConv2d(2, 3, (5, 6))
    layer.refresh()
    first = layer.state.clone()
    with torch.autocast("cpu", torch.bfloat16):
        layer.refresh()
    assert torch.equal(layer.state, first)


def test_a_size_that_is_refused_leaves_the_layer_as_it_was():
    layer = fs.CFConv1d(1, 1, positions=10)
    with pytest.raises(fs.InputError, match="at most 3, all"):
        layer(torch.randn(1, 1, 4))
    assert layer.kernel_size is None
    assert layer(torch.randn(1, 1, 30)).shape == (1, 1, 30)


def test_states_of_other_layers_are_refused():
    state = fs.CFConv1d(2, 4, 8).state_dict()
    for other in (fs.CFConv1d(4, 4), fs.CFConv1d(2, 4, groups=2), fs.CFConv1d(2, 4, half=False), fs.CFConv1d(2, 4, 9, half=False)):
        with pytest.raises(fs.InputError, match=r"expected state_values of shape .* for 8 samples"):
            other.load_state_dict(state)
    with pytest.raises(fs.InputError, match="positions of at most 40"):
        fs.CFConv1d(2, 4, positions=1000).load_state_dict(state)
    sized = fs.CFConv1d(2, 4, 8)
    sized.load_state_dict({}, strict=False)
    assert sized(torch.randn(1, 2, 8)).shape == (1, 4, 8)


def test_a_first_input_in_inference_mode():
    layer = fs.CFConv1d(2, 2).eval()
    with torch.inference_mode():
        layer(torch.randn(1, 2, 8))
    layer.train()(torch.randn(1, 2, 8)).sum().backward()


def test_training_mode_without_gradients_changes_nothing():
    layer = fs.CFConv1d(2, 2, 8)
    before = layer.state.clone()
    with torch.no_grad():
        layer(torch.randn(1, 2, 8))
    assert torch.equal(layer.state, before)
    assert layer._steps == 0


def test_numpys_integers_are_saved(tmp_path):
    layer = fs.CFConv1d(2, 2, 8, positions=np.int64(5))
    fs.save(layer, tmp_path / "layer.safetensors")
    assert fs.load(tmp_path / "layer.safetensors").positions == 5


def test_on_the_meta_device():
    with torch.device("meta"):
        assert fs.CFConv2d(2, 3, 8).state.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed in"),
        ({"seed": 1.5}, "seed to be an integer"),
        ({"seed": True}, "seed to be an integer"),
        ({"positions": True}, "positions to be a number"),
        ({"positions": "5"}, "positions to be a number"),
        ({"update": "average", "rate": "a"}, "rate to be a number"),
        ({"rate": 0.5}, "rate=None with update='replace'"),
        ({"widths": 8}, "end with 1"),
        ({"refresh_every": 1.5}, "refresh_every to be an integer"),
        ({"positions": 0}, "positions of at least 1"),
        ({"positions": 0.0}, "a share above 0"),
        ({"positions": 1.5}, "at most 1"),
        ({"positions": 10_000}, r"positions of at most 360, all that a kernel for 8x8 samples has, got 10,000"),
        ({"update": "average", "rate": 0.0}, "rate above 0"),
        ({"update": "replaced"}, "did you mean 'replace'"),
        ({"parameterisation": "iohw"}, "unknown parameterisation"),
        ({"gradient": "dense"}, "unknown gradient"),
        ({"widths": (4, 2)}, "end with 1"),
        ({"refresh_every": 0}, "refresh_every of at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(fs.InputError, match=message):
        fs.CFConv2d(3, 3, 8, **{"positions": 5, **options})


def test_a_network_takes_what_there_is_and_says_so():
    with pytest.warns(UserWarning, match=r"CFConv2d\(3, 32\) takes all of its 3,840 positions in every step, fewer than 4,096"):
        network = fs.CFNet(image_size=8, positions=4096)
    assert network.convs[0].drawn_positions == 3840
    assert network.convs[1].drawn_positions == 4096


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"conv": "conv"}, 59_681), ({}, 56_333), ({"parameterisation": "hw"}, 106_625)],
)
def test_the_papers_parameters(options, expected):
    network = fs.CFNet(image_size=8, positions=0.1, **options)
    assert sum(p.numel() for p in network.parameters()) == expected
    without = sum(p.numel() for name, p in network.named_parameters() if not (name.startswith("convs.") and name.endswith(".bias")))
    assert without == (56_141 if not options else expected - 192)


def test_a_layer_learns_a_kernel():
    torch.manual_seed(0)
    t = torch.arange(16)
    target = torch.exp(-0.5 * (torch.minimum(t, 16 - t) / 1.5) ** 2).expand(2, 2, 16)
    spectrum = torch.fft.rfft(target)
    layer = fs.CFConv1d(2, 2, 16, positions=18, widths=(16, 16, 1))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    losses = []
    for _ in range(400):
        x = torch.randn(16, 2, 16)
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), circular_conv(x, spectrum))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.1 * sum(losses[:20])


def test_the_network_comes_back_from_a_file(tmp_path):
    network = fs.CFNet(1, 3, 2, 8, image_size=8, positions=200).eval()
    x = torch.randn(2, 1, 8, 8)
    fs.save(network, tmp_path / "network.safetensors")
    assert torch.equal(fs.load(tmp_path / "network.safetensors")(x), network(x))
    with pytest.raises(fs.InputError, match="expected images of shape"):
        network(x[:, 0])


def test_two_classes_have_one_output():
    network = fs.CFNet(image_size=8, positions=0.2).eval()
    logits = network(torch.randn(2, 3, 8, 8))
    assert logits.shape == (2, 2)
    assert not logits[:, 0].any()


def test_conversion():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, groups=2))
    new, report = fs.to_cfconv(model, positions=0.2)
    assert report.replaced == ["1"]
    assert new[1].groups == 2
    assert new(torch.randn(1, 3, 8, 8)).shape == (1, 6, 8, 8)


def test_converted_layers_that_are_alike_do_not_start_alike():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    new, _ = fs.to_cfconv(model, positions=0.2, seed=3)
    again, _ = fs.to_cfconv(model, positions=0.2, seed=3)
    new(x := torch.randn(1, 4, 8, 8))
    again(x)
    assert not torch.equal(new[1].state, new[2].state)
    assert not torch.equal(new[1].draw(), new[2].draw())
    assert torch.equal(new[2].draw(), again[2].draw())


@pytest.mark.parametrize("ratio", [2, 0.25, 1.5])
def test_another_resolution_takes_its_own_size_and_what_strides_round_to(ratio):
    layer = fs.CFConv1d(1, 1, 16, positions=4).eval()
    own, near = round(16 * ratio), math.ceil(ratio)
    with fs.set_resolution(layer, ratio):
        for size in (own - near, own, own + near):
            assert layer(torch.randn(1, 1, size)).shape[2] == size
        with pytest.raises(fs.InputError, match=f"kernel for inputs of {own} samples"):
            layer(torch.randn(1, 1, own + near + 1))


def test_stacked_networks_are_each_a_network():
    networks = StackedMLP(3, 2, (5, 1))
    positions, which = torch.rand(11, 2), torch.randint(3, (11,))
    expected = [
        (p @ networks.weights[0][k] + networks.biases[0][k]).relu() @ networks.weights[1][k] + networks.biases[1][k]
        for p, k in zip(positions, which, strict=True)
    ]
    assert torch.allclose(networks(positions, Rows.of(which, 3)), torch.stack(expected), atol=1e-6)


def test_bf16_state_works():
    layer = fs.CFConv2d(2, 2, 8, positions=1.0)
    x = torch.randn(1, 2, 8, 8)
    expected = layer(x)
    y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert relative(y.float(), expected) < 0.1


def test_circular_conv_and_state_conv_agree():
    layer = random_layer((6, 8), 2, bias=False).eval()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    assert torch.allclose(circular_conv(x, layer.sample_spectrum(), groups=2), layer(x))
