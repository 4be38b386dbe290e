"""FlexTCN behind sktime's interface."""

import copy
import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from sktime.base import load as sktime_load
from sktime.datasets import load_basic_motions, load_japanese_vowels
from sktime.utils.estimator_checks import check_estimator

import flexseq as fs
from flexseq.data.panel import Scaling, read_panel
from flexseq.estimators import FlexTCNClassifier, FlexTCNRegressor

SMALL = {"depth": 1, "width": 8, "epochs": 2, "batch_size": 8, "random_state": 0}


def waves(n=24, channels=1, length=30, seed=0):
    """Slow and fast waves of random phase, and noise."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 6, length)
    y = np.arange(n) % 2
    X = np.sin(np.where(y, 3, 1)[:, None, None] * t + rng.uniform(0, 6, (n, channels, 1))) + 0.1 * rng.normal(size=(n, channels, length))
    return X, np.array(["slow", "fast"])[y]


def unequal(X, seed=0):
    """The same as a nested DataFrame, each series cut at a length of its own."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {f"c{j}": [pd.Series(series[j, :n]) for series, n in zip(X, rng.integers(12, X.shape[2] + 1, len(X)), strict=True)] for j in (0,)}
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [FlexTCNClassifier, FlexTCNRegressor])
def test_sktimes_own_checks(estimator):
    results = check_estimator(estimator, raise_exceptions=True, verbose=False)
    assert len(results) > 100
    assert set(results.values()) == {"PASSED"}


def test_learns_to_tell_waves_apart():
    X, y = waves(40)
    classifier = FlexTCNClassifier(depth=2, width=12, epochs=25, random_state=0).fit(X, y)
    Z, z = waves(40, seed=1)
    assert classifier.score(Z, z) > 0.95
    proba = classifier.predict_proba(Z)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (classifier.classes_[proba.argmax(1)] == classifier.predict(Z)).all()


