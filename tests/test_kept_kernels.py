"""In eval mode without gradients a layer keeps its kernel, and never uses it for other parameters than those it was made from."""

import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import relative

import flexseq as fs
from flexseq.functional import spectral_conv

SHAPES = {  # every path through the convolution: direct, FFT, blocks, and (through a small limit) spectra too large to keep
    "direct": (fs.FlexConv1d, {"causal": True, "mask_sigma": 0.3, "method": "direct"}, (2, 3, 60)),
    "fft": (fs.FlexConv1d, {"causal": True, "mask_sigma": 0.3, "method": "fft"}, (2, 3, 60)),
    "overlap": (fs.FlexConv1d, {"causal": True, "mask_sigma": 0.1, "method": "overlap"}, (2, 3, 300)),
    "2d": (fs.FlexConv2d, {"mask_sigma": 0.5, "method": "fft"}, (2, 3, 12, 9)),
    "grouped": (fs.CKConv1d, {"groups": 3, "method": "fft"}, (2, 3, 50)),
}


@pytest.fixture(params=[*SHAPES, "large"])
def case(request, monkeypatch):
    if request.param == "large":
        monkeypatch.setattr(spectral_conv, "may_be_kept", lambda *arguments: False)
    kind, options, shape = SHAPES.get(request.param, SHAPES["overlap"])
    layer = kind(3, 6, **options)
    x = torch.randn(shape)
    with torch.no_grad():
        layer(x)
        layer.bias.normal_()
    return layer.eval(), x


def fresh(layer, x):
    """The output as training mode computes it, which keeps nothing."""
    layer = copy.deepcopy(layer).train()
    with torch.no_grad():
        return layer(x)


@torch.no_grad()
def test_kept_kernel_gives_the_same_output(case):
    layer, x = case
    first = layer(x)
    kept = layer.cache.entry
    assert kept is not None
    assert relative(first, fresh(layer, x)) < 1e-5
    assert torch.equal(layer(x), first)
    assert layer.cache.entry is kept


@torch.no_grad()
@pytest.mark.parametrize("path", ["kernel_network.readout.weight", "kernel_network.readout.bias"])
@pytest.mark.parametrize("how", ["in place", "through data", "replaced", "loaded", "one number"])
def test_changed_parameter_makes_a_new_kernel(case, path, how):
    layer, x = case
    layer(x)
    parameter = layer.get_parameter(path)
    if how == "in place":
        parameter.mul_(2)
    elif how == "through data":
        parameter.data.mul_(2)
    elif how == "replaced":
        module, _, name = path.rpartition(".")
        setattr(layer.get_submodule(module), name, torch.nn.Parameter(parameter * 2))
    elif how == "loaded":
        layer.load_state_dict({name: value * 2 if name == path else value for name, value in layer.state_dict().items()})
    else:
        parameter.view(-1)[-1] += 1
    assert relative(layer(x), fresh(layer, x)) < 1e-5


@torch.no_grad()
def test_mask_that_moves_within_the_same_crop_makes_a_new_kernel():
    layer = fs.FlexConv1d(2, 2, 100, causal=True).eval()
    x = torch.randn(1, 2, 100)
    before, taps = layer(x), layer.cache.entry.settings
    layer.mask.sigma.mul_(1.001)
    after = layer(x)
    assert layer.cache.entry.settings == taps
    assert not torch.equal(before, after)
    assert relative(after, fresh(layer, x)) < 1e-5


@torch.no_grad()
def test_setting_of_the_kernel_network_makes_a_new_kernel():
    layer, x = fs.CKConv1d(2, 2, 30).eval(), torch.randn(1, 2, 30)
    layer(x)
    layer.kernel_network.omega_0 = 5.0
    assert relative(layer(x), fresh(layer, x)) < 1e-5


@torch.no_grad()
def test_under_autocast_and_without_it(case):
    layer, x = case
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert relative(half.float(), layer(x)) < 2e-2
    assert relative(layer(x), fresh(layer, x)) < 1e-5


@torch.no_grad()
def test_evaluating_again_keeps_and_moving_lets_go(case):
    layer, x = case
    layer(x)
    kept = layer.cache.entry
    layer.eval()(x)
    assert layer.cache.entry is kept
    assert layer.double().cache.entry is None


def test_optimiser_step_between_evaluations(case):
    layer, x = case
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
    for _ in range(3):
        with torch.no_grad():
            layer.eval()(x)
        layer(x).square().mean().backward()  # eval mode, but with gradients: they must reach the parameters
        optimizer.step()
        with torch.no_grad():
            assert relative(layer(x), fresh(layer, x)) < 1e-5


def test_gradients_flow_in_eval_mode_after_a_kernel_was_kept(case):
    layer, x = case
    with torch.no_grad():
        layer(x)
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.kernel_network.parameters())


@torch.no_grad()
def test_copies_do_without_it_and_agree(case):
    layer, x = case
    y = layer(x)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.cache.entry is None
        assert relative(copied(x), y) < 1e-6
    assert layer.cache.entry is not None
    assert not any("kept" in name for name in layer.state_dict())


@torch.no_grad()
def test_other_dtype_and_other_lengths(case):
    layer, x = case
    y = layer(x)
    longer = torch.cat([x, x], -1)
    for other in (longer, x[..., :5], x, longer):
        assert relative(layer(other), fresh(layer, other)) < 1e-5
    layer.double()
    assert layer(x.double()).dtype == torch.float64
    assert relative(layer(x.double()), y.double()) < 1e-5


@torch.no_grad()
def test_another_kernel_size_makes_a_new_kernel():
    layer = fs.CKConv1d(2, 2, 20).eval()
    x = torch.randn(1, 2, 64)
    layer(x)
    other = fs.CKConv1d(2, 2, 31)
    layer.load_state_dict({**layer.state_dict(), "kernel_size_code": other.kernel_size_code})
    assert layer.kernel_size == (31,)
    assert relative(layer(x), fresh(layer, x)) < 1e-5


