"""Splits, standardisation, batches, folders."""

import numpy as np
import pytest
import torch

from flexseq import InputError
from flexseq.data.dataset import Split
from flexseq.data.digits import load_digits
from flexseq.data.loader import EpochLoader
from flexseq.data.places import existing_folder
from flexseq.data.splits import limited, stratified_split
from flexseq.data.standardise import standardiser


def a_split(samples=23, channels=2, length=5):
    inputs = np.arange(samples * channels * length, dtype=np.float32).reshape(samples, channels, length)
    return Split(inputs, np.arange(samples) % 3, np.arange(samples)[::-1].copy(), lambda x: x)


def test_digits_are_rows_of_images_split_in_proportion():
    data = load_digits()
    assert data.shape == (1, 64)
    assert data.sizes == {"train": 1257, "validation": 270, "test": 270}
    parts = [set(part.indices) for part in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 1797
    for part in (data.train, data.validation, data.test):
        assert np.bincount(part.targets[part.indices]).min() > 0.09 * len(part)
    x, y = data.train.batch(range(1257))
    assert abs(x.mean()) < 1e-4
    assert abs(x.std() - 1) < 1e-3
    from sklearn.datasets import load_digits as original

    image, target = original(return_X_y=True)
    i = data.train.indices[7]
    assert y[7] == target[i]
    assert np.corrcoef(x[7, 0].numpy(), image[i])[0, 1] > 0.9999


def test_split_is_scikit_learns_with_the_papers_random_states():
    from sklearn.model_selection import train_test_split

    targets = np.arange(200) % 4
    train, rest = train_test_split(np.arange(200), train_size=0.7, random_state=0, stratify=targets)
    validation, test = train_test_split(rest, train_size=0.5, random_state=1, stratify=targets[rest])
    for ours, theirs in zip(stratified_split(targets), (train, validation, test), strict=True):
        assert np.array_equal(ours, theirs)


def test_limit_keeps_classes_in_proportion_and_is_repeatable():
    targets = np.repeat([0, 1], [60, 30])
    chosen = limited(targets, 30)
    assert np.bincount(targets[chosen]).tolist() == [20, 10]
    assert np.array_equal(chosen, limited(targets, 30))
    assert len(limited(targets, None)) == len(limited(targets, 1000)) == 90


def test_too_few_samples_are_named():
    with pytest.raises(InputError, match="cannot split 5 samples of 3 classes"):
        stratified_split(np.array([0, 0, 1, 1, 2]))
    with pytest.raises(InputError, match="--limit expected at least 2, one sample for each class, got 1"):
        limited(np.repeat([0, 1], [60, 30]), 1)


@pytest.mark.parametrize(("per", "axes"), [("step", (0, 1)), ("channel", (0, 2)), ("all", (0, 1, 2))])
def test_standardiser_uses_the_training_split_alone(per, axes):
    inputs = np.random.default_rng(0).normal(3, 2, (700, 4, 6)).astype(np.float32)
    inputs[500:] += 100
    train = np.random.default_rng(1).permutation(500)
    x = torch.from_numpy(inputs)
    mean = inputs[:500].astype(np.float64).mean(axes, keepdims=True)
    std = inputs[:500].astype(np.float64).std(axes, keepdims=True)
    expected = (inputs - mean) / (std + 1e-5)
    torch.testing.assert_close(standardiser(inputs, train, per=per)(x).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def batches(loader):
    return [tuple(x.tolist() for x in batch) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_follows_from_seed_and_epoch(workers):
    split = a_split()
    loader = EpochLoader(split, 4, seed=1, workers=workers)
    first, again = batches(loader), batches(EpochLoader(split, 4, seed=1))
    assert first == again
    assert len(first) == len(loader) == 6
    loader.sampler.set_epoch(1)
    second = batches(loader)
    assert second != first
    assert sorted(y for _, ys in second for y in ys) == sorted(y for _, ys in first for y in ys)
    assert batches(EpochLoader(split, 4, seed=2)) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_is_asked_for_at_the_first_batch_not_when_the_iterator_is_made(workers):
    loader = EpochLoader(a_split(), 4, seed=1, workers=workers)
    iterator = iter(loader)
    loader.sampler.set_epoch(3)
    late = [tuple(x.tolist() for x in batch) for batch in iterator]
    assert late == batches(loader)


def test_loading_does_not_touch_the_generator_that_dropout_uses():
    before = torch.random.get_rng_state()
    batches(EpochLoader(a_split(), 4, seed=1, workers=2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_seed_the_split_keeps_its_order():
    split = a_split()
    xs = torch.cat([x for x, _ in EpochLoader(split, 4)])
    assert torch.equal(xs, torch.from_numpy(split.inputs[split.indices]))


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"the data folder .*nowhere does not exist"):
        existing_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        existing_folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty"):
        existing_folder(tmp_path / "empty")
