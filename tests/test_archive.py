"""Problems of the UCR and UEA archives."""

import json

import numpy as np
import pytest
import sktime.datasets
import torch
from test_bench import _own_place, bench  # noqa: F401

import flexseq as fs
from flexseq.data import archive
from flexseq.data.archive import known_problems, load_archive, load_character_trajectories
from flexseq.data.dataset import as_it_is
from flexseq.data.irregular import DroppedSplit, drop_steps

FAST = ["--epochs", "1", "--depth", "1", "--width", "4"]


def test_official_splits_of_what_comes_with_sktime():
    dataset = load_archive(problem="GunPoint")
    assert dataset.shape == (1, 150)
    assert dataset.sizes == {"train": 40, "validation": 10, "test": 150}
    x, targets = dataset.test.batch([0, 1])
    X, y = sktime.datasets.load_gunpoint(split="test", return_X_y=True, return_type="numpy3D")
    train, _ = sktime.datasets.load_gunpoint(split="train", return_X_y=True, return_type="numpy3D")
    kept = train[dataset.train.indices]
    np.testing.assert_allclose(x[:, 0], (X[:2, 0] - kept.mean()) / (kept.std() + 1e-5), atol=1e-4)
    assert [dataset.classes[i] for i in targets] == y[:2].tolist()


def test_unequal_lengths_come_along():
    dataset = load_archive(problem="JapaneseVowels", limit=60)
    (x, lengths), targets = dataset.test.batch([0, 1, 2])
    assert x.shape[:2] == (3, 12)
    assert lengths.shape == targets.shape == (3,)
    X, _ = sktime.datasets.load_japanese_vowels(split="test", return_X_y=True)
    assert lengths.tolist() == [len(X.iloc[i, 0]) for i in dataset.test.indices[:3]]
    assert (x[0, :, lengths[0] :] == 0).all()


def test_batches_are_as_long_as_their_longest_series_and_outputs_as_with_all_padding():
    split = load_archive(problem="JapaneseVowels", limit=60).test
    shortest = np.argsort(split.lengths[split.indices])[:5]
    (x, lengths), _ = split.batch(shortest)
    assert x.shape[2] == lengths.max() < split.inputs.shape[2]
    torch.manual_seed(0)
    model = fs.FlexTCN(12, 9, depth=2, width=6, kernel_size=20).eval()
    whole = torch.from_numpy(split.inputs[split.indices[shortest]])
    with torch.no_grad():
        torch.testing.assert_close(model(x, lengths), model(whole, lengths))


def test_a_folder_of_ones_own_and_classes_of_one_member(tmp_path):
    for split, labels in (("TRAIN", "aaaaab"), ("TEST", "ab")):
        lines = "\n".join(f"{i}.0,2.0,?,{i + 1}.0:{label}" for i, label in enumerate(labels))
        header = "@problemName Mine\n@timestamps false\n@missing true\n@univariate true\n@equalLength true\n@seriesLength 4\n"
        (tmp_path / f"Mine_{split}.ts").write_text(f"{header}@classLabel true a b\n@data\n{lines}\n")
    dataset = load_archive(problem="Mine", folder=str(tmp_path))
    assert dataset.classes == ["a", "b"]
    assert dataset.shape == (2, 4)  # values are missing
    x, _ = dataset.test.batch([0])
    assert x[0, 1].tolist() == [1, 1, 0, 1]
    assert any("without regard to classes" in note for note in dataset.notes)


def characters(folder, count=40):
    rng = np.random.default_rng(0)
    header = "@problemName CharacterTrajectories\n@timestamps false\n@missing false\n@univariate false\n@dimensions 3\n@equalLength false\n"
    written = {}
    for split in ("TRAIN", "TEST"):
        series = [rng.normal(size=(3, rng.integers(10, 20))) for _ in range(count)]
        lines = (":".join(",".join(map(str, channel)) for channel in one) + f":{1 + i % 2}" for i, one in enumerate(series))
        text = f"{header}@classLabel true 1 2\n@data\n" + "\n".join(lines) + "\n"
        (folder / f"CharacterTrajectories_{split}.ts").write_text(text)
        written[split] = series
    return written["TRAIN"] + written["TEST"]


