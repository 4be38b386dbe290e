"""Channels by name, targets by label, steps by time stamp."""

import warnings

import numpy as np
import pandas as pd
import pytest

import flexseq as fs
from flexseq.estimators import FlexTCNClassifier, FlexTCNRegressor
from flexseq.estimators.inputs import aligned, as_frames, in_order, with_regular_steps

CLASSES = np.arange(20) % 2


def classifier(**options):
    return FlexTCNClassifier(**{"depth": 1, "width": 8, "epochs": 40, "batch_size": 8, "lr": 0.01, "random_state": 0, **options})


def frames(order=("level", "noise"), rng=None):
    rng = rng or np.random.default_rng(0)
    made = [pd.DataFrame({"level": np.full(9, float(k)), "noise": 100 + rng.normal(size=9)}) for k in CLASSES]
    return [frame[list(order)] for frame in made]


def as_nested(panel):
    return pd.DataFrame({name: [frame[name] for frame in panel] for name in panel[0]})


def as_multiindex(panel, labels=None):
    return pd.concat(dict(zip(range(len(panel)) if labels is None else labels, panel, strict=True)))


KINDS = pytest.mark.parametrize("kind", [list, as_nested, as_multiindex], ids=["df-list", "nested", "multiindex"])


@KINDS
def test_columns_in_another_order_are_put_in_that_of_fit(kind):
    fitted = classifier().fit(kind(frames()), CLASSES)
    assert fitted.channels_ == ["level", "noise"]
    swapped = kind(frames(("noise", "level")))
    assert fitted.score(swapped, CLASSES) == 1.0
    np.testing.assert_array_equal(fitted.predict_proba(swapped), fitted.predict_proba(kind(frames())))


def test_columns_in_different_orders_within_one_panel():
    panel = [frame if i % 3 else frame[["noise", "level"]] for i, frame in enumerate(frames())]
    assert classifier().fit(panel, CLASSES).score(frames(), CLASSES) == 1.0


def test_names_survive_saving(tmp_path):
    fitted = classifier(epochs=2).fit(frames(), CLASSES)
    fitted.save(tmp_path / "c")
    loaded = FlexTCNClassifier.load(tmp_path / "c")
    np.testing.assert_array_equal(loaded.predict_proba(frames(("noise", "level"))), fitted.predict_proba(frames()))


@KINDS
def test_unknown_and_missing_channels_are_named(kind):
    fitted = classifier(epochs=1).fit(kind(frames()), CLASSES)
    other = [frame.rename(columns={"noise": "sound"}) for frame in frames()]
    with pytest.raises(fs.InputError, match="expected the channels 'level', 'noise', as in fit, got no 'noise' in series 0"):
        fitted.predict(kind(other))
    more = [frame.assign(third=1.0) for frame in frames()]
    with pytest.raises(fs.InputError, match="got 'third' too in series 0"):
        fitted.predict(kind(more))


def test_panels_whose_series_have_other_channels_or_two_of_a_name():
    panel = frames()
    panel[3] = panel[3].rename(columns={"noise": "sound"})
    with pytest.raises(fs.InputError, match="as series 0 has, got no 'noise' in series 3"):
        classifier().fit(panel, CLASSES)
    with pytest.raises(fs.InputError, match="different names, got 'a' twice in series 0"):
        classifier().fit([frame.set_axis(["a", "a"], axis=1) for frame in frames()], CLASSES)


def test_arrays_without_names_go_by_position():
    array = np.stack([frame.to_numpy().T for frame in frames()])
    fitted = classifier().fit(array, CLASSES)
    assert fitted.channels_ is None
    assert fitted.score(array, CLASSES) == 1.0
    assert fitted.score(frames(), CLASSES) == 1.0
    named = classifier().fit(frames(), CLASSES)
    assert named.score(array, CLASSES) == 1.0


@pytest.mark.parametrize("kind", [as_nested, as_multiindex], ids=["nested", "multiindex"])
def test_targets_with_labels_go_to_their_series(kind):
    labels = [f"patient {i}" for i in range(20)]
    panel = kind(frames())
    panel = panel.set_axis(labels) if kind is as_nested else as_multiindex(frames(), labels)
    y = pd.Series(CLASSES, labels)
    shuffled = y.sample(frac=1, random_state=0)
    fitted = classifier().fit(panel, shuffled)
    assert fitted.score(panel, shuffled) == 1.0
    assert (fitted.predict(panel) == CLASSES).all()
    numbers = FlexTCNRegressor(depth=1, width=8, epochs=40, lr=0.01, random_state=0, early_stopping=False)
    numbers.fit(panel, shuffled.astype(float))
    assert np.abs(numbers.predict(panel) - CLASSES).mean() < 0.2


def test_targets_without_their_series_labels_go_by_position():
    y = pd.Series(CLASSES, np.arange(20)[::-1])
    assert aligned(y, None) is y  # arrays and lists have no labels
    other = pd.Series(CLASSES, np.arange(100, 120))
    assert aligned(other, list(range(20))) is other
    with pytest.raises(fs.InputError, match="one target for each label of X"):
        aligned(pd.Series([0, 1, 1], ["b", "a", "a"]), ["a", "a", "b"])


