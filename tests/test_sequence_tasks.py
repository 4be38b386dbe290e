"""Images as sequences, series with missing steps, series at another rate."""

import json

import numpy as np
import pytest
import torch
from test_bench import _own_place, bench  # noqa: F401
from test_images import known, official  # noqa: F401

import flexseq as fs
from flexseq.data import images
from flexseq.data.digits import load_digits
from flexseq.data.image_sequences import IMAGES_OF, load_image_sequences
from flexseq.data.irregular import at_rate, drop_steps, resample
from flexseq.data.synthetic import load_adding, load_copy_memory


@pytest.fixture
def folder(tmp_path, known):  # noqa: F811
    """Miniature files of MNIST and CIFAR-10 in their official formats."""
    for name in ("mnist", "cifar10"):
        files, _ = official(name)
        known(name, files)
        for file, data in files.items():
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / file).write_bytes(data)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "shape"), [("smnist", (1, 784)), ("pmnist", (1, 784)), ("scifar10", (3, 1024)), ("npcifar10", (96, 1000))]
)
def test_shapes_and_pixels(name, shape, folder):
    dataset = load_image_sequences(name, folder=folder)
    x, targets = dataset.test.batch([0, 3])
    assert x.shape == (2, *shape)
    assert dataset.shape == shape
    assert dataset.augment is None
    pictures = images.load_images(IMAGES_OF[name], folder=folder)
    y, same = pictures.test.batch([0, 3])
    assert torch.equal(targets, same)
    if name in ("smnist", "scifar10"):
        assert torch.equal(x[:, :, 5 * y.shape[-1] + 2], y[:, :, 5, 2])
    elif name == "pmnist":
        assert not torch.equal(x, y.flatten(2))
        assert torch.equal(x.sort()[0], y.flatten(2).sort()[0])
        again = load_image_sequences(name, folder=folder).train.batch([0])[0]
        assert torch.equal(again, dataset.train.batch([0])[0])
        order = [int((y[0].flatten() == value).nonzero()[0, 0]) for value in x[0, 0, :20]]
        assert len(set(order)) > 1
    else:
        assert torch.equal(x[:, 2 * 32 + 7, 11], y[:, 2, 11, 7])  # step: row; channel: colour * 32 + column
        noise = x[0, :, 32:]
        assert torch.equal(noise, x[1, :, 32:])
        assert torch.equal(noise, dataset.train.batch([0])[0][0, :, 32:])
        assert abs(float(noise.mean())) < 0.02
        assert abs(float(noise.std()) - 1) < 0.02


def test_missing_steps_are_zeros_the_same_of_each_series_every_time():
    dataset = load_digits(limit=100)
    dropped = drop_steps(dataset, 30)
    assert dropped.shape == (2, 64)
    x, targets = dropped.train.batch([0, 1, 2])
    y, same = dataset.train.batch([0, 1, 2])
    assert torch.equal(targets, same)
    there = x[:, 1:]
    assert (there.sum(2) == 64 - round(0.3 * 64)).all()
    assert torch.equal(x[:, :1], y * there)
    assert not torch.equal(there[0], there[1])
    assert torch.equal(dropped.train.batch([2])[0][0], x[2])


def test_resampling_is_band_limited():
    t = torch.arange(400, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * t / 20)
    for rate in (2.0, 0.5, 1.5):
        expected = torch.sin(2 * torch.pi * torch.arange(400 * rate, dtype=torch.float64) / rate / 20)
        found = resample(wave[None], rate)[0]
        assert len(found) == 400 * rate
        inside = slice(int(60 * rate), int(-60 * rate))
        torch.testing.assert_close(found[inside], expected[inside], atol=5e-3, rtol=0)
    fast = torch.sin(2 * torch.pi * t / 3)  # above the Nyquist frequency of half the rate
    assert resample(fast[None], 0.5)[0, 40:-40].abs().max() < 0.05


