"""FlexTCN and its relatives."""

import copy
import functools
import pickle

import pytest
import torch

import flexseq as fs


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (lambda: fs.FlexTCN(depth=2), 105_548),
        (lambda: fs.FlexTCN(depth=4), 239_436),
        (lambda: fs.FlexTCN(depth=6), 373_324),
        (lambda: fs.FlexTCN(3, depth=2), 107_588),
        (lambda: fs.FlexTCN(3, depth=4), 241_476),
        (lambda: fs.FlexTCN(3, depth=6), 375_364),
        (lambda: fs.CKCNN(), 98_286),
        (lambda: fs.CKCNN(3), 100_386),
        (lambda: fs.FlexNet(), 671_650),
        (lambda: fs.CIFARResNet(depth=44), 658_586),
        (lambda: fs.CIFARResNet(depth=32), 464_154),
    ],
)
def test_parameter_counts_are_the_papers(model, parameters):
    assert count(model()) == parameters


MODELS = {
    "flextcn": functools.partial(fs.FlexTCN, depth=1),
    "conv": functools.partial(fs.FlexTCN, depth=1, conv="conv", kernel_size=5),
    "layer": functools.partial(fs.FlexTCN, depth=1, norm="layer"),
    "cktcn": functools.partial(fs.CKTCN, depth=1),
    "ckcnn": functools.partial(fs.CKCNN, depth=1),
    "tcn": functools.partial(fs.TCN, depth=2),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@every_model
def test_heads(model):
    x = torch.randn(3, 2, 40)
    assert model(2, 5, head="last").eval()(x).shape == (3, 5)
    assert model(2, 5, head="mean").eval()(x).shape == (3, 5)
    sequence = model(2, 5, head="sequence").eval()
    assert sequence(x).shape == (3, 5, 40)
    last, mean = model(2, 5, head="last").eval(), model(2, 5, head="mean").eval()
    for other in (last, mean):
        other(x)
        other.load_state_dict(sequence.state_dict())
    torch.testing.assert_close(last(x), sequence(x)[..., -1])
    torch.testing.assert_close(mean(x), sequence(x).mean(-1))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ckcnn"])
def test_networks_do_not_see_the_future(name):
    options = {} if name in ("tcn", "conv") else {"method": "direct"}
    model = MODELS[name](1, 4, head="sequence", **options).eval()
    x = torch.randn(2, 1, 60)
    model(x)
    changed = x.clone()
    changed[..., 30:] = torch.randn(2, 1, 30)
    assert torch.equal(model(x)[..., :30], model(changed)[..., :30])


@pytest.mark.parametrize("kernel", [*fs.kernels.KERNELS, functools.partial(fs.kernels.MAGNet, hidden=8)])
@pytest.mark.parametrize("conv", ["flex", "ck"])
def test_every_kernel_network_trains(kernel, conv):
    model = fs.FlexTCN(depth=1, width=8, conv=conv, kernel=kernel)
    model(torch.randn(2, 1, 30)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("length", [1, 2, 63, 500])
def test_flextcn_6_works_on_any_length(length):
    assert fs.FlexTCN(depth=6)(torch.randn(2, 1, length)).shape == (2, 10)


def test_classifier_starts_small():
    head = fs.FlexTCN(width=300, num_classes=100, depth=1).head
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.bias.any()


@every_model
def test_save_load_deepcopy_and_pickle(model, tmp_path):
    network = model(2, 5).eval()
    x = torch.randn(3, 2, 40)
    expected = network(x)
    fs.save(network, tmp_path / "model.safetensors")
    for other in (fs.load(tmp_path / "model.safetensors"), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(other) is type(network)
        assert torch.equal(other(x), expected)


def test_compiled_network_recompiles_for_few_of_many_crops():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = fs.FlexTCN(depth=1, width=8, dropout=0.0, method="fft")
    x = torch.randn(4, 1, 64)
    model(x)
    compiled = torch.compile(model, backend="aot_eager")
    sizes = set()
    for _ in range(8):
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for block in model.blocks:
                for conv in (block.conv1, block.conv2):
                    conv.mask.sigma.mul_(1.3)
                    sizes.add(conv.sample_kernel().shape[-1])
    assert len(sizes) > 5
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] <= 3
    assert len(counters["graph_break"]) == 1  # the read of the masks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "FlexTCN expected depth to be an integer of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        ({"conv": "flexx"}, "unknown conv 'flexx': did you mean 'flex'"),
        ({"conv": "conv"}, "expected a kernel_size of at least 1 with conv='conv', got None"),
        ({"norm": "bach"}, "unknown norm 'bach': did you mean 'batch'"),
        ({"head": "list"}, "unknown head 'list': did you mean 'last'"),
        ({"kernel": "gabbor"}, "unknown kernel 'gabbor': did you mean 'gabor'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(fs.InputError, match=message):
        fs.FlexTCN(**arguments)


@every_model
def test_other_input_is_refused_by_name(model):
    network = model(2, 5)
    for shape in ((3, 1, 40), (3, 2, 8, 8), (3, 2, 0)):
        with pytest.raises(fs.InputError, match=rf"{type(network).__name__} expected sequences of shape \(batch, 2, length\).*got shape"):
            network(torch.randn(shape))


def test_published_settings_of_ckcnn():
    network = fs.CKCNN(omega_0=12.0).blocks[0].conv2.kernel_network
    assert network.omega_0 == 12.0
    assert network.readout.weight_norm
    assert 0.9 < network.readout.bias.abs().max() <= 1
    assert fs.CKCNN().blocks[0].conv1.kernel_network.omega_0 == 31.09


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("method", ["direct", "fft", "overlap"])
@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0])
def test_last_step_in_eval_mode_equals_that_of_the_whole_sequence(norm, method, sigma):
    model = fs.FlexTCN(2, 5, depth=3, width=6, mask_sigma=sigma, norm=norm, method=method).double()
    x = torch.randn(3, 2, 90, dtype=torch.float64)
    model(x)
    model.eval()
    last = model(x)
    model.head.mode = "sequence"  # which computes every step
    torch.testing.assert_close(last, model(x)[..., -1], rtol=1e-10, atol=1e-12)


def test_dropout_drops_its_share_and_keeps_the_mean():
    from flexseq.models.dropout import Dropout

    layer = Dropout(0.3)
    x = torch.ones(1000, 1003)
    y = layer(x)
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=0.002)
    assert y.mean().item() == pytest.approx(1, abs=0.003)
    assert len(y.unique()) == 2
    rows, columns = (y == 0).double().mean(0), (y == 0).double().mean(1)
    for part in (rows, columns):  # as spread as independent draws are, along both axes
        assert part.std().item() == pytest.approx((0.3 * 0.7 / 1000) ** 0.5, rel=0.15)
    x.requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(layer.eval()(x), x)


