"""NaN is never a result: what became NaN is named, and nothing is written over what was there."""

import json
import warnings

import numpy as np
import pytest
import torch
from test_training import CPU, a_model, two_tones
from torch.utils.checkpoint import checkpoint

import flexseq as fs
from flexseq.estimators import FlexTCNClassifier, FlexTCNRegressor
from flexseq.training.fit import CHECKPOINT, fit
from flexseq.training.recipe import Recipe


def recipe(**options):
    return Recipe(**{"epochs": 1, "batch_size": 80, "lr": 0.01, "warmup_epochs": 0, **options})


def test_weights_that_became_nan_in_the_last_step_leave_no_checkpoint(tmp_path):
    model = a_model()

    def spoil(gradient):
        return gradient * float("nan")

    model.head.weight.register_hook(spoil)
    with pytest.raises(fs.InputError, match="the weights became NaN or infinite in epoch 1; a lower learning rate may help"):
        fit(model, two_tones(), recipe(), tmp_path, device=CPU, label=None)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_later_epoch_leaves_the_checkpoint_of_the_one_before(tmp_path):
    model, steps = a_model(), []
    model.head.weight.register_hook(lambda gradient: steps.append(1) or gradient * (float("nan") if len(steps) == 2 else 1))
    with pytest.raises(fs.InputError, match="the weights became NaN or infinite in epoch 2"):
        fit(model, two_tones(), recipe(epochs=3), tmp_path, device=CPU, label=None)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["epoch"] == 0
    assert all(value.isfinite().all() for value in state["state_dict"].values())


@pytest.mark.parametrize(("split", "what"), [("train", "training inputs"), ("validation", "validation inputs")])
def test_data_that_hold_nan_are_named(split, what):
    data = two_tones()
    data.train.inputs[getattr(data, split).indices[3], 0, 5] = np.nan
    with pytest.raises(fs.InputError, match=f"{what} became NaN or infinite in epoch 1: the data hold such values"):
        fit(a_model(), data, recipe(), None, device=CPU, label=None)


def test_a_penalty_without_bounds_is_named():
    with pytest.raises(fs.InputError, match=r"the penalty on kernels' norms became NaN or infinite .* a smaller weight of it may help"):
        fit(a_model(), two_tones(), recipe(kernel_penalty=1e308), None, device=CPU, label=None)


def test_a_validation_loss_that_became_infinite_is_named(monkeypatch):
    model = a_model()
    original = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, x: original(self, x) * (1 if self.training else float("inf")))
    with pytest.raises(fs.InputError, match="the validation loss became nan in epoch 1; a lower learning rate"):
        fit(model, two_tones(), recipe(), None, device=CPU, label=None)


@pytest.mark.parametrize("kind", [FlexTCNClassifier, FlexTCNRegressor])
def test_estimators_raise_in_place_of_nan(kind, monkeypatch):
    X = np.random.default_rng(0).normal(size=(16, 1, 12))
    monkeypatch.setattr("torch.optim.Adam.step", _spoiled)
    with pytest.raises(fs.InputError, match="the weights became NaN or infinite in epoch 1"):
        kind(depth=1, width=4, epochs=1, random_state=0).fit(X, np.arange(16.0) % 2)


def _spoiled(self, closure=None):
    loss = closure()
    for group in self.param_groups:
        for parameter in group["params"]:
            parameter.data.fill_(float("nan"))
    return loss


def test_the_bench_ends_with_one_sentence_and_no_result(tmp_path, monkeypatch):
    from flexseq.bench.plan import make_plan
    from flexseq.bench.run import run

    monkeypatch.setattr("torch.optim.Adam.step", _spoiled)
    plan = make_plan("digits", network={"depth": 1, "width": 4}, training={"epochs": 1}, data={"limit": 200})
    with pytest.raises(fs.InputError, match=r"the (weights|training loss) became (NaN|nan)"):
        run(plan, tmp_path / "run", seeds=1, device="cpu", resume=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("result.json"))


def test_damaged_checkpoints_are_refused(tmp_path):
    fit(a_model(), two_tones(), recipe(epochs=2), tmp_path, device=CPU, label=None)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    places = generator.integers(0, len(whole), 60)
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        message = _error_of(lambda: fit(a_model(), two_tones(), recipe(epochs=2), tmp_path, device=CPU, label=None, resume=True))
        if message:
            assert "last.ckpt" in message
            refused += 1
        else:  # a bit that means nothing, between the members or in their times
            expected = torch.load(_write(tmp_path / "whole", whole), weights_only=True)["state_dict"]
            found = torch.load(_write(tmp_path / "broken", bytes(broken)), weights_only=True)["state_dict"]
            assert all(torch.equal(a, b) for a, b in zip(expected.values(), found.values(), strict=True))
    assert refused > 40
    for content in (b"", whole[: len(whole) // 2], b"x" * 1000, json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(fs.InputError, match=r"last\.ckpt (cannot be read|is damaged)"):
            fit(a_model(), two_tones(), recipe(epochs=2), tmp_path, device=CPU, label=None, resume=True)


def _error_of(function):
    try:
        function()
    except fs.InputError as error:
        return str(error)
    return ""


def _write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [2, 4, 3, 9])
@pytest.mark.parametrize("sigma", [0.075, 1e-3, 1e-6, 0.0, -0.2, 3.0])
@pytest.mark.parametrize("causal", [False, True])
def test_njets_of_any_width_have_finite_kernels_and_gradients(size, sigma, causal):
    layer = fs.NJetConv1d(1, 1, size, causal=causal)
    with torch.no_grad():
        layer.mask.sigma.fill_(sigma)
    layer(torch.randn(1, 1, 12)).square().sum().backward()
    assert layer.sample_kernel().isfinite().all()
    assert layer.sample_kernel().abs().max() < 100
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_an_even_njets_blur_still_sums_to_one():
    layer = fs.NJetConv1d(1, 1, 2)
    with torch.no_grad():
        layer.kernel_network.readout.weight.zero_()
        layer.kernel_network.readout.bias.fill_(1)
    assert layer.sample_kernel().sum().item() == pytest.approx(1)


def test_a_mask_that_shrinks_to_one_tap_is_warned_of_once():
    layer = fs.FlexConv1d(1, 1, 21, mask_sigma=0.3)
    x = torch.randn(1, 1, 30)
    layer(x)
    with torch.no_grad():
        layer.mask.sigma.fill_(0.01)
    with pytest.warns(UserWarning, match="21 taps has shrunk to a single one: its mask has no gradient any more"):
        layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_cfconv_under_checkpointing_is_refused(reentrant):
    layer = fs.CFConv1d(2, 2, 8, positions=4)
    y = checkpoint(layer, torch.randn(1, 2, 8, requires_grad=True), use_reentrant=reentrant)
    with pytest.raises(fs.InputError, match="outside of a backward pass"):
        y.sum().backward()
