"""FlexTCN as a sktime classifier."""

import datetime
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sktime.classification.base import BaseClassifier
from torch import Tensor

from flexseq.errors import InputError
from flexseq.estimators.base import FlexTCNEstimator
from flexseq.estimators.inputs import as_frames
from flexseq.kernels import KernelFactory
from flexseq.training.objective import OBJECTIVES, Objective

DATES: dict[str, Any] = {"timestamp": pd.Timestamp, "datetime": datetime.datetime, "date": datetime.date}
"""Types of classes that JSON has no numbers for."""


class FlexTCNClassifier(FlexTCNEstimator, BaseClassifier):
    """Classify series with a FlexTCN: causal convolutions as long as they need to be, with learned sizes.

    Takes series of equal or unequal lengths, of one or more channels, with missing values (NaN). Channels are standardised by the training
    series. One whose series differ by orders of magnitude (all values are 20 times as far from the median as those of the typical series)
    enters twice: passed through arcsinh before, for the series' level, and standardised within each series, for its shape. Missing values
    are filled in from their neighbours, and one more channel says what was there.

    Args:
        depth: residual blocks of two convolutions each.
        width: channels inside.
        kernel: the kernel network: "magnet" | "gabor" | "fourier" | "siren" | "mlp", or a factory such as
            functools.partial(flexseq.kernels.MAGNet, hidden=16).
        kernel_size: taps of each kernel before cropping, the most that it can learn to be; by default 32, or the longest training series'
            length where that is less. Long patterns want more: up to the series' length.
        mask_sigma: standard deviation at which the kernels' masks start, in units of position (2 is the whole kernel); by default 0.5,
            a quarter of the kernel, and for kernels of more than 40 steps ten steps, but at least 0.075.
        dropout: probability.
        head: where the logits come from: the "mean" over time, or the "last" step.
        epochs: by default as many as give about 1,500 steps of the optimiser, between 20 and 200.
        batch_size: series a step; by default a tenth of them, between 16 and 64.
        lr: learning rate of Adam, after a warm-up over a tenth of the epochs and before a cosine decay.
        early_stopping: hold out a share of the training series, stop when accuracy there has not improved for `patience` epochs, and take
            the weights of the best epoch. Where a class is too small to be split, the share is drawn without regard to classes;
            of fewer than five series none is held out.
        validation_fraction: that share.
        patience: epochs after the learning rate's warm-up, which is the first tenth of them.
        class_weight: of the classes in the loss: a dict from class to weight (1 for those that it lacks), "balanced" for the inverse of
            their frequencies, None for equal ones.
        warm_start: a second `fit` goes on from the first one's weights, and scales as the first one did, if channels, classes and the
            network's settings are the same; not after `load`.
        random_state: an integer, for results that repeat; a numpy RandomState; or None.
        device: "cpu", "cuda", "mps", or "auto" for what there is. A fitted estimator keeps its network on the CPU.
        verbose: print a line for each epoch, with the time that is left.
        gaps: what becomes of time stamps that are not evenly spaced: "close", rows are taken one after the other, with a warning; "fill",
            steps that are missing become missing values.
        causal: whether each step sees the past alone; else the future too, with centred kernels.

    Attributes:
        network_: the FlexTCN; after fitting to a single class there is none.
        classes_: the classes, in the order of `predict_proba`'s columns.
        channels_: the channels' names, in the order of the network's inputs, where X had any; later panels are brought into that order.
        history_: a list with a dict for each epoch: epoch, train_loss, train_accuracy, validation_loss, validation_accuracy, lr, seconds.
        best_epoch_: with early stopping, which epoch's weights these are, counted from 1.

    Source:
        Romero et al. 2022, "FlexConv: Continuous Kernel Convolutions with Differentiable Kernel Sizes".

    Example:
        >>> import numpy as np
        >>> from flexseq.estimators import FlexTCNClassifier
        >>> t = np.linspace(0, 6, 30)
        >>> X = np.stack([np.sin(f * t + p) for f in (1, 3) for p in range(8)])[:, None]
        >>> y = np.repeat(["slow", "fast"], 8)
        >>> classifier = FlexTCNClassifier(depth=1, epochs=15, random_state=0).fit(X, y)
        >>> classifier.predict(X[[0, 8]]).tolist()
        ['slow', 'fast']
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
        "capability:predict_proba": True,
        "capability:class_weight": True,
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
        early_stopping: bool = False,
        validation_fraction: float = 0.2,
        patience: int = 20,
        class_weight: dict[Any, float] | str | None = None,
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
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.verbose = verbose
        self.gaps = gaps
        self.causal = causal
        super().__init__()

    def _fit(self, X: list[Any], y: np.ndarray) -> "FlexTCNClassifier":
        missing = np.flatnonzero(pd.isna(y))
        if len(missing):
            raise InputError(f"y expected a class for each series, got {y[missing[0]]} at {missing[0]}")
        targets = np.array([self._class_dictionary[label] for label in y])
        outputs = len(self.classes_)
        panel, before = self._before(X, outputs, tuple(self.classes_.tolist()))
        self._train(panel, before, targets, self._aim(targets), outputs, "classification")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, in the order of `classes_`: (series, classes)."""
        return super().predict_proba(as_frames(X)[0])

    def _aim(self, targets: np.ndarray) -> Objective:
        usual = OBJECTIVES["classification"]
        if self.class_weight is None:
            return usual
        from sklearn.utils.class_weight import compute_class_weight

        if isinstance(self.class_weight, dict):
            unknown = [label for label in self.class_weight if label not in self._class_dictionary]
            if unknown:
                raise InputError(f"class_weight expected classes of y, {', '.join(map(repr, self.classes_.tolist()))}, got {unknown[0]!r}")
            weights = np.array([float(self.class_weight.get(label, 1.0)) for label in self.classes_])
        elif self.class_weight == "balanced":
            weights = compute_class_weight("balanced", classes=np.arange(len(self.classes_)), y=targets)
        else:
            raise InputError(f"class_weight expected a dict, 'balanced' or None, got {self.class_weight!r}")
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise InputError(f"class_weight expected weights above 0, got {weights.tolist()}")
        loss = partial(_weighted_cross_entropy, weights=torch.from_numpy(weights))
        return Objective(loss, usual.predict, usual.measure, usual.higher_is_better)

    def _predict(self, X: list[Any]) -> np.ndarray:
        return self.classes_[self._outputs(X).argmax(1).numpy()]

    def _predict_proba(self, X: list[Any]) -> np.ndarray:
        return self._outputs(X).softmax(1).numpy()

    def _settings_to_save(self, settings: dict[str, Any]) -> dict[str, Any]:
        weights = settings["class_weight"]
        if isinstance(weights, dict):  # whose keys JSON would make strings
            pairs = [[np.asarray(label).item(), float(weight)] for label, weight in weights.items()]
            settings = {**settings, "class_weight": pairs}
        return settings

    @classmethod
    def _settings_as_saved(cls, settings: dict[str, Any]) -> dict[str, Any]:
        weights = settings["class_weight"]
        return {**settings, "class_weight": dict(map(tuple, weights))} if isinstance(weights, list) else settings

    def _fitted_as_json(self) -> dict[str, Any]:
        return {**super()._fitted_as_json(), "classes": _classes_as_json(self.classes_)}

    def _fitted_from_json(self, fitted: dict[str, Any]) -> None:
        classes = fitted.pop("classes")
        self.classes_ = _classes_from_json(classes)
        self.n_classes_ = len(self.classes_)
        self._class_dictionary = {label: i for i, label in enumerate(self.classes_)}
        super()._fitted_from_json(fitted)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Small settings for sktime's tests."""
        small = {"depth": 1, "width": 8, "epochs": 3, "batch_size": 8}
        return [
            {**small, "random_state": 0},
            {**small, "kernel": "siren", "head": "last", "early_stopping": True, "class_weight": "balanced", "random_state": 1},
        ]