@pytest.mark.parametrize("order", [("slow", "fast"), ("fast", "slow")])
def test_channels_of_unequal_lengths_lose_nothing(order):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    columns = {
        "slow": [pd.Series(rng.normal(size=6)) for _ in y],
        "fast": [pd.Series(rng.normal(size=12) + np.repeat([0, 4 * k], 6)) for k in y],
    }
    panel = pd.DataFrame({name: columns[name] for name in order})
    with pytest.warns(UserWarning, match="unequal lengths or time stamps in 40 series"):
        fitted = classifier().fit(panel, y)
    with pytest.warns(UserWarning, match="unequal lengths"):
        assert fitted.score(panel, y) == 1.0


def test_channels_are_joined_by_time_stamp():
    cells = pd.DataFrame({"a": [pd.Series([1.0, 2.0, 3.0], [0, 1, 2])], "b": [pd.Series([5.0, 6.0], [1, 3])]})
    with pytest.warns(UserWarning, match="series 0: 'a' 3 steps, 'b' 2 steps"):
        (frame,), labels = as_frames(cells)
    expected = pd.DataFrame({"a": [1, 2, 3, np.nan], "b": [np.nan, 5, np.nan, 6]})
    pd.testing.assert_frame_equal(frame, expected, check_dtype=False)
    assert labels == [0]
    with pytest.raises(fs.InputError, match="several in series 0, channel 'a'"):
        as_frames(pd.DataFrame({"a": [pd.Series([1.0, 2.0], [0, 0])], "b": [pd.Series([5.0, 6.0], [1, 3])]}))
    with pytest.raises(fs.InputError, match="a series in every cell, got nan for series 1, channel 'a'"):
        as_frames(pd.DataFrame({"a": [pd.Series([1.0, 2.0]), np.nan]}))


INDICES = {
    "integers": lambda n: pd.Index(7 + 2 * np.arange(n)),
    "floats": lambda n: pd.Index(0.1 * np.arange(n)),
    "dates": lambda n: pd.date_range("2024-02-27", periods=n, freq="h"),
    "durations": lambda n: pd.timedelta_range("0s", periods=n, freq="20ms"),
    "months": lambda n: pd.period_range("2020-11", periods=n, freq="M"),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_gaps_are_filled_with_missing_values(index):
    whole = pd.DataFrame({"a": np.arange(12.0)}, index(12))
    holes = whole.drop(whole.index[[3, 4, 8]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (kept,), step = with_regular_steps([whole], "close")
    assert kept is whole
    with pytest.warns(UserWarning, match=r'not evenly spaced in 1 series .* gaps="fill"'):
        (closed, _), _ = with_regular_steps([holes, whole], "close")
    assert len(closed) == 9
    (filled, _), found = with_regular_steps([holes, whole], "fill")
    assert found == pytest.approx(step)
    expected = whole["a"].to_numpy().copy()
    expected[[3, 4, 8]] = np.nan
    np.testing.assert_array_equal(filled["a"].to_numpy(), expected)


def test_time_stamps_off_the_grid_are_refused_with_fill():
    frame = pd.DataFrame({"a": np.arange(5.0)}, [0.0, 1.0, 2.0, 2.5, 4.0])
    with pytest.raises(fs.InputError, match=r"whole numbers of steps apart, each once, got 2\.5 in series 0"):
        with_regular_steps([frame], "fill")
    with pytest.raises(fs.InputError, match=r"each once, got 1\.0 in series 0"):
        with_regular_steps([frame.set_axis([0.0, 1.0, 1.0, 2.0, 3.0])], "fill")
    with pytest.raises(fs.InputError, match="gaps of fewer steps"):
        with_regular_steps([frame.set_axis([0.0, 1.0, 2.0, 3.0, 1e9])], "fill")
    with pytest.raises(fs.InputError, match="gaps expected close or fill, got 'x'"):
        classifier(gaps="x").fit(frames(), CLASSES)


def test_a_series_with_gaps_is_classified_by_where_its_steps_are():
    """A bump at step 10 or 30 of 40; most other steps are left out, so that closed up the two look alike."""
    rng = np.random.default_rng(0)

    def panel():
        made = []
        for k in CLASSES:
            x = pd.DataFrame({"a": rng.normal(size=40) / 10}, pd.date_range("2024-01-01", periods=40, freq="min"))
            start = 30 if k else 10
            x.iloc[start : start + 4] += 3
            kept = np.zeros(40, bool)
            kept[[0, 1, 39]] = kept[start : start + 4] = True
            made.append(x[kept])
        return made

    fitted = classifier(gaps="fill", head="last", epochs=80).fit(panel(), CLASSES)
    assert fitted.score(panel(), CLASSES) >= 0.9
    assert fitted.step_ == pytest.approx(1 / 24 / 60)
    assert in_order([pd.DataFrame({"a": [1.0]})], None)[0].shape == (1, 1)
