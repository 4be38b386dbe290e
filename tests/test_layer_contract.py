"""What every public layer keeps to. A new layer in flexseq.nn.__all__ is tested here by itself."""

import copy
import functools
import pickle

import pytest
import torch

import flexseq as fs

SIZE = {1: (40,), 2: (9, 8), 3: (5, 4, 3)}
# NIFF layers warn when they are run at other sizes than they were made for, which some tests do.
pytestmark = pytest.mark.filterwarnings("ignore:.*is for inputs of")

LAYERS = [getattr(fs.nn, name) for name in fs.nn.__all__]
every_layer = pytest.mark.parametrize("kind", LAYERS, ids=fs.nn.__all__)


NIFF = (fs.NIFFConv1d, fs.NIFFConv2d)
CF = (fs.CFConv1d, fs.CFConv2d)


def make(kind, **options):
    if kind in (fs.NJetConv1d, fs.NJetConv2d):  # its kernel is no network to choose
        options.pop("kernel", None)
        options.setdefault("sigma", 0.3)
    if kind in NIFF + CF:
        options.pop("method", None)  # there is one way
    if kind in CF:
        options.pop("kernel", None)
        options.setdefault("positions", 1.0)  # with all positions in every step nothing is left to chance
    return kind(4, 6, **options)


def signal(kind, batch=2, **options):
    return torch.randn(batch, 4, *SIZE[kind.ndim], **options)


@every_layer
@pytest.mark.parametrize("causal", [False, True])
def test_output_is_as_large_as_the_input(kind, causal):
    layer = make(kind) if kind in NIFF + CF else make(kind, causal=causal)  # a spectrum knows no past
    x = signal(kind)
    assert layer(x).shape == (2, 6, *x.shape[2:])
    assert layer.sample_kernel().shape[:2] == (6, 4)


@every_layer
def test_other_shapes_are_refused_by_name(kind):
    layer = make(kind)
    x = signal(kind)
    with pytest.raises(fs.InputError, match=rf"{kind.__name__} expected input of 4 channels.*got shape \(2, 3,"):
        layer(x[:, :3])
    with pytest.raises(fs.InputError, match=rf"{kind.__name__} expected input of 4 channels.*got shape \(2, 4,"):
        layer(x[..., None])


@every_layer
def test_state_dict_round_trip_before_and_after_the_first_input(kind):
    layer, x = make(kind), signal(kind)
    fresh = make(kind)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.kernel_size is None
    expected = layer(x)
    fresh = make(kind)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.kernel_size == layer.kernel_size
    if kind not in CF:
        longer = torch.cat([x, x], -1)  # a longer input is more signal: the kernel stays
        assert torch.equal(fresh(longer), layer(longer))
    assert torch.equal(fresh(x), expected)


@every_layer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same_and_are_independent(kind, copied):
    layer, x = make(kind), signal(kind)
    expected = layer(x)
    other = copied(layer)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    assert not torch.equal(other(x), expected)
    assert torch.equal(layer(x), expected)


@every_layer
def test_save_and_load(kind, tmp_path):
    kernel = functools.partial(fs.kernels.MAGNet, hidden=8)
    layer, x = make(kind, kernel=kernel, groups=2, bias=False).double().eval(), signal(kind, dtype=torch.float64)
    expected = layer(x)
    fs.save(layer, tmp_path / "layer.safetensors")
    other = fs.load(tmp_path / "layer.safetensors")
    assert type(other) is kind
    assert torch.equal(other(x), expected)


@every_layer
def test_bf16_autocast_is_close_and_has_its_dtype(kind):
    layer, x = make(kind), signal(kind)
    expected = layer(x)
    for method in ("direct", "fft"):
        layer.method = method
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        assert (y.float() - expected).abs().max() < 0.02 * expected.abs().max()
        y.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(kind, dtype):
    layer, x = make(kind), signal(kind)
    expected = layer(x)
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-4
    assert (y.double() - expected.double()).abs().max() < tolerance * expected.abs().max()


@every_layer
def test_torch_compile_gives_the_same_values(kind):
    torch._dynamo.reset()
    layer, x = make(kind), signal(kind)
    expected = layer(x)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(signal(kind, batch=3)).shape, (3, 6, *x.shape[2:]))


@every_layer
def test_deterministic_algorithms_and_repetition(kind):
    layer, x = make(kind), signal(kind)
    torch.use_deterministic_algorithms(True)
    try:
        results = []
        for _ in range(2):
            layer.zero_grad()
            y = layer(x)
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_layer
@pytest.mark.parametrize("method", ["direct", "fft"])
def test_input_is_not_changed(kind, method):
    layer, x = make(kind, method=method), signal(kind)
    before = x.clone()
    layer(x).sum().backward()
    assert torch.equal(x, before)


@every_layer
def test_every_parameter_learns(kind):
    layer = make(
        kind, kernel_size=None if kind in CF else 33
    )  # in a small one a fresh mask leaves a single tap, at 0, where some slopes vanish
    layer(signal(kind)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        if kind in NIFF and name == "imaginary.readout.bias":
            assert not parameter.grad.any()  # an odd function has no constant; it is there for the published counts
            continue
        assert parameter.grad.abs().max() > 0, name