@pytest.mark.filterwarnings("ignore:.*unequal.*")
def test_unequal_lengths_are_as_if_alone():
    X, y = waves()
    frame = unequal(X)
    classifier = FlexTCNClassifier(**SMALL).fit(frame, y)
    together = classifier.predict_proba(frame)
    alone = np.concatenate([classifier.predict_proba(frame.iloc[[i]]) for i in range(len(frame))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_missing_values_get_a_channel_and_constant_channels_do_no_harm():
    X, y = waves(channels=3)
    X[:, 1] = 7.5
    X[2, 0, 5:9] = np.nan
    X[3, :, 4] = np.nan
    classifier = FlexTCNClassifier(**SMALL).fit(X, y)
    assert classifier.network_.in_channels == 4
    inputs = classifier.scaling_.inputs(read_panel([pd.DataFrame(series.T) for series in X]))
    assert (inputs[:, 1] == 0).all()
    before, after = inputs[2, 0, 4], inputs[2, 0, 9]
    np.testing.assert_allclose(inputs[2, 0, 5:9], before + (after - before) * np.arange(1, 5) / 5, rtol=1e-5)  # on the line
    np.testing.assert_allclose(inputs[2, 3, 5:9], 2 / 3, rtol=1e-6)
    assert (inputs[3, 3, 4], inputs[0, 3, 0]) == (0, 1)
    assert np.isfinite(classifier.predict_proba(X)).all()
    complete = FlexTCNClassifier(**SMALL).fit(X[4:], y[4:])
    assert complete.network_.in_channels == 3
    assert np.isfinite(complete.predict_proba(X)).all()  # missing for the first time


def test_missing_values_at_the_ends_are_as_the_nearest_and_padding_stays_0():
    values = np.array([[np.nan, 1.0, np.nan, 3.0, np.nan], [2.0, np.nan, 4.0, np.nan, np.nan]])
    frames = [pd.DataFrame({"a": values[0]}), pd.DataFrame({"a": values[1, :4]})]
    panel = read_panel(frames)
    inputs = Scaling([0.0], [1.0], True).inputs(panel)
    assert inputs[0].tolist() == [[1, 1, 2, 3, 3], [0, 1, 0, 1, 0]]
    assert inputs[1].tolist() == [[2, 3, 4, 4, 0], [1, 0, 1, 0, 0]]
    empty = read_panel([pd.DataFrame({"a": [1.0, 2.0], "b": [np.nan, np.nan]})])
    assert Scaling([0.0, 0.0], [1.0, 1.0], True).inputs(empty)[0, 1].tolist() == [0, 0]


def test_standardisation_skips_what_is_missing():
    values = np.random.default_rng(0).normal(3, 2, (5, 2, 20))
    values[1, 0, 3] = np.nan
    scaling = Scaling.of(read_panel([pd.DataFrame(series.T) for series in values]))
    np.testing.assert_allclose(scaling.mean, np.nanmean(values, (0, 2)))
    np.testing.assert_allclose(scaling.scale, 1 / np.nanstd(values, (0, 2)), rtol=1e-4)


def test_a_channel_of_all_orders_of_magnitude_is_compressed_and_others_are_not(tmp_path):
    rng = np.random.default_rng(0)
    size = 10 ** rng.uniform(0, 5, 200)  # a few large series beside many small ones
    X = np.stack([rng.poisson(size, (30, 200)).T, rng.normal(3, 2, (200, 30))], 1).astype(float)
    X[:, 0, :10] = 0
    X[size.argmax(), 0] *= 50
    panel = read_panel(frames(X))
    scaling = Scaling.of(panel, compress=True)
    median = np.median(X[:, 0])
    unit = np.quantile(np.linalg.norm(X[:, 0] - median, axis=1) / 30**0.5, 0.1)
    compressed = np.arcsinh((X[:, 0] - median) / unit)
    inputs = scaling.inputs(panel)
    np.testing.assert_allclose(inputs[:, 0], scipy.stats.zscore(compressed, axis=None), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(inputs[:, 1], scipy.stats.zscore(X[:, 1], axis=None), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(inputs[1:, 2], np.nan_to_num(scipy.stats.zscore(X[1:, 0], axis=1)), atol=1e-5)  # constant series: 0
    assert inputs.shape == (200, scaling.channels, 30) == (200, 3, 30)
    assert Scaling.of(panel).unit is None  # the archive's tasks are as published
    holes = X.copy()
    holes[3, 0, 4:6] = holes[5, 1] = np.nan
    filled = Scaling.of(read_panel(frames(holes)), compress=True).inputs(read_panel(frames(holes)))
    assert filled.shape == (200, 4, 30)
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[3, 2, 4:6], np.interp([4, 5], [3, 6], filled[3, 2, [3, 6]]), rtol=1e-5, atol=1e-6)
    assert filled[3, 3].tolist() == [1] * 4 + [0.5] * 2 + [1] * 24
    regressor = FlexTCNRegressor(**SMALL).fit(X, np.log(size))
    regressor.save(tmp_path / "regressor")
    assert regressor.scaling_ == scaling == FlexTCNRegressor.load(tmp_path / "regressor").scaling_
    np.testing.assert_array_equal(FlexTCNRegressor.load(tmp_path / "regressor").predict(X), regressor.predict(X))


def bursts(noise):
    X = noise * np.random.default_rng(0).normal(size=(40, 1, 100))
    X[:, 0, 30:50] += np.where(np.arange(40) % 2, 1.5, 1.0)[:, None] * np.sin(np.arange(20))
    return X


@pytest.mark.parametrize(
    "X",
    [
        bursts(0),
        bursts(1e-15),
        bursts(1e-3),
        np.pad(np.random.default_rng(0).normal(size=(20, 1, 10)), ((0, 0), (0, 0), (0, 30))),  # padded by its user
        np.random.default_rng(0).random((20, 1, 30)) < 0.1,  # on and off
        np.where(np.arange(20)[:, None, None] < 12, 5.0, np.random.default_rng(0).normal(size=(20, 1, 30))),  # stuck in most series
        1e37 * np.random.default_rng(0).normal(size=(20, 1, 30)),
        np.full((20, 1, 30), 0.1),
    ],
)
def test_quiet_stretches_and_equal_values_are_no_orders_of_magnitude(X):
    assert Scaling.of(read_panel(frames(X.astype(float))), compress=True).unit is None


def test_rounding_is_no_unit_of_compression():
    size = 10.0 ** np.random.default_rng(0).uniform(-3, 3, (60, 1, 1))
    size[:20] = 1e-17
    scaling = Scaling.of(read_panel(frames(size * np.random.default_rng(1).normal(size=(60, 1, 30)))), compress=True)
    assert 1e-5 < scaling.unit[0] < 1e-3


def test_kernels_of_long_series_have_32_steps_and_of_short_ones_their_length():
    for length, size in ((50, 32), (20, 20)):
        X, y = waves(length=length)
        network = FlexTCNClassifier(**SMALL).fit(X, y).network_
        assert {block.conv1.kernel_size for block in network.blocks} == {(size,)}


def test_files_from_before_compression_can_be_read(tmp_path):
    X, y = waves()
    classifier = FlexTCNClassifier(**SMALL).fit(X, y)
    classifier.save(tmp_path / "new")
    with zipfile.ZipFile(tmp_path / "new.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        about = json.loads(new.read("flexseq.json"))
        del about["fitted"]["scaling_"]["centre"], about["fitted"]["scaling_"]["unit"]
        old.writestr("flexseq.json", json.dumps(about))
        old.writestr("model.safetensors", new.read("model.safetensors"))
    np.testing.assert_array_equal(FlexTCNClassifier.load(tmp_path / "old").predict_proba(X), classifier.predict_proba(X))


def test_results_repeat_and_the_users_random_numbers_are_left_alone():
    X, y = waves()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = FlexTCNClassifier(**SMALL).fit(X, y).predict_proba(X)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(first, FlexTCNClassifier(**SMALL).fit(X, y).predict_proba(X))
    assert not np.array_equal(first, FlexTCNClassifier(**{**SMALL, "random_state": 1}).fit(X, y).predict_proba(X))


def test_class_weights_move_predictions():
    X, y = waves(30)
    rare = np.r_[np.flatnonzero(y == "slow"), np.flatnonzero(y == "fast")[:3]]
    shares = {}
    for weight in (None, "balanced", {"fast": 200.0}):
        classifier = FlexTCNClassifier(**{**SMALL, "epochs": 4}, class_weight=weight).fit(X[rare], y[rare])
        shares[str(weight)] = classifier.predict_proba(X)[:, 0].mean()  # of "fast"
    assert shares["None"] < shares["balanced"] < shares["{'fast': 200.0}"]


def test_regressor_scales_its_targets():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 1, 20))
    y = 1e6 + 1e3 * X.mean((1, 2))
    regressor = FlexTCNRegressor(depth=1, epochs=30, random_state=0).fit(X, y)
    assert regressor.score(X, y) > 0.5
    constant = FlexTCNRegressor(**SMALL).fit(X, np.full(60, 4.25))
    np.testing.assert_allclose(constant.predict(X), 4.25, atol=1.0)


def test_early_stopping_takes_the_best_epoch_and_says_where_it_cannot(capsys):
    X, y = waves(40)
    options = {**SMALL, "epochs": 40, "early_stopping": True, "patience": 2}
    classifier = FlexTCNClassifier(**options).fit(X, y)
    accuracies = [row["validation_accuracy"] for row in classifier.history_]
    assert classifier.best_epoch_ == 1 + max(
        range(len(accuracies)), key=lambda i: (accuracies[i], -classifier.history_[i]["validation_loss"])
    )
    assert len(accuracies) == min(40, max(classifier.best_epoch_, 4) + 2)  # 4 epochs of warm-up do not count
    FlexTCNClassifier(**{**options, "verbose": True}).fit(X, y)
    said = f"stopped after epoch {len(accuracies)} of 40; the weights are those of epoch {classifier.best_epoch_}"
    assert said in capsys.readouterr().out
    y[0] = "once"
    with pytest.warns(UserWarning, match="without regard to classes"):
        FlexTCNClassifier(**options).fit(X, y)
    with pytest.warns(UserWarning, match="4 series are too few"):
        few = FlexTCNClassifier(**options).fit(X[1:5], y[1:5])
    assert len(few.history_) == 40


def test_warm_start_goes_on():
    X, y = waves()
    classifier = FlexTCNClassifier(**SMALL, warm_start=True).fit(X, y)
    first = {name: value.clone() for name, value in classifier.network_.state_dict().items()}
    classifier.fit(X, y)
    assert classifier.network_.blocks[0].norm1.num_batches_tracked == 2 * first["blocks.0.norm1.num_batches_tracked"]
    classifier.fit(X, np.where(y == "slow", "other", y))  # other classes: anew
    steps = "blocks.0.norm1.num_batches_tracked"
    assert classifier.network_.state_dict()[steps] == first[steps]
    assert FlexTCNClassifier(**SMALL).fit(X, y).fit(X, y).network_.state_dict()[steps] == first[steps]


def test_warm_start_starts_anew_where_it_has_to():
    X, y = waves()
    classifier = FlexTCNClassifier(**SMALL, warm_start=True).fit(X, y)
    classifier.set_params(depth=2, width=5).fit(X, y)
    assert (len(classifier.network_.blocks), classifier.network_.blocks[0].conv1.out_channels) == (2, 5)
    regressor = FlexTCNRegressor(**SMALL, warm_start=True).fit(X, np.linspace(1e6, 2e6, len(X)))
    first = regressor.target_mean_
    regressor.fit(X, np.linspace(0, 1, len(X)))
    assert regressor.target_mean_ == first  # goes on, in the scale that the weights are for
    regressor.fit(waves(channels=2)[0], np.linspace(0, 1, len(X)))
    assert regressor.target_mean_ == pytest.approx(0.5)


def test_a_fit_that_fails_leaves_a_warm_start_as_it_was():
    X, y = waves()
    classifier = FlexTCNClassifier(**SMALL, warm_start=True).fit(X, y)
    with pytest.raises(fs.InputError, match="a lower learning rate may help"):
        classifier.set_params(lr=1e30).fit(X, y)
    classifier.set_params(lr=1e-3).fit(X, y)
    assert np.isfinite(classifier.predict_proba(X)).all()


def test_settings_from_numpy_ranges_and_integer_classes():
    X, y = waves()
    labels = np.where(y == "slow", 3, -2)
    settings = {name: np.int64(value) for name, value in SMALL.items()}
    classifier = FlexTCNClassifier(**settings, kernel_size=np.int64(9), class_weight={np.int64(3): 2, -2: 1.0}).fit(X, labels)
    loaded = FlexTCNClassifier.load_from_serial(classifier.save()[1])
    assert loaded.class_weight == {3: 2.0, -2: 1.0}
    np.testing.assert_array_equal(loaded.fit(X, labels).predict_proba(X), classifier.predict_proba(X))


def test_the_only_member_of_a_class_trains():
    _, y = waves(40)
    y[7] = "once"
    options = {**SMALL, "early_stopping": True, "validation_fraction": 0.5}
    for seed in range(4):
        classifier = FlexTCNClassifier(**{**options, "random_state": seed})
        with pytest.warns(UserWarning, match="without regard to classes"):
            training, validating = classifier._hold_out(np.unique(y, return_inverse=True)[1], "classification")
        assert 7 in training
        assert sorted([*training, *validating]) == list(range(40))


def test_small_units_are_no_constant():
    X, y = waves()
    inputs = [FlexTCNClassifier(**SMALL).fit(scale * X, y).scaling_.inputs(read_panel(frames(scale * X))) for scale in (1.0, 1e-13)]
    np.testing.assert_allclose(inputs[0], inputs[1], atol=1e-4)


def test_one_class_is_predicted_with_sktimes_warning():
    X, _ = waves()
    with pytest.warns(UserWarning, match="single label|single class|only one"):
        classifier = FlexTCNClassifier(**SMALL).fit(X, np.array(["only"] * len(X)))
    assert (classifier.predict(X) == "only").all()


@pytest.mark.parametrize("kind", [FlexTCNClassifier, FlexTCNRegressor])
def test_saved_without_pickled_objects(kind, tmp_path, monkeypatch):
    X, y = waves(channels=2)
    y = y if kind is FlexTCNClassifier else np.arange(len(y)) / 7
    estimator = kind(**SMALL, kernel="gabor").fit(X, y)
    expected = estimator.predict(X)
    estimator.save(tmp_path / "estimator")
    with zipfile.ZipFile(tmp_path / "estimator.zip") as file:
        assert set(file.namelist()) == {"_metadata", "flexseq.json", "model.safetensors"}
    assert sktime_load(str(tmp_path / "estimator")).get_params() == estimator.get_params()  # reads the class from _metadata

    def refused(*arguments, **options):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refused)
    monkeypatch.setattr(pickle, "load", refused)
    for loaded in (kind.load(tmp_path / "estimator.zip"), kind.load(tmp_path / "estimator"), kind.load_from_serial(estimator.save()[1])):
        assert (loaded.predict(X) == expected).all()
        assert loaded.get_params() == estimator.get_params()
        assert loaded.is_fitted
    other = FlexTCNRegressor if kind is FlexTCNClassifier else FlexTCNClassifier
    with pytest.raises(fs.InputError, match=f"not a {other.__name__}"):
        other.load(tmp_path / "estimator.zip")
    (tmp_path / "broken.zip").write_bytes(b"broken")
    with pytest.raises(fs.InputError, match="not an estimator that flexseq saved"):
        kind.load(tmp_path / "broken.zip")
    assert not kind.load_from_serial(kind(**SMALL).save()[1]).is_fitted


def test_classes_keep_their_type_through_files():
    X, y = waves()
    for labels in (np.where(y == "slow", 3, -2), y, y.astype(object), y == "slow", np.where(y == "slow", 0.5, 1.5)):
        classifier = FlexTCNClassifier(**SMALL).fit(X, labels)
        loaded = FlexTCNClassifier.load_from_serial(classifier.save()[1])
        np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
        assert loaded.predict(X).dtype == classifier.predict(X).dtype


def test_copies_and_pickles():
    X, y = waves()
    classifier = FlexTCNClassifier(**SMALL).fit(X, y)
    for twin in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(twin.predict_proba(X), classifier.predict_proba(X))
    assert not classifier.clone().is_fitted


def test_progress_is_shown_on_request(capsys):
    X, y = waves()
    FlexTCNClassifier(**SMALL).fit(X, y)
    assert capsys.readouterr().out == ""
    FlexTCNClassifier(**SMALL, verbose=True).fit(X, y)
    assert "epoch 2/2" in capsys.readouterr().out


def test_longer_series_than_in_training():
    X, y = waves()
    classifier = FlexTCNClassifier(**SMALL).fit(X[:, :, :20], y)
    assert classifier.network_.blocks[0].conv1.kernel_size == (20,)
    assert classifier.predict_proba(X).shape == (len(X), 2)


def frames(X):
    return [pd.DataFrame(series.T) for series in X]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[3, 0].__setitem__(5, np.inf), "finite values, got inf in series 3, channel 0, step 5"),
        (lambda X: X[:, 1].fill(np.nan), "values in every channel, got none in channel 1"),
    ],
)
def test_bad_values_are_named(change, message):
    X, y = waves(channels=2)
    change(X)
    with pytest.raises(fs.InputError, match=message):
        FlexTCNClassifier(**SMALL).fit(frames(X), y)


