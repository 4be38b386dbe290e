"""Parameter groups, schedule, penalty, and a training run."""

import copy
import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flexseq as fs
from flexseq.data.dataset import Dataset, Split
from flexseq.training.fit import fit, pick_device, predict
from flexseq.training.module import Learner
from flexseq.training.objective import OBJECTIVES
from flexseq.training.parameters import kernel_penalty
from flexseq.training.recipe import Recipe
from flexseq.training.schedule import warmup_cosine

CPU = torch.device("cpu")


def two_tones(samples=160, length=24):
    """Two classes of noisy sines."""
    generator = np.random.default_rng(0)
    targets = np.arange(samples) % 2
    t = np.arange(length)
    inputs = np.sin(0.4 * (1 + targets[:, None]) * t + generator.uniform(0, 6, (samples, 1))) + generator.normal(0, 0.1, (samples, length))
    inputs = inputs[:, None].astype(np.float32)
    parts = np.split(np.arange(samples), [samples // 2, 3 * samples // 4])
    train, validation, test = (Split(inputs, targets, part, lambda x: x) for part in parts)
    return Dataset("tones", "made here", train, validation, test, ["low", "high"], inputs.shape[1:])


def a_model():
    torch.manual_seed(3)
    return fs.FlexTCN(1, 2, depth=1, width=6, mask_sigma=0.3)


def test_masks_are_found_by_type_also_in_copies():
    model = copy.deepcopy(fs.FlexTCN(depth=2))
    others, masks = fs.param_groups(model, lr=0.01, mask_lr_scale=0.1)
    assert (others["lr"], masks["lr"]) == (0.01, pytest.approx(0.001))
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(".mask." in names[id(p)] for p in masks["params"])
    assert len(masks["params"]) == 8
    assert len(others["params"]) + len(masks["params"]) == len(names)
    assert len(fs.param_groups(fs.TCN(), lr=0.01)) == 1


def test_masks_move_at_a_tenth_of_the_rate():
    model = a_model()
    optimizer = torch.optim.SGD(fs.param_groups(model, lr=1.0), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name] - p, torch.full_like(p, 0.1 if ".mask." in name else 1.0))


def test_penalty_is_the_sum_of_kernel_and_bias_norms():
    model = fs.FlexTCN(depth=1)
    model(torch.randn(1, 1, 50))
    expected = 0
    for block in model.blocks:
        for conv in (block.conv1, block.conv2):
            torch.nn.init.normal_(conv.bias)
            expected += conv.sample_kernel().norm() + conv.bias.norm()
    torch.testing.assert_close(kernel_penalty(model), expected)
    assert kernel_penalty(fs.TCN()) == 0


def test_schedule_rises_from_zero_and_falls_as_a_cosine_to_its_floor():
    rates = [warmup_cosine(step, steps=100, warmup_steps=20, floor=1e-4) for step in range(101)]
    assert rates[0] == 0
    assert np.allclose(np.diff(rates[:21]), 1 / 20)
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 80, eta_min=1e-4)
    for rate in rates[20:]:
        assert rate == pytest.approx(torch_cosine.get_last_lr()[0], abs=1e-9)
        torch_cosine.optimizer.step()
        torch_cosine.step()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_run_learns_and_leaves_its_log(tmp_path, precision):
    model, data = a_model(), two_tones()
    recipe = Recipe(epochs=10, batch_size=8, lr=0.02, kernel_penalty=1e-4, gradient_clip=10.0, precision=precision)
    fitted = fit(model, data, recipe, tmp_path, device=CPU)
    predicted, true = predict(model, data.test, device=CPU, batch_size=8)
    assert (predicted == true).float().mean() > 0.9
    assert [row["epoch"] for row in fitted.rows] == list(range(1, 11))
    assert fitted.rows[-1]["train_loss"] < 0.5 * fitted.rows[0]["train_loss"]
    best = max(fitted.rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert fitted.best_epoch == best["epoch"]
    with open(tmp_path / "history.csv") as file:
        assert [float(row["train_loss"]) for row in csv.DictReader(file)] == [row["train_loss"] for row in fitted.rows]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.csv", "last.ckpt"]


def test_adam_is_not_fused_for_parameters_with_gaps():
    model, recipe = a_model(), Recipe(epochs=1, batch_size=8, lr=0.1)

    def fused():
        return Learner(model, OBJECTIVES["classification"], 2, recipe, 1).configure_optimizers()["optimizer"].defaults["fused"]

    assert fused()
    model.with_gaps = torch.nn.Parameter(torch.randn(4, 6)[:, :3])
    assert not fused()


def test_losses_are_means_over_samples_whatever_the_batches(tmp_path):
    """40 series validate in batches of 32 and 8: the mean of the two batches' means is another number."""
    model, data = a_model(), two_tones()
    fitted = fit(model, data, Recipe(epochs=1, batch_size=32, lr=0.01), tmp_path, device=CPU)
    inputs, targets = data.validation.batch(np.arange(40))
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model.eval()(inputs), targets, reduction="none")
    assert fitted.rows[0]["validation_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)
    assert losses.mean().item() != pytest.approx((losses[:32].mean() + losses[32:].mean()).item() / 2, rel=1e-5)


def test_statistics_are_averaged_over_the_training_split(tmp_path):
    model, data = a_model(), two_tones()
    fit(model, data, Recipe(epochs=1, batch_size=16, lr=0.01, average_statistics=True), tmp_path, device=CPU)
    norm = model.blocks[0].norm1
    inputs, _ = data.train.batch(np.arange(len(data.train)))
    with torch.no_grad():
        features = model.blocks[0].conv1(inputs)
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2)), atol=1e-4, rtol=1e-4)  # batches are of one size
    assert norm.momentum == 0.1
    assert not model.training
    without = a_model()
    fit(without, data, Recipe(epochs=1, batch_size=16, lr=0.01), tmp_path / "without", device=CPU)
    assert not torch.allclose(without.blocks[0].norm1.running_mean, norm.running_mean, atol=1e-4)
    torch.testing.assert_close(without.head.weight, model.head.weight)


