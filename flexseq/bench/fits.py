"""Fitting a function to values: what kernel networks can be."""

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

LR = {"siren": 0.001}
"""Learning rates of networks that do not have 0.01."""

NO_EPOCHS = {"value_at_best_validation": None, "best_validation": None, "epochs": None, "seconds_per_epoch": None}
"""What every result says, of a fit, which has neither epochs nor a validation split."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """How one function was fitted.

    Args:
        values: what it became, like the target.
        errors: mean squared error before each of `steps`, and after the last.
        steps: at which iterations `errors` was taken.
        seconds: for all iterations.
    """

    values: Tensor
    errors: list[float]
    steps: list[int]
    seconds: float


def fit_function(function: nn.Module, evaluate: Callable[[], Tensor], target: Tensor, *, iterations: int, lr: float) -> Fit:
    """Minimise the mean squared error with Adam, all positions at every step.

    Args:
        function: whose parameters are fitted.
        evaluate: gives its values, like `target`.
        target: what they are to be.
        iterations: steps.
        lr: learning rate.
    """
    optimizer = torch.optim.Adam(function.parameters(), lr=lr)
    record = {round(i * iterations / 50) for i in range(50)}
    errors, steps = [], []
    began = time.perf_counter()
    for step in range(iterations):
        optimizer.zero_grad(set_to_none=True)
        loss = (evaluate() - target).square().mean()
        if step in record:
            errors.append(float(loss.detach()))
            steps.append(step)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        values = evaluate()
        errors.append(float((values - target).square().mean()))
    return Fit(values, errors, [*steps, iterations], time.perf_counter() - began)
