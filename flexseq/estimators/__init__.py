"""sktime estimators: fit(X, y), predict(X)."""

from flexseq.estimators.classifier import FlexTCNClassifier
from flexseq.estimators.regressor import FlexTCNRegressor

__all__ = ["FlexTCNClassifier", "FlexTCNRegressor"]