@torch.no_grad()
def test_threads_share_a_network():
    model = fs.FlexTCN(depth=2, width=8, mask_sigma=0.3, method="fft").eval()
    inputs = [torch.randn(2, 1, 100 + 20 * (i % 3)) for i in range(24)]
    model(inputs[0])
    expected = [copy.deepcopy(model).train(False)(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(functools.partial(_without_gradients, model), inputs))
    assert max(relative(result, wanted) for result, wanted in zip(results, expected, strict=True)) < 1e-5


def _without_gradients(model, x):
    with torch.no_grad():  # gradient mode belongs to the thread
        return model(x)


def test_inference_mode_and_then_training():
    layer = fs.FlexConv1d(2, 2, 40, causal=True, mask_sigma=0.5).eval()
    x = torch.randn(1, 2, 40)
    with torch.inference_mode():
        layer(x)
    with torch.no_grad():
        layer(x)
    layer.train()(x).sum().backward()
    assert layer.cache.entry is None


@torch.no_grad()
def test_nan_is_not_taken_for_unchanged():
    layer = fs.CKConv1d(1, 1, 10).eval()
    layer.kernel_network.readout.bias.fill_(float("nan"))
    layer(torch.randn(1, 1, 10))
    layer.kernel_network.readout.bias.fill_(0)
    assert layer(torch.randn(1, 1, 10)).isfinite().all()


class Scaled(fs.kernels.KernelNetwork):
    """A user's kernel network with settings of many kinds."""

    def __init__(self, ndim, out_channels, *, spatial_extent=1.0):
        super().__init__(ndim, out_channels, 3)
        self.frequencies = [1.0, 2.0, 3.0]
        self.nested = {"phases": {"first": (0.1, [0.2]), "others": 0.3}}
        self.table = torch.linspace(0, 1, 3)
        self.activation = torch.sin
        self.register_buffer("offset", torch.zeros(3))

    def basis(self, positions):
        phase = self.nested["phases"]
        shift = phase["first"][0] + phase["first"][1][0] + phase["others"]
        rows = [
            self.activation(f * positions[0] + shift + t + o) for f, t, o in zip(self.frequencies, self.table, self.offset, strict=True)
        ]
        return torch.stack(rows)


CHANGES = {
    "a list": lambda network: network.frequencies.__setitem__(1, 5.0),
    "a nested list": lambda network: network.nested["phases"]["first"][1].__setitem__(0, 2.0),
    "a nested number": lambda network: network.nested["phases"].update(others=2.0),
    "a tensor that is no buffer": lambda network: network.table.mul_(3),
    "a buffer, through data": lambda network: network.offset.data.fill_(1.0),
    "a function": lambda network: setattr(network, "activation", torch.cos),
    "the type of a number": lambda network: network.frequencies.__setitem__(2, 4),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("in_network", [True, False])
def test_any_setting_of_a_users_network_that_changes_makes_a_new_kernel(change, in_network):
    layer = fs.FlexConv1d(2, 2, 30, kernel=Scaled, mask_sigma=0.5)
    model, x = (torch.nn.Sequential(layer, torch.nn.ReLU()) if in_network else layer).eval(), torch.randn(1, 2, 30)
    model(x)
    before = model(x)
    kept = layer.cache.entry
    assert kept is not None
    assert torch.equal(model(x), before)
    assert layer.cache.entry is kept
    CHANGES[change](layer.kernel_network)
    after = model(x)
    assert relative(after, fresh(model, x)) < 1e-6
    assert relative(after, before) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("what", ["a closure", "an object", "a hook", "a circle", "training mode"])
def test_what_cannot_be_compared_is_not_kept(what):
    layer, x = fs.FlexConv1d(2, 2, 30, kernel=Scaled, mask_sigma=0.5).eval(), torch.randn(1, 2, 30)
    network, scale = layer.kernel_network, [1.0]
    network.readout.bias.zero_()
    if what == "a closure":
        network.activation = lambda value: torch.sin(value) * scale[0]
    elif what == "an object":
        network.extra = object()
    elif what == "a hook":
        network.readout.register_forward_hook(lambda module, arguments, output: output)
    elif what == "a circle":
        network.frequencies.append(network.frequencies)
        network.frequencies.pop()
        network.circle = []
        network.circle.append(network.circle)
    else:
        network.train()
    before = layer(x)
    assert layer.cache.entry is None
    scale[0] = 2.0
    assert relative(layer(x), 2 * before if what == "a closure" else before) < 1e-5


@torch.no_grad()
def test_a_network_keeps_all_kernels_and_notices_a_change_in_any():
    model, x = fs.FlexTCN(depth=2, width=4, mask_sigma=0.3).eval(), torch.randn(2, 1, 40)
    model(x)
    before = model(x)
    entries = [block.conv2.cache.entry for block in model.blocks]
    assert torch.equal(model(x), before)
    assert [block.conv2.cache.entry for block in model.blocks] == entries
    for change in ("data", "load", "resolution", "to"):
        if change == "data":
            model.blocks[1].conv1.kernel_network.linears[1].bias.data.add_(0.5)
        elif change == "load":
            model.load_state_dict({name: value * 1.1 if "readout.weight" in name else value for name, value in model.state_dict().items()})
        elif change == "resolution":
            fs.set_resolution(model, 1.5)
        else:
            model, x = model.double(), x.double()
        y = model(x)
        assert relative(y, copy.deepcopy(model).eval()(x)) < 1e-5
        assert not torch.equal(y.float(), before.float())
        before = y
