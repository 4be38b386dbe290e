"""scikit-learn's own tools on the estimators."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import flexseq as fs
from flexseq.estimators.sklearn import FlexTCNClassifier, FlexTCNRegressor

SMALL = {"depth": 1, "width": 8, "epochs": 40, "lr": 0.01, "batch_size": 8, "random_state": 0}


def waves(count=36):
    rng = np.random.default_rng(0)
    y = np.arange(count) % 2
    t = np.linspace(0, 6, 20)
    return np.sin((1 + 2 * y[:, None]) * t + rng.uniform(0, 6, (count, 1)))[:, None] + rng.normal(0, 0.05, (count, 1, 20)), y


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cross_val_score(n_jobs):
    X, y = waves()
    scores = cross_val_score(FlexTCNClassifier(**SMALL), X, y, cv=3, n_jobs=n_jobs)
    assert scores.mean() > 0.8
    assert cross_val_score(FlexTCNRegressor(**SMALL), X, y.astype(float), cv=2, n_jobs=n_jobs).shape == (2,)


def test_grid_search():
    X, y = waves()
    search = GridSearchCV(FlexTCNClassifier(**SMALL), {"epochs": [1, 40]}, cv=2, n_jobs=2).fit(X, y)
    assert search.best_params_ == {"epochs": 40}
    assert search.predict_proba(X).shape == (36, 2)
    assert search.score(X, y) > 0.8


def test_pipelines_and_two_axes():
    X, y = waves()
    pipeline = make_pipeline(FunctionTransformer(lambda x: 2 * x), FlexTCNClassifier(**SMALL))
    assert pipeline.fit(X[:, 0], y).score(X[:, 0], y) > 0.8


def test_clones_and_settings():
    one = FlexTCNClassifier(**SMALL)
    assert clone(one).get_params() == one.get_params()
    assert one.set_params(depth=2).depth == 2
    with pytest.raises(fs.InputError, match="got 'depht'"):
        FlexTCNClassifier(depht=1)
    with pytest.raises(fs.InputError, match=r"shape \(3,\)"):
        one.fit(np.zeros(3), [0, 1, 0])