def _classes_as_json(classes: np.ndarray) -> dict[str, Any]:
    """Classes of any type that JSON can name: numbers, strings, dates; those of type object one by one."""
    if classes.dtype.kind in "mM":
        return {"values": classes.astype(str if classes.dtype.kind == "M" else np.int64).tolist(), "dtype": classes.dtype.str}
    if classes.dtype.kind != "O":
        return {"values": classes.tolist(), "dtype": classes.dtype.str}
    values: list[Any] = []
    for label in classes.tolist():
        kind = next((name for name, one in DATES.items() if type(label) is one), None)
        if kind is not None:
            values.append({kind: label.isoformat()})
        elif isinstance(label, str | int | float):
            values.append(label)
        else:
            raise InputError(f"cannot save the class {label!r}: expected numbers, strings or dates")
    return {"values": values, "dtype": "|O"}


def _classes_from_json(classes: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(classes["dtype"])
    if dtype.kind not in "OUbiufmM":
        raise InputError(f"classes of type {dtype} are none that a fit has")
    if dtype.kind != "O":
        return np.array(classes["values"], dtype=dtype)
    labels = np.empty(len(classes["values"]), object)
    for i, value in enumerate(classes["values"]):
        if isinstance(value, dict):
            ((kind, text),) = value.items()
            value = DATES[kind].fromisoformat(text)
        labels[i] = value
    return labels


def _weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, weight=weights.to(logits))