def test_character_trajectories_are_padded_with_their_last_value(tmp_path):
    series = characters(tmp_path)
    dataset = load_character_trajectories(folder=str(tmp_path))
    longest = max(one.shape[1] for one in series)
    assert dataset.shape == (3, longest)
    assert sum(dataset.sizes.values()) == 80
    padded = np.stack([np.pad(one, ((0, 0), (0, longest - one.shape[1])), "edge") for one in series])
    kept = padded[dataset.train.indices]
    expected = (padded - kept.mean((0, 1))) / (kept.std((0, 1)) + 1e-5)
    x, _ = dataset.test.batch([0, 1])
    np.testing.assert_allclose(x, expected[dataset.test.indices[:2]], atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_runs_of_the_bench(bench, tmp_path):  # noqa: F811
    code, _, err = bench("archive", "--problem", "JapaneseVowels", "--limit", "60", *FAST[:2], "--model", "tcn", "--out", "tcn")
    assert code == 0, err
    code, _, err = bench("archive", "--problem", "JapaneseVowels", "--limit", "60", *FAST, "--out", "vowels")
    assert code == 0, err
    result = json.loads((tmp_path / "vowels" / "result.json").read_text())
    assert result["dataset"]["options"] == {"problem": "JapaneseVowels", "missing": False}
    model = fs.load(tmp_path / "vowels" / "model.safetensors")
    dataset = load_archive(problem="JapaneseVowels", limit=60)
    (x, lengths), targets = dataset.test.batch(range(len(dataset.test)))
    with torch.no_grad():
        assert float((model(x, lengths).argmax(1) == targets).double().mean()) == pytest.approx(result["value"])
    (tmp_path / "characters").mkdir()
    characters(tmp_path / "characters")
    code, _, err = bench("character_trajectories", "--data-dir", "characters", *FAST, "--drop", "50", "--out", "letters")
    assert code == 0, err


@pytest.mark.filterwarnings("ignore")
def test_downloads_through_sktime_and_says_what_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path))

    def fake(name, split, return_X_y, extract_path):
        from pathlib import Path

        place = Path(extract_path) / name
        place.mkdir()
        source = Path(sktime.datasets.__path__[0]) / "data" / "GunPoint"
        for part in ("TRAIN", "TEST"):
            (place / f"{name}_{part}.ts").write_text((source / f"GunPoint_{part}.ts").read_text())

    monkeypatch.setattr("sktime.datasets.load_UCR_UEA_dataset", fake)
    assert load_archive(problem="Coffee").shape == (1, 150)
    assert archive.archive_is_here("Coffee")

    def fails(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("sktime.datasets.load_UCR_UEA_dataset", fails)
    load_archive(problem="Coffee")  # from the cache
    with pytest.raises(fs.InputError, match="Beef could not be fetched: no network"):
        load_archive(problem="Beef")
    assert not list((tmp_path / "data" / "archive").glob(".part*"))


def test_steps_are_dropped_from_series_of_unequal_lengths():
    whole = load_archive(problem="JapaneseVowels", limit=60)
    dropped = drop_steps(whole, 30)
    (x, lengths), _ = whole.train.batch(range(10))
    (y, same), _ = dropped.train.batch(range(10))
    assert torch.equal(lengths, same)
    assert len(set(lengths.tolist())) > 2
    for before, after, length in zip(x, y, lengths.tolist(), strict=True):
        there = after[-1].bool()
        assert there.sum() == length - round(0.3 * length)
        assert not there[length:].any()
        assert torch.equal(after[:-1, there], before[:, there])
        assert not after[:-1, ~there].any()
    short = DroppedSplit(np.ones((1, 1, 1)), np.zeros(1, np.int64), np.arange(1), as_it_is, share=0.7)
    assert short.batch([0])[0].tolist() == [[[1.0], [1.0]]]  # one step is left


def test_every_problem_of_the_archives_is_known():
    assert {"Yoga", "GunPoint", "JapaneseVowels"} < set(known_problems())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["archive"], "archive needs --problem"),
        (["archive", "--problem", "GunPiont"], "did you mean 'GunPoint'"),
        (["archive", "--problem", "GunPoint", "--data-dir", "nowhere"], "does not exist"),
        (["digits", "--problem", "GunPoint"], "no option --problem"),
        (["archive", "--problem", "Covid3Month"], "Covid3Month is a problem of regression"),
        (["archive", "--problem", "JapaneseVowels", "--test-rate", "2"], "whole series of equal lengths"),
        (["archive", "--problem", "GunPoint", "--model", "flexnet"], "flexnet is a network for images, and archive has series"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_options_are_named(bench, arguments, message):  # noqa: F811
    code, _, err = bench(*arguments)
    assert code == 2
    assert message in err
