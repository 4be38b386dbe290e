"""The Lightning module: one network, its loss, its optimiser."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from flexseq.antialias import alias_penalty
from flexseq.data.dataset import IGNORED
from flexseq.errors import InputError
from flexseq.training.objective import Objective
from flexseq.training.parameters import kernel_penalty, param_groups
from flexseq.training.recipe import Recipe
from flexseq.training.schedule import warmup_cosine

Augment = Callable[[Tensor], Tensor] | None


def apply(model: nn.Module, inputs: Any, dtype: torch.dtype) -> Tensor:
    """A model's outputs for a batch's inputs, with or without lengths, in a dtype."""
    if isinstance(inputs, Tensor):
        return model(inputs.to(dtype))
    values, lengths = inputs
    return model(values.to(dtype), lengths)


class Learner(LightningModule):
    """An objective's loss plus the penalties, Adam or SGD with the masks' own learning rate, warm-up and cosine.

    Args:
        model: (batch, channels, *grid) -> (batch, outputs), or (batch, outputs, length).
        objective: what it learns.
        outputs: of the model, for each sample or step.
        recipe: how to train.
        steps_per_epoch: batches in an epoch.
        augment: done to training inputs.
        validates: whether there is a validation split.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        outputs: int,
        recipe: Recipe,
        steps_per_epoch: int,
        augment: Augment = None,
        validates: bool = True,
    ):
        super().__init__()
        if recipe.label_smoothing and objective.measure != "accuracy":
            raise InputError(f"label_smoothing is for classes, and this network learns numbers; got {recipe.label_smoothing}")
        self.model = model
        self.objective = objective
        self.recipe = recipe
        self.augment = augment
        self.validates = validates
        self.steps = recipe.epochs * steps_per_epoch
        self.warmup_steps = round(min(recipe.warmup_epochs, recipe.epochs / 10) * steps_per_epoch)
        self.losses: Any = nn.ModuleDict({stage: SumMetric(nan_strategy="disable") for stage in ("fit", "val")})
        # Not MeanMetric: with that strategy torchmetrics 1.9 forgets the weights, and batches of unequal sizes count alike.
        self.samples: Any = nn.ModuleDict({stage: SumMetric(nan_strategy="disable") for stage in ("fit", "val")})
        self.measures: Any = nn.ModuleDict({stage: objective.metric(outputs) for stage in ("fit", "val")})

    def training_step(self, batch: tuple[Any, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss = self._step((inputs if self.augment is None else self.augment(inputs), targets), "fit")
        if self.trainer.world_size > 1:
            loss = loss * self._share(targets).to(loss.dtype)
        if self.recipe.kernel_penalty:
            loss = loss + self.recipe.kernel_penalty * kernel_penalty(self.model)
        if self.recipe.alias_penalty != "none":
            loss = loss + self.recipe.alias_weight * alias_penalty(self.model, include_mask=self.recipe.alias_penalty == "flexconv")
        return loss

    def validation_step(self, batch: tuple[Any, Tensor], index: int) -> None:
        if len(batch[1]):  # of several processes one may have no share of the last batch
            self._step(batch, "val")

    def _share(self, targets: Tensor) -> Tensor:
        """What this process's mean counts in the mean over processes, so that it is the mean over the whole batch."""
        count = (targets != IGNORED).sum().double()
        total = count.clone()
        dist.all_reduce(total)
        return count * self.trainer.world_size / total

    def _step(self, batch: tuple[Any, Tensor], stage: str) -> Tensor:
        inputs, targets = batch
        if self.trainer.precision == "64-true":
            targets = targets.double() if targets.is_floating_point() else targets
        outputs = apply(self.model, inputs, next(self.model.parameters()).dtype)
        loss = self.objective.loss(outputs, targets)
        if stage == "fit" and self.recipe.label_smoothing:
            uniform = -outputs.log_softmax(1).mean(1)  # the loss of a target that is spread over all classes
            loss = loss + self.recipe.label_smoothing * (uniform[targets != IGNORED].mean() - loss)
        self.losses[stage].update(loss.detach() * len(targets))
        self.samples[stage].update(float(len(targets)))
        self.measures[stage].update(self.objective.predict(outputs.detach()), targets)
        return loss

    def collect(self, stage: str) -> tuple[float, float]:
        """Mean loss, and the objective's measure, since the last call; stage is "fit" or "val". NaN where nothing was validated."""
        if stage == "val" and not self.validates:
            return math.nan, math.nan
        loss, samples, measure = self.losses[stage], self.samples[stage], self.measures[stage]
        values = float(loss.compute()) / float(samples.compute()), float(measure.compute())
        for metric in (loss, samples, measure):
            metric.reset()
        return values

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        groups = param_groups(self.model, recipe.lr, recipe.mask_lr_scale)
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        else:
            # Lightning refuses to clip gradients for a fused one in mixed precision, and on CPUs it is wrong for views with gaps.
            fused = recipe.precision.endswith("-true") and all(p.is_contiguous() for p in self.model.parameters())
            optimizer = torch.optim.Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
        factor = partial(warmup_cosine, steps=self.steps, warmup_steps=self.warmup_steps, floor=min(1.0, recipe.min_lr / recipe.lr))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