def test_bad_series_and_settings_are_named():
    X, y = waves(channels=2)
    classifier = FlexTCNClassifier(**SMALL).fit(X, y)
    nested = pd.DataFrame({"c": [pd.Series(series[0]) for series in X]})
    nested.iloc[3, 0] = pd.Series([], dtype=float)
    with pytest.raises(fs.InputError, match="at least one value, got none in series 3"):
        FlexTCNClassifier(**SMALL).fit(nested, y)
    huge = X.copy()
    huge[3, 1, 5] = 1e39
    with pytest.raises(fs.InputError, match=r"that float32 can hold, got 1e\+39 in series 3, channel 1, step 5"):
        classifier.predict(huge)
    with pytest.raises(fs.InputError, match="that float32 can hold, got"):
        Scaling([0.0, 0.0], [1.0, 1e10], False).inputs(read_panel(frames(1e30 * waves(channels=2)[0])))
    with pytest.raises(fs.InputError, match="a class for each series, got nan at 3"):
        FlexTCNClassifier(**SMALL).fit(waves()[0], np.where(np.arange(len(X)) == 3, np.nan, 1.0))
    with pytest.raises(fs.InputError, match=r"float32 can hold, got 1e\+300 at 3"):
        FlexTCNRegressor(**SMALL).fit(waves()[0], np.where(np.arange(len(X)) == 3, 1e300, 1.0))
    with pytest.raises(fs.InputError, match="2 channels, as in fit, got 3"):
        classifier.predict(waves(channels=3)[0])
    with pytest.raises(fs.InputError, match="at least one step, got none in series 1"):
        read_panel([pd.DataFrame(np.zeros((4, 2))), pd.DataFrame(np.zeros((0, 2)))])
    with pytest.raises(fs.InputError, match="series of 2 channels, got 1 in series 1"):
        read_panel([pd.DataFrame(np.zeros((4, 2))), pd.DataFrame(np.zeros((4, 1)))])
    for settings, message in (
        ({"epochs": 0}, "epochs expected an integer of at least 1, got 0"),
        ({"head": "sequence"}, "head expected last or mean"),
        ({"kernel": "magnett"}, "did you mean 'magnet'"),
        ({"class_weight": {"medium": 1.0}}, "classes of y, 'fast', 'slow', got 'medium'"),
        ({"class_weight": "fair"}, "class_weight expected"),
        ({"class_weight": {"slow": 0.0}}, "weights above 0"),
        ({"validation_fraction": 1.0}, "validation_fraction expected"),
        ({"validation_fraction": None}, "validation_fraction expected"),
        ({"width": None}, "width expected an integer of at least 1, got None"),
        ({"device": "tpu"}, "device expected"),
        ({"random_state": "x"}, "random_state expected"),
    ):
        with pytest.raises(fs.InputError, match=message):
            FlexTCNClassifier(**{**SMALL, **settings}).fit(X, y)
    with pytest.raises(fs.InputError, match="cannot save the argument"):
        FlexTCNClassifier(**{**SMALL, "kernel": lambda *a, **k: None}).save()


@pytest.mark.filterwarnings("ignore")
def test_real_series_as_they_are(tmp_path):
    """JapaneseVowels has unequal lengths and 12 channels; of BasicMotions 30 % are taken away."""
    X, y = load_japanese_vowels(split="train", return_X_y=True)
    classifier = FlexTCNClassifier(depth=1, width=12, epochs=4, random_state=0).fit(X, y)
    assert classifier.score(X, y) > 0.5
    X, y = load_basic_motions(split="train", return_X_y=True, return_type="numpy3D")
    X = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
    classifier = FlexTCNClassifier(depth=1, width=12, epochs=10, random_state=0).fit(X, y)
    assert classifier.score(X, y) > 0.5
