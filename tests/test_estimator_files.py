"""Files of estimators: what comes back, and what is refused."""

import datetime
import io
import json
import os
import zipfile

import numpy as np
import pandas as pd
import pytest

import flexseq as fs
from flexseq.estimators import FlexTCNClassifier, FlexTCNRegressor

SMALL = {"depth": 1, "width": 4, "epochs": 1, "random_state": 0}
X = np.random.default_rng(0).normal(size=(12, 1, 9))
HALVES = np.arange(12) % 2

LABELS = {
    "objects that are integers": np.array([0, 1] * 6, object),
    "strings": np.array(["a", "b"] * 6),
    "numpy dates": np.array(["2024-01-01", "2024-01-02"] * 6, "datetime64[D]"),
    "pandas dates": np.array([pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02 10:00")] * 6, object),
    "dates": np.array([datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)] * 6, object),
    "bools": np.array([False, True] * 6),
    "floats": np.array([0.5, 1.5] * 6),
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_classes_of_any_type_come_back(y, tmp_path):
    fitted = FlexTCNClassifier(**SMALL).fit(X, y)
    fitted.save(tmp_path / "c")
    loaded = FlexTCNClassifier.load(tmp_path / "c")
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert [type(label) for label in loaded.classes_] == [type(label) for label in fitted.classes_]
    assert loaded.predict(X).tolist() == fitted.predict(X).tolist()


def test_classes_that_cannot_be_written_are_named(tmp_path):
    y = np.array([(0, 1), (1, 2)] * 6 + [None], object)[:12]
    fitted = FlexTCNClassifier(**SMALL).fit(X, HALVES)
    fitted.classes_ = np.empty(2, object)
    fitted.classes_[:] = [y[0], y[1]]
    with pytest.raises(fs.InputError, match=r"cannot save the class \(0, 1\)"):
        fitted.save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def saved():
    return FlexTCNClassifier(**SMALL).fit(X, HALVES).save()[1]


def changed(data, **changes):
    """A file with another object in its JSON, or other members."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    about = json.loads(members["flexseq.json"])
    for path, value in changes.items():
        place = about
        *parents, last = path.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    members["flexseq.json"] = json.dumps(about).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fitted__predict": 1}, "it sets predict, which no fit does"),
        ({"fitted__classes_": 1}, "it sets classes_"),
        ({"fitted__network_": 1}, "it sets network_"),
        ({"fitted__classes": {"values": [0, 1, 2, 3, 4], "dtype": "<i8"}}, "its network has 2 outputs, for 5 classes"),
        ({"fitted__classes": {"values": [0, 1], "dtype": "V8"}}, "are none that a fit has"),
        ({"fitted__classes": 3}, "not an estimator"),
        ({"fitted__classes": {"values": [{"x": "y"}], "dtype": "|O"}}, "not an estimator"),
        (
            {"fitted__scaling_": {"mean": [0.0, 1.0], "scale": [1.0, 1.0], "shows_missing": False}},
            "its network has 1 channels, and its scaling 2",
        ),
        ({"fitted__scaling_": {"mean": ["a"], "scale": [1.0], "shows_missing": False}}, "mean to be 1 finite numbers"),
        ({"fitted__scaling_": {"mean": [0.0], "scale": [float("nan")], "shows_missing": False}}, "scale to be 1 finite numbers"),
        ({"fitted__scaling_": {"mean": [0.0], "scale": [1.0], "shows_missing": False, "more": 1}}, "not an estimator"),
        ({"fitted__scaling_": 1}, "not an estimator"),
        ({"settings": 1}, "not an estimator"),
        ({"settings": {"depht": 1}}, "not an estimator"),
        ({"class": "FlexTCNRegressor"}, "holds a FlexTCNRegressor"),
        ({"format": 99}, "of format 99"),
    ],
    ids=str,
)
def test_forged_files_are_refused(changes, message, saved):
    with pytest.raises(fs.InputError, match=message):
        FlexTCNClassifier.load_from_serial(changed(saved, **changes))


def test_damaged_files_are_refused(saved):
    generator = np.random.default_rng(0)
    expected = FlexTCNClassifier.load_from_serial(saved).predict_proba(X)
    refused = 0
    for place in generator.integers(0, len(saved), 80):
        broken = bytearray(saved)
        broken[place] ^= 1 << int(generator.integers(8))
        try:
            found = FlexTCNClassifier.load_from_serial(bytes(broken))
        except fs.InputError:
            refused += 1
        else:  # a bit that means nothing
            np.testing.assert_array_equal(found.predict_proba(X), expected)
    assert refused > 60
    for content in (b"", saved[: len(saved) // 2], b"PK\x03\x04" * 10, changed(saved)[:-30]):
        with pytest.raises(fs.InputError, match="not an estimator that flexseq saved"):
            FlexTCNClassifier.load_from_serial(content)


def test_names_with_and_without_a_suffix(tmp_path):
    fitted = FlexTCNRegressor(**SMALL, early_stopping=False).fit(X, HALVES.astype(float))
    fitted.save(tmp_path / "model.v2")
    assert (tmp_path / "model.v2.zip").is_file()
    os.rename(tmp_path / "model.v2.zip", tmp_path / "model.flexseq")
    loaded = FlexTCNRegressor.load(tmp_path / "model.flexseq")
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    with pytest.raises(FileNotFoundError):
        FlexTCNRegressor.load(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(fs.InputError, match="is no file of an estimator"):
            FlexTCNRegressor.load(place)


def test_complex_values_are_refused():
    with pytest.raises(fs.InputError, match="X expected real numbers, got complex ones in series 0"):
        FlexTCNClassifier(**SMALL).fit([pd.DataFrame({"a": series[0] + 1j}) for series in X], HALVES)
    with pytest.raises(fs.InputError, match="X expected real numbers, got complex128"):
        FlexTCNClassifier(**SMALL).fit(X + 1j, HALVES)
    with pytest.raises(fs.InputError, match="y expected real numbers, got complex128"):
        FlexTCNRegressor(**SMALL).fit(X, HALVES + 1j)


def test_estimators_that_are_not_causal(tmp_path):
    fitted = FlexTCNClassifier(**SMALL, causal=False).fit(X, HALVES)
    assert not fitted.network_.blocks[0].conv1.causal
    fitted.save(tmp_path / "c")
    np.testing.assert_array_equal(FlexTCNClassifier.load(tmp_path / "c").predict_proba(X), fitted.predict_proba(X))
    with pytest.raises(fs.InputError, match="causal expected true or false, got 'no'"):
        FlexTCNRegressor(**SMALL, causal="no").fit(X, HALVES)
