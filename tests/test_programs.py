"""Layers and networks as programs of torch's: traced, exported, seen by torch.fx; and gradients of gradients."""

import itertools
import warnings

import pytest
import torch
from torch import nn

import flexseq as fs
from flexseq.functional.long_conv import basis_long_conv, long_conv
from flexseq.positions import kept_taps, taps_inside

NETWORKS = {
    "FlexTCN": (lambda: fs.FlexTCN(1, 2, depth=2, width=6, mask_sigma=0.3), (1, 40)),
    "FlexTCN, mean": (lambda: fs.FlexTCN(1, 2, depth=1, width=6, mask_sigma=0.3, head="mean", causal=False), (1, 40)),
    "FlexTCN, long kernels": (lambda: fs.FlexTCN(1, 2, depth=1, width=4, mask_sigma=1.0), (1, 600)),
    "CKCNN": (lambda: fs.CKCNN(1, 2, depth=1, width=6), (1, 40)),
    "FlexNet": (lambda: fs.FlexNet(2, 3, depth=1, width=4, image_size=8, mask_sigma=0.4), (2, 8, 8)),
    "FlexConv1d": (lambda: fs.FlexConv1d(2, 3, 21), (2, 40)),
    "FlexConv1d, even": (lambda: fs.FlexConv1d(2, 3, 20, mask_sigma=0.2), (2, 40)),
    "FlexConv2d, rotated": (lambda: fs.FlexConv2d(2, 3, 9, mask_sigma=0.3, rotated_mask=True), (2, 8, 8)),
    "NJetConv1d": (lambda: fs.NJetConv1d(2, 3, 21, sigma=0.2), (2, 40)),
    "NIFFConv1d": (lambda: fs.NIFFConv1d(2, 2), (2, 20)),
    "NIFFConv2d, padded": (lambda: fs.NIFFConv2d(4, 4, groups=4, padding="reflect"), (4, 9, 8)),
    "converted": (lambda: fs.to_niff(fs.CIFARResNet(depth=8), size="small")[0], (3, 8, 8)),
}
every_network = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)


@every_network
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_traces_give_the_same(make, shape, called_before, gradients, tmp_path):
    model, x = make().eval(), torch.randn(2, *shape)
    if called_before:
        with torch.no_grad():
            model(x)
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, x)
    traced.save(tmp_path / "traced.pt")
    other = torch.randn(2, *shape)
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(other), model(other), rtol=1e-4, atol=1e-5)


@every_network
@pytest.mark.parametrize("called_before", [False, True])
def test_exported_programs_give_the_same_for_any_batch(make, shape, called_before):
    model, x = make().eval(), torch.randn(2, *shape)
    with torch.no_grad():
        expected_of = make_sized(model, x) if called_before else None
    if not called_before and any(layer.kernel_size is None for layer in model.modules() if isinstance(layer, fs.nn.layer.ConvLayer)):
        make_sized(model, x)  # a layer's size comes with an input
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)).module()
    other = torch.randn(5, *shape)
    torch.testing.assert_close(program(other), model(other), rtol=1e-4, atol=1e-5)
    assert expected_of is None or torch.isfinite(expected_of).all()


def make_sized(model, x):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 1.5, 0.7])
def test_the_crop_of_exported_programs_is_that_of_all_others(causal, ratio):
    for size, mean, sigma, threshold in itertools.product((1, 2, 7, 20, 33), (-0.4, 0.0, 0.3, 1.0), (0.01, 0.1, 0.3, 0.8), (0.0, 0.1)):
        ((start, stop),) = kept_taps((size,), [mean], [sigma], threshold=threshold, causal=causal, ratio=ratio)
        numbers = [torch.tensor([value], dtype=torch.float64) for value in (mean, sigma)]
        inside = taps_inside((size,), *numbers, threshold=threshold, causal=causal, ratio=ratio)
        expected = [start <= i < stop for i in range(len(inside))]
        assert inside.tolist() == expected, (size, mean, sigma, threshold)


def test_fx_sees_layers_as_wholes():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    for convert in (fs.to_niff, fs.to_flexconv, fs.to_cfconv):
        model, _ = convert(net)
        model.eval()
        graph = torch.fx.symbolic_trace(model)
        x = torch.randn(1, 3, 9, 9)
        expected = model(x)
        assert torch.equal(graph(x), expected)
        assert "call_module" in [node.op for node in graph.graph.nodes]


EMPTY = {
    "FlexConv1d": (lambda: fs.FlexConv1d(2, 2), (2, 20)),
    "NIFFConv1d": (lambda: fs.NIFFConv1d(2, 2, bias=True), (2, 20)),
    "NIFFConv2d": (lambda: fs.NIFFConv2d(2, 2, groups=2), (2, 5, 6)),
    "NIFFConv1d, linear": (lambda: fs.NIFFConv1d(2, 2, linear=True), (2, 20)),
    "CFConv1d": (lambda: fs.CFConv1d(2, 2, positions=5), (2, 20)),
    "FlexNet": (lambda: fs.FlexNet(2, 3, depth=1, width=4, image_size=8, mask_sigma=0.4).eval(), (2, 8, 8)),
}


@pytest.mark.parametrize(("make", "shape"), EMPTY.values(), ids=EMPTY)
def test_empty_batches(make, shape):
    model = make()
    x = torch.randn(0, *shape, requires_grad=True)
    y = model(x)
    assert y.shape[0] == 0
    y.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("method", ["direct", "fft", "overlap"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_gradients(method, causal, groups):
    x = torch.randn(2, 2, 11, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2 // groups, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    options = {"causal": causal, "groups": groups, "method": method}
    assert torch.autograd.gradgradcheck(lambda *inputs: long_conv(*inputs, **options), (x, weight, bias))
    basis = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(4, 2 // groups, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda *inputs: basis_long_conv(*inputs, **options), (x, basis, mix, bias))


@pytest.mark.parametrize("shape", [(7, 5), (4, 4), (12, 12)])
def test_gradients_of_gradients_of_images(shape):
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda *inputs: long_conv(*inputs, method="fft"), (x, weight))
    layer = fs.NIFFConv2d(2, 2, groups=2).double()
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("length", [1000, 8000])
def test_a_gradient_penalty_is_the_direct_methods(length):
    torch.manual_seed(0)
    x = torch.randn(1, 1, length, requires_grad=True)
    layer = fs.FlexConv1d(1, 2, length, mask_sigma=1.0)
    found = []
    for method in ("auto", "fft", "direct"):
        layer.method = method
        layer.zero_grad()
        slope = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
        slope.square().sum().backward()
        found.append(layer.kernel_network.readout.weight.grad.clone())
    for one in found[:2]:
        assert ((one - found[2]).norm() / found[2].norm()) < 1e-3
