"""Series of unequal lengths in one batch."""

import pytest
import torch
from torch import nn

import flexseq as fs
from flexseq.models.norms import SynchronisedBatchNorm, batch_norm, normalise, synchronise_batch_norm

LENGTHS = torch.tensor([40, 17, 1, 33])


def network(norm="batch", head="last", method="auto", **options):
    torch.manual_seed(0)
    return fs.FlexTCN(2, 3, depth=2, width=6, kernel_size=40, mask_sigma=0.3, dropout=0.0, norm=norm, head=head, method=method, **options)


def padded(fill, length=40, seed=1):
    x = torch.randn(4, 2, 40, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([x, torch.zeros(4, 2, length - 40)], 2)
    for series, n in zip(x, LENGTHS, strict=True):
        series[:, n:] = fill
    return x


@pytest.mark.parametrize("head", ["last", "mean"])
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_in_eval_mode_each_series_is_as_if_alone(norm, head):
    model = network(norm, head).eval().double()
    x = padded(float("nan")).double()
    with torch.no_grad():
        together = model(x, LENGTHS)
        alone = torch.cat([model(series[None, :, :n]) for series, n in zip(x, LENGTHS.tolist(), strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_what_padding_holds_changes_nothing_exactly(norm, training):
    x = padded(0.0)
    outputs = []
    for fill in (0.0, 1e9, float("nan")):
        model = network(norm, method="direct").train(training)
        outputs.append(model(padded(fill), LENGTHS))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    model = network(norm, method="direct").train(training)
    assert torch.equal(model(x, torch.full((4,), 40)).isfinite(), torch.ones(4, 3, dtype=torch.bool))


@pytest.mark.parametrize("kernel_size", [None, 40])
@pytest.mark.parametrize("head", ["last", "mean"])
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_more_padding_changes_nothing_in_the_direct_method(norm, head, training, kernel_size):
    outputs = []
    for length in (40, 61, 200):
        torch.manual_seed(0)
        model = fs.FlexTCN(
            2,
            3,
            2,
            6,
            kernel_size=kernel_size,
            mask_sigma=0.3,
            dropout=0.0,
            norm=norm,
            head=head,
            method="direct",
            variance_preserving=True,
        )
        with torch.no_grad():
            model.head.weight.mul_(100)  # starts at 0.01
        outputs.append(model.train(training)(padded(5.0, length), LENGTHS))
        assert model.blocks[0].conv1.kernel_size == (40,)
    assert outputs[0].abs().max() > 0.5
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_features_through_ffts_change_by_rounding_alone(norm, training):
    outputs = []
    for length in (40, 61):
        model = network(norm, "mean", "fft").train(training)
        model.head = torch.nn.Identity()
        model.head.forward = lambda features, lengths: features[..., :40]
        outputs.append(model(padded(5.0, length), LENGTHS))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5 * outputs[0].abs().max()


@pytest.mark.parametrize("method", ["direct", "fft", "overlap"])
@pytest.mark.parametrize("training", [False, True])
def test_more_padding_changes_nothing_beyond_rounding(method, training):
    short, long = network(method=method).train(training), network(method=method).train(training)
    a, b = short(padded(0.0), LENGTHS), long(padded(5.0, 61), LENGTHS)
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    a.sum().backward()
    b.sum().backward()
    for p, q in zip(short.parameters(), long.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4)
    for name, value in short.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, long.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_whole_series_are_as_without_lengths():
    model = network().double()
    x = torch.randn(4, 2, 40, dtype=torch.float64)
    other = network().double()
    torch.testing.assert_close(model(x, torch.full((4,), 40)), other(x), atol=1e-12, rtol=1e-10)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def test_a_batch_of_a_single_step_trains():
    for lengths in (None, torch.tensor([1])):
        network()(torch.randn(1, 2, 1), lengths).sum().backward()


def test_tcn_takes_lengths_too():
    torch.manual_seed(0)
    model = fs.TCN(2, 3, depth=3, width=6, kernel_size=3).eval().double()
    x = padded(float("nan")).double()
    with torch.no_grad():
        alone = torch.cat([model(series[None, :, :n]) for series, n in zip(x, LENGTHS.tolist(), strict=True)])
        torch.testing.assert_close(model(x, LENGTHS.to(torch.int16)), alone, atol=1e-12, rtol=1e-12)


def test_sequence_head_and_training_gives_gradients():
    model = network(head="sequence")
    logits = model(padded(float("nan")).requires_grad_(), LENGTHS)
    assert logits.shape == (4, 3, 40)
    logits.masked_fill(torch.arange(40) >= LENGTHS[:, None, None], 0).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(5, 3, 20), (5, 3, 4, 6)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_equals_torchs_where_nothing_is_padded(shape, momentum):
    kind = nn.BatchNorm1d if len(shape) == 3 else nn.BatchNorm2d
    ours, theirs = kind(3, momentum=momentum).double(), kind(3, momentum=momentum).double()
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        a, b = batch_norm(ours, x), theirs(y)
        torch.testing.assert_close(a, b)
        weight = torch.randn(shape, dtype=torch.float64)
        for out, inputs in ((a, x), (b, y)):
            (out * weight).sum().backward()
            inputs.retain_grad()
        torch.testing.assert_close(x.grad, y.grad)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])


def test_batch_norm_counts_valid_steps_only():
    norm, reference = nn.BatchNorm1d(2).double(), nn.BatchNorm1d(2).double()
    x = padded(float("inf")).double()
    valid = torch.arange(40) < LENGTHS[:, None, None]
    y = normalise(norm, x, valid)
    steps = torch.cat([series[:, :n] for series, n in zip(x, LENGTHS, strict=True)], 1)  # (channels, all valid steps)
    expected = reference(steps.T[..., None])[..., 0].T
    torch.testing.assert_close(torch.cat([series[:, :n] for series, n in zip(y, LENGTHS, strict=True)], 1), expected)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert (y.masked_select(~valid.expand_as(y)) == 0).all()


def test_one_process_needs_no_others():
    model = synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(3))))
    assert all(isinstance(m, SynchronisedBatchNorm) for m in (model[0], model[1][0]))
    x = torch.randn(4, 3, 7)
    torch.testing.assert_close(model[0](x), nn.BatchNorm1d(3)(x))
    assert model.state_dict().keys() == nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(3))).state_dict().keys()


def test_bad_lengths_are_named():
    model = network()
    with pytest.raises(fs.InputError, match=r"expected 4 integers as lengths, got torch\.int64 of shape"):
        model(padded(0.0), LENGTHS[:2])
    with pytest.raises(fs.InputError, match=r"got torch\.float32"):
        model(padded(0.0), LENGTHS.float())
