"""What a network learns to give: a class for a series or image, a class at each step, or a number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from flexseq.data.dataset import IGNORED
from flexseq.errors import unknown_name
from flexseq.torchmetrics_import import import_torchmetrics


@dataclass(frozen=True)
class Objective:
    """A loss, and the measure by which epochs are compared.

    Args:
        loss: (outputs, targets) -> a scalar, the mean over samples or steps.
        predict: outputs -> what is compared with targets.
        measure: "accuracy" or "error" (mean squared).
        higher_is_better: of that measure.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    measure: str
    higher_is_better: bool

    def score(self, predicted: Tensor, true: Tensor) -> float:
        """The measure of predictions, on the CPU in float64."""
        if self.measure == "error":
            return float((predicted.double() - true.double()).square().mean())
        counted = true != IGNORED
        return float((predicted == true)[counted].double().mean())

    def better(self, one: float, other: float) -> bool:
        """Whether one value of the measure beats another."""
        return one > other if self.higher_is_better else one < other

    def shown(self, value: float) -> str:
        """A value of the measure in words.

        Example:
            >>> objective("classification").shown(0.5), objective("regression").shown(0.25)
            ('50.00%', '0.25')
        """
        return f"{value:.2%}" if self.measure == "accuracy" else f"{value:.4g}"

    def metric(self, outputs: int) -> Any:
        """A torchmetrics metric of the measure, of predictions and targets."""
        import_torchmetrics()
        from torchmetrics import MeanSquaredError
        from torchmetrics.classification import MulticlassAccuracy

        if self.measure == "error":
            return MeanSquaredError()
        return MulticlassAccuracy(max(outputs, 2), average="micro", ignore_index=IGNORED, validate_args=False)


def _class(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def _number(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], targets)


OBJECTIVES = {
    "classification": Objective(_cross_entropy, _class, "accuracy", higher_is_better=True),
    "labelling": Objective(_cross_entropy, _class, "accuracy", higher_is_better=True),
    "regression": Objective(_squared_error, _number, "error", higher_is_better=False),
}
"""By `Dataset.kind`."""


def objective(kind: str) -> Objective:
    """The objective of a kind of dataset.

    Raises:
        InputError: an unknown kind.
    """
    if kind not in OBJECTIVES:
        raise unknown_name("kind of dataset", kind, OBJECTIVES)
    return OBJECTIVES[kind]
