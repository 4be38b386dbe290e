"""Training at one resolution and testing at another."""

import json

import numpy as np
import pytest
import torch
from test_bench import _own_place, bench  # noqa: F401

import flexseq as fs
from flexseq.bench.transfer import Transfer, at_size
from flexseq.data.augment import resize
from flexseq.data.digit_images import fourier_resize, load_digit_images

SMALL = ["--limit", "200", "--epochs", "1", "--fine-tune-epochs", "1", "--depth", "1", "--width", "4"]


def test_writes_all_three_accuracies(bench, tmp_path):  # noqa: F811
    code, _, err = bench("digits_transfer", *SMALL, "--out", tmp_path / "run")
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for key in ("value", "value_at_source", "value_at_target_as_it_is", "value_at_best_validation"):
        assert 0 <= result[key] <= 1
    assert result["change_at_target"] == pytest.approx(result["value_at_target_as_it_is"] - result["value_at_source"])
    assert (result["source_size"], result["target_size"], result["penalty"]) == (8, 16, "magnet")
    assert result["recipe"]["transfer"] == {"source": 8, "target": 16}
    assert (tmp_path / "run" / "transfer.png").stat().st_size > 5000
    model = fs.load(tmp_path / "run" / "model.safetensors")
    assert model.conv.ratio == 2
    assert fs.load(tmp_path / "run" / "source" / "model.safetensors").conv.ratio == 1
    code, _, err = bench("digits_transfer", *SMALL, "--out", tmp_path / "run")
    assert code == 2
    assert "already holds a run" in err


def test_goes_on_where_it_was_stopped(bench, tmp_path):  # noqa: F811
    bench("digits_transfer", *SMALL, "--out", tmp_path / "whole")
    bench("digits_transfer", *SMALL, "--out", tmp_path / "stopped")
    (tmp_path / "stopped" / "result.json").unlink()  # as if it had stopped before the end
    code, _, err = bench("digits_transfer", *SMALL, "--out", tmp_path / "stopped", "--resume")
    assert code == 0, err
    whole, stopped = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "stopped"))
    assert stopped["value_at_target_as_it_is"] == whole["value_at_target_as_it_is"]
    assert stopped["value"] == whole["value"]


def test_models_that_cannot_change_are_named_and_pay_nothing(bench, tmp_path):  # noqa: F811
    code, _, err = bench("digits_transfer", *SMALL[:6], "--model", "cifar_resnet", "--depth", "8", "--out", tmp_path / "run")
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["unchanged_layers"]) == 7
    assert result["penalty"] == "none"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "3"], "--source expected at least 4 px, got 3"),
        (["--target", "0"], "--target expected at least 4 px, got 0"),
        (["--penalty", "both"], "penalty"),
        (["--model", "flextcn"], "flextcn is a network for series"),
        (["--model", "tcn"], "tcn is a network for series"),
        (["--fine-tune-epochs", "0"], "--fine-tune-epochs expected at least 1, got 0"),
        (["--target", "6"], "at least 8 px, got 6"),
        (["--conv", "conv", "--kernel-size", "3", "--penalty", "magnet"], "expected a network of continuous kernels"),
        (["--kernel", "siren", "--penalty", "magnet"], "known highest frequency"),
    ],
)
def test_bad_options_are_named(bench, arguments, message, tmp_path):  # noqa: F811
    code, _, err = bench("digits_transfer", *SMALL, *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run" / "result.json").exists()


def test_other_tasks_have_no_such_options(bench):  # noqa: F811
    code, _, err = bench("digits", "--target", "16")
    assert code == 2
    assert "transfer tasks have them" in err


def test_fourier_interpolation_keeps_the_pixels_between_which_it_interpolates():
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    fine = fourier_resize(x, 16)
    coarse = fourier_resize(x, 8)
    assert fine.shape == (2, 1, 16, 16)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)
    n = torch.arange(8, dtype=torch.float64)
    wave = torch.cos(torch.pi * 2 * (n + 0.5) / 8).expand(1, 1, 8, 8)  # one of the cosines that mirror at the edges
    finer = torch.cos(torch.pi * 2 * (torch.arange(24, dtype=torch.float64) / 3 + 0.5) / 8).expand(1, 1, 24, 24)
    torch.testing.assert_close(fourier_resize(wave, 24), finer)
    with pytest.raises(fs.InputError, match="at least 8 px, got 7"):
        fourier_resize(x, 7)


def test_training_images_are_augmented_at_their_own_size():
    dataset = load_digit_images(limit=100)
    sizes = []

    def augment(x):
        sizes.append(x.shape[-1])
        return x

    dataset.augment = augment
    small = at_size(dataset, 4, resize)
    assert small.shape == (1, 4, 4)
    assert small.train.batch(np.arange(3))[0].shape == (3, 1, 8, 8)
    assert small.augment(small.train.batch(np.arange(3))[0]).shape == (3, 1, 4, 4)
    assert sizes == [8]
    assert small.test.batch(np.arange(3))[0].shape == (3, 1, 4, 4)


def test_fine_tuning_trains_batch_norm(bench, tmp_path):  # noqa: F811
    """A model that was tested is in eval mode, and has to come back from it."""
    bench("digits_transfer", *SMALL, "--out", tmp_path / "run")
    before, after = (fs.load(tmp_path / "run" / place / "model.safetensors").norm.num_batches_tracked for place in ("source", "."))
    assert after == 2 * before


def test_sizes_are_checked():
    with pytest.raises(fs.InputError, match="--source expected at least 4"):
        Transfer(2, 8, resize)


@pytest.mark.parametrize(("option", "below"), [("--start-below-nyquist", True), ("--start-as-drawn", False)])
def test_what_is_trained_starts_below_nyquist_where_asked(bench, option, below, tmp_path, monkeypatch):  # noqa: F811
    limits = []

    def spy(model, *arguments, **options):
        limits.append(float(fs.max_frequency(model.conv, include_mask=False, of_nyquist=True).detach()))
        return fit(model, *arguments, **options)

    from flexseq.training.fit import fit

    monkeypatch.setattr("flexseq.bench.transfer.fit", spy)
    code, _, err = bench("digits_transfer", *SMALL, option, "--out", tmp_path / "run")
    assert code == 0, err
    assert (limits[0] < 1.001) == below


def test_series_can_start_below_nyquist(bench, tmp_path):  # noqa: F811
    code, _, err = bench("digits", "--epochs", "1", "--limit", "200", "--depth", "1", "--start-below-nyquist", "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = bench("digits_transfer", *SMALL[:6], "--model", "cifar_resnet", "--depth", "8", "--start-below-nyquist")
    assert code == 2
    assert "expected a model with continuous convolutions" in err