def test_runs_with_missing_steps_and_at_another_rate(bench, tmp_path):  # noqa: F811
    options = ["digits", "--epochs", "1", "--limit", "200", "--depth", "1", "--width", "6"]
    code, out, err = bench(*options, "--drop", "30", "--test-rate", "2", "--out", "run")
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["dataset"]["shape"] == [2, 64]
    assert result["dataset"]["options"]["drop"] == 30
    assert result["test_rate"] == 2
    assert 0 <= result["value_at_test_rate"] <= 1
    assert "2 times the rate" in out
    model = fs.load(tmp_path / "run" / "model.safetensors")
    assert model.blocks[0].conv1.ratio == 1
    dataset = drop_steps(load_digits(limit=200), 30)
    fs.set_resolution(model, 2)
    x, targets = at_rate(dataset.test, 2).batch(np.arange(len(dataset.test)))
    with torch.no_grad():
        assert float((model(x).argmax(1) == targets).double().mean()) == pytest.approx(result["value_at_test_rate"])


@pytest.mark.parametrize("name", ["smnist", "pmnist", "scifar10", "npcifar10"])
def test_a_task_runs_on_the_official_files(bench, folder, tmp_path, name):  # noqa: F811
    options = ["--epochs", "1", "--depth", "1", "--width", "4", "--batch-size", "32"]
    code, _, err = bench(name, "--data-dir", folder, *options, "--out", "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["paper_value"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--drop", "100"], "--drop expected a percentage from 1 to 99, got 100"),
        (["digits_transfer", "--drop", "30"], "no option --drop"),
        (["digits", "--test-rate", "0"], "--test-rate expected 0.01 to 100, got 0"),
        (["digits_transfer", "--test-rate", "2"], "is for series over time"),
    ],
)
def test_bad_options_are_named(bench, arguments, message):  # noqa: F811
    code, _, err = bench(*arguments, "--out", "run")
    assert code == 2
    assert message in err


def test_copy_memory_asks_for_the_first_ten_symbols():
    dataset = load_copy_memory(length=30, limit=50)
    x, targets = dataset.train.batch(range(50))
    assert x.shape == (50, *dataset.shape) == (50, 10, 50)
    assert (x.sum(1) == 1).all()
    symbols = x.argmax(1)
    assert torch.equal(targets[:, -10:], symbols[:, :10])
    assert (targets[:, :-10] == -100).all()
    assert set(symbols[:, :10].unique().tolist()) == set(range(1, 9))
    assert (symbols[:, 10:39] == 0).all()
    assert (symbols[:, 39:] == 9).all()
    assert not torch.equal(x[:20], dataset.test.batch(range(20))[0])


def test_adding_asks_for_the_sum_of_the_marked_numbers():
    dataset = load_adding(length=40, limit=300)
    x, targets = dataset.train.batch(range(300))
    assert x.shape == (300, *dataset.shape) == (300, 2, 40)
    assert (x[:, 1, :20].sum(1) == 1).all()
    assert (x[:, 1, 20:].sum(1) == 1).all()
    torch.testing.assert_close((x[:, 0] * x[:, 1]).sum(1), targets)
    assert float(targets.var()) == pytest.approx(1 / 6, rel=0.2)


def test_synthetic_tasks_run(bench, tmp_path):  # noqa: F811
    options = ["--epochs", "1", "--limit", "64", "--length", "20", "--width", "6"]
    for name, measure in (("copy_memory", "accuracy"), ("adding", "error")):
        code, out, err = bench(name, *options, "--seeds", "2", "--out", name)
        assert code == 0, err
        assert f"test {measure}, final epoch" in out
        result = json.loads((tmp_path / name / "seed-1" / "result.json").read_text())
        assert result["metric"] == measure
        assert result["dataset"]["options"] == {"length": 20}
        model = fs.load(tmp_path / name / "seed-1" / "model.safetensors")
        dataset = {"copy_memory": load_copy_memory, "adding": load_adding}[name](length=20, limit=64)
        x, targets = dataset.test.batch(range(64))
        with torch.no_grad():
            outputs = model(x)
        if name == "adding":
            expected = float((outputs[:, 0] - targets).square().mean())
        else:
            expected = float((outputs.argmax(1) == targets)[targets >= 0].double().mean())
        assert result["value"] == pytest.approx(expected, abs=1e-6)
        assert (tmp_path / name / "seed-1" / "curves.png").is_file()
    code, _, err = bench("copy_memory", "--head", "last")
    assert code == 2
    assert "a class at each step" in err
    code, _, err = bench("adding", "--head", "sequence")
    assert code == 2
    assert "one answer a sequence" in err
    code, _, err = bench("adding", "--length", "1")
    assert code == 2
    assert "--length expected at least 2, got 1" in err