def test_best_weights_are_those_of_the_best_epoch(tmp_path):
    model, data = a_model(), two_tones()
    fitted = fit(model, data, Recipe(epochs=6, batch_size=8, lr=0.05), tmp_path / "long", device=CPU)
    model.load_state_dict(fitted.best_weights)
    predicted, true = predict(model, data.validation, device=CPU, batch_size=8)
    assert (predicted == true).double().mean().item() == pytest.approx(fitted.rows[fitted.best_epoch - 1]["validation_accuracy"], abs=1e-6)


def test_gradients_are_clipped(tmp_path):
    weights = []
    for clip in (0.0, 1e-9):
        model = a_model()
        fit(model, two_tones(), Recipe(epochs=2, batch_size=8, lr=1e-3, gradient_clip=clip), tmp_path / str(clip), device=CPU)
        weights.append(model.blocks[0].norm1.bias.detach().clone())
    assert not torch.equal(*weights)


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    from flexseq.training.callbacks import WholeCheckpoints

    io = WholeCheckpoints()
    io.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def half(checkpoint, path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        io.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path):
    model = a_model()
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(fs.InputError, match="training loss became nan in epoch 1; a lower learning rate may help"):
        fit(model, two_tones(), Recipe(epochs=2, batch_size=8, lr=0.01), tmp_path, device=CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs expected at least 1, got 0"),
        ({"lr": 0.0}, "lr expected above 0"),
        ({"lr": float("nan")}, "lr expected above 0, got nan"),
        ({"precision": "8"}, "precision expected one of"),
        ({"workers": -1}, "workers expected at least 0"),
    ],
)
def test_bad_recipes_are_named(arguments, message):
    with pytest.raises(fs.InputError, match=message):
        Recipe(**{"epochs": 1, "batch_size": 1, "lr": 0.1, **arguments})


def test_a_device_that_is_not_there_is_named():
    assert pick_device("cpu") == CPU
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(fs.InputError, match=f"device expected auto or one of .*, got '{missing}'"):
        pick_device(missing)


def step_record(monkeypatch, tmp_path, **recipe):
    """Train, and note each step's learning rates and each loss that was differentiated."""
    rates, losses = [], []
    original_step, original_backward = torch.optim.Adam.step, torch.Tensor.backward

    def step(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.param_groups])
        return original_step(self, *args, **kwargs)

    def backward(self, *args, **kwargs):
        losses.append(self.item())
        return original_backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    fit(a_model(), two_tones(), Recipe(**{"epochs": 20, "batch_size": 20, "lr": 0.01, **recipe}), tmp_path, device=CPU)
    return np.array(rates), np.array(losses)


def test_rates_rise_and_fall_at_every_step_and_masks_have_a_tenth(monkeypatch, tmp_path):
    rates, _ = step_record(monkeypatch, tmp_path)  # 80 samples: 4 steps an epoch, 80 in all, a warm-up of 2 epochs
    assert rates.shape == (80, 2)
    assert np.allclose(rates[:9, 0], 0.01 * np.arange(9) / 8)
    assert (np.diff(rates[8:, 0]) < 0).all()
    assert rates[-1, 0] < 1e-4
    assert np.allclose(rates[:, 1], 0.1 * rates[:, 0])


def test_penalty_is_part_of_the_loss(monkeypatch, tmp_path):
    _, without = step_record(monkeypatch, tmp_path / "a", epochs=1)
    _, with_penalty = step_record(monkeypatch, tmp_path / "b", epochs=1, kernel_penalty=0.5)
    model = a_model()
    model(torch.randn(1, 1, 24))
    assert with_penalty[0] - without[0] == pytest.approx(0.5 * kernel_penalty(model).item(), rel=1e-4)


def test_files_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    import os

    from flexseq.files import replacing

    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: calls.append("fsync") or fsync(*a))
    monkeypatch.setattr(os, "replace", lambda *a: calls.append("replace") or replace(*a))
    with replacing(tmp_path / "a") as part:
        part.write_text("x")
    assert calls == ["fsync", "replace"]


def test_a_torchvision_of_another_torch_does_no_harm(tmp_path):
    """As PyPI's does beside a CPU build of torch: installed, and failing to import."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (tmp_path / "torchvision-0.29.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.29.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.29.1\n")
    code = """
import numpy as np
from flexseq.estimators import FlexTCNClassifier
X = np.random.default_rng(0).normal(size=(8, 1, 12))
print(FlexTCNClassifier(depth=1, width=4, epochs=1, random_state=0).fit(X, np.arange(8) % 2).predict(X).shape)
"""
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(8,)"