def test_batch_norm_that_still_learns_sees_every_step_in_eval_mode():
    model = fs.FlexTCN(depth=2, width=6)
    x = torch.randn(8, 1, 100)
    model(x)
    model.eval()
    seen = []
    for block in model.blocks:
        for norm in (block.norm1, block.norm2):
            norm.train()
            norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    model(x)
    assert seen == [100] * 4


def test_dropout_of_almost_everything():
    from flexseq.models.dropout import Dropout

    x = torch.ones(1000)
    for p in (1e-7, 0.999999, 1.0):
        assert torch.isfinite(Dropout(p)(x)).all()


@pytest.mark.parametrize("conv", ["flex", "ck", "njet", "conv"])
def test_a_network_that_is_not_causal_sees_both_ways_alike(conv):
    options = {"kernel_size": 9} if conv == "conv" else {"kernel_size": 21}
    model = fs.FlexTCN(1, 2, depth=1, width=6, conv=conv, causal=False, head="sequence", **options).eval()
    causal = fs.FlexTCN(1, 2, depth=1, width=6, conv=conv, head="sequence", **options)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in causal.parameters())
    x = torch.randn(1, 1, 40)
    changed = x.clone()
    changed[..., 20] += 1
    moved = (model(changed) - model(x)).abs().amax((0, 1)) > 1e-6
    assert moved[:20].any()
    assert moved[21:].any()
    last = fs.FlexTCN(1, 2, depth=1, width=6, conv=conv, causal=False, **options).eval()
    last.load_state_dict(model.state_dict())
    torch.testing.assert_close(last(x), model(x)[..., -1])


def test_a_network_that_is_not_causal_is_blind_to_padding():
    model = fs.FlexTCN(1, 2, depth=2, width=6, kernel_size=21, causal=False, head="mean", mask_sigma=0.3).eval()
    x = torch.randn(2, 1, 40)
    lengths = torch.tensor([40, 25])
    torch.testing.assert_close(model(x, lengths)[1:], model(x[1:, :, :25]), rtol=1e-4, atol=1e-5)
