"""FlexTCN as a sktime regressor."""

from typing import Any, ClassVar

import numpy as np
from sktime.regression.base import BaseRegressor

from flexseq.errors import InputError
from flexseq.estimators.base import FlexTCNEstimator
from flexseq.kernels import KernelFactory
from flexseq.training.objective import OBJECTIVES


class FlexTCNRegressor(FlexTCNEstimator, BaseRegressor):
    """Predict a number for each series with a FlexTCN; targets are standardised inside.

    Takes the series that `FlexTCNClassifier` does, and scales them alike.

    Args:
        depth, width, kernel, kernel_size, mask_sigma, dropout, head, epochs, batch_size, lr: as for `FlexTCNClassifier`.
        early_stopping: hold out a share of the training series, stop when the squared error there has not improved for `patience` epochs,
            and take the weights of the best epoch; of fewer than five series none is held out. On by default, unlike the
            classifier's: small sets of numbers are soon overfitted. What is held out does not train.
        validation_fraction, patience, warm_start, random_state, device, verbose, gaps, causal: as for `FlexTCNClassifier`.

    Attributes:
        network_: the FlexTCN.
        history_: a list with a dict for each epoch; errors are of the scaled targets.
        best_epoch_: with early stopping, which epoch's weights these are, counted from 1.

    Example:
        >>> import numpy as np
        >>> from flexseq.estimators import FlexTCNRegressor
        >>> X = np.random.default_rng(0).normal(size=(40, 1, 20))
        >>> y = 100 + 5 * X.mean((1, 2))
        >>> regressor = FlexTCNRegressor(depth=1, epochs=20, random_state=0).fit(X, y)
        >>> bool(np.abs(regressor.predict(X) - y).mean() < np.abs(y.mean() - y).mean())
        True
    """

    _tags: ClassVar[dict[str, Any]] = {
        "authors": "flexseq",
        "maintainers": "flexseq",
        "python_dependencies": ["torch", "pytorch-lightning"],
        "property:randomness": "derandomized",
        "capability:random_state": True,
        "X_inner_mtype": "df-list",
        "y_inner_mtype": "numpy1D",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
        "capability:categorical_in_X": False,
    }

    def __init__(
        self,
        depth: int = 3,
        width: int = 30,
        kernel: str | KernelFactory = "magnet",
        kernel_size: int | None = None,
        mask_sigma: float | None = None,
        dropout: float = 0.1,
        head: str = "mean",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float = 0.003,
        early_stopping: bool = True,
        validation_fraction: float = 0.2,
        patience: int = 20,
        warm_start: bool = False,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool = False,
        gaps: str = "close",
        causal: bool = True,
    ):
        self.depth = depth
        self.width = width
        self.kernel = kernel
        self.kernel_size = kernel_size
        self.mask_sigma = mask_sigma
        self.dropout = dropout
        self.head = head
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.verbose = verbose
        self.gaps = gaps
        self.causal = causal
        super().__init__()

    target_mean_: float
    target_std_: float

    def _fit(self, X: list[Any], y: np.ndarray) -> "FlexTCNRegressor":
        y = np.asarray(y, np.float64)
        fits = np.abs(y) <= np.finfo(np.float32).max
        if not fits.all():
            what = "numbers that float32 can hold" if np.isfinite(y[~fits][0]) else "finite numbers"
            raise InputError(f"y expected {what}, got {y[~fits][0]} at {int(np.argmin(fits))}")
        panel, before = self._before(X, 1)
        mean, std = before.get("of_targets", (float(y.mean()), float(y.std()) or 1.0))
        scaled = ((y - mean) / std).astype(np.float32)
        self._train(panel, before, scaled, OBJECTIVES["regression"], 1, "regression", of_targets=(mean, std))
        self.target_mean_, self.target_std_ = mean, std
        return self

    def _predict(self, X: list[Any]) -> np.ndarray:
        return self._outputs(X)[:, 0].numpy() * self.target_std_ + self.target_mean_

    def _fitted_as_json(self) -> dict[str, Any]:
        return {**super()._fitted_as_json(), "target_mean_": self.target_mean_, "target_std_": self.target_std_}

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Small settings for sktime's tests."""
        small = {"depth": 1, "width": 8, "epochs": 3, "batch_size": 8}
        return [
            {**small, "early_stopping": False, "random_state": 0},
            {**small, "kernel": "siren", "head": "last", "random_state": 1},
        ]
