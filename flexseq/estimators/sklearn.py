"""The estimators as scikit-learn's tools take them: cross_val_score, GridSearchCV, make_pipeline."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from flexseq.errors import InputError
from flexseq.estimators.classifier import FlexTCNClassifier as SktimeClassifier
from flexseq.estimators.regressor import FlexTCNRegressor as SktimeRegressor


class _Adapter(BaseEstimator):
    """One of flexseq's sktime estimators behind scikit-learn's interface.

    Args:
        parameters: of the estimator, by name; `get_params` and `set_params` know each, as grids need.
    """

    _kind: ClassVar[Any]

    def __init__(self, **parameters: Any):
        defaults = self._kind().get_params(deep=False)
        for name in parameters:
            if name not in defaults:
                raise InputError(f"{type(self).__name__} expected settings of {self._kind.__name__}, got {name!r}")
        self.__dict__.update({**defaults, **parameters})
        self._names = tuple(defaults)

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted(cls._kind().get_params(deep=False))

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to series.

        Args:
            X: (series, channels, steps), or (series, steps) for one channel; NaN where values are missing.
            y: (series,).
        """
        self.estimator_ = self._kind(**{name: getattr(self, name) for name in self._names}).fit(_series(X), np.asarray(y))
        self.n_features_in_ = int(np.prod(np.shape(X)[1:]))
        if hasattr(self.estimator_, "classes_"):
            self.classes_ = self.estimator_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """What the network says of each series: (series,)."""
        check_is_fitted(self)
        return self.estimator_.predict(_series(X))


class FlexTCNClassifier(ClassifierMixin, _Adapter):
    """`flexseq.estimators.FlexTCNClassifier` for scikit-learn's tools, on arrays.

    Args:
        parameters: see there.

    Example:
        >>> import numpy as np
        >>> from sklearn.model_selection import cross_val_score
        >>> X = np.sin(np.outer(1 + np.arange(12) % 2, np.linspace(0, 9, 20)))[:, None]
        >>> scores = cross_val_score(FlexTCNClassifier(depth=1, width=8, epochs=15, random_state=0), X, np.arange(12) % 2, cv=2)
        >>> scores.shape
        (2,)
    """

    _kind = SktimeClassifier

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, in the order of `classes_`: (series, classes)."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(_series(X))


class FlexTCNRegressor(RegressorMixin, _Adapter):
    """`flexseq.estimators.FlexTCNRegressor` for scikit-learn's tools, on arrays.

    Args:
        parameters: see there.
    """

    _kind = SktimeRegressor


def _series(X: Any) -> np.ndarray:
    array = np.asarray(X)
    if array.ndim not in (2, 3):
        raise InputError(f"X expected an array of shape (series, channels, steps) or (series, steps), got shape {array.shape}")
    return array[:, None] if array.ndim == 2 else array
