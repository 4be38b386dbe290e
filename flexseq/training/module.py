"""The Lightning module: one classifier, its loss, its optimiser."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from flexseq.antialias import alias_penalty
from flexseq.training.parameters import kernel_penalty, param_groups
from flexseq.training.recipe import Recipe
from flexseq.training.schedule import warmup_cosine

Augment = Callable[[Tensor], Tensor] | None


class Classifier(LightningModule):
    """Cross-entropy plus the kernel penalty, Adam with the masks' own learning rate, warm-up and cosine.

    Args:
        model: (batch, channels, *grid) -> logits (batch, num_classes).
        num_classes: logits.
        recipe: how to train.
        steps_per_epoch: batches in an epoch.
        augment: done to training inputs.
    """

    def __init__(self, model: nn.Module, num_classes: int, recipe: Recipe, steps_per_epoch: int, augment: Augment = None):
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.augment = augment
        self.steps = recipe.epochs * steps_per_epoch
        self.warmup_steps = round(min(recipe.warmup_epochs, recipe.epochs / 10) * steps_per_epoch)
        self.losses: Any = nn.ModuleDict({stage: MeanMetric(nan_strategy="disable") for stage in ("fit", "val")})
        self.accuracies: Any = nn.ModuleDict(
            {stage: MulticlassAccuracy(num_classes, average="micro", validate_args=False) for stage in ("fit", "val")}
        )

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss = self._classify((inputs if self.augment is None else self.augment(inputs), targets), "fit")
        if self.recipe.kernel_penalty:
            loss = loss + self.recipe.kernel_penalty * kernel_penalty(self.model)
        if self.recipe.alias_penalty != "none":
            loss = loss + self.recipe.alias_weight * alias_penalty(self.model, include_mask=self.recipe.alias_penalty == "flexconv")
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._classify(batch, "val")

    def _classify(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        inputs, targets = batch
        if self.trainer.precision == "64-true":
            inputs = inputs.double()
        logits = self.model(inputs)
        loss = F.cross_entropy(logits, targets)
        self.losses[stage].update(loss.detach(), len(targets))
        self.accuracies[stage].update(logits.detach(), targets)
        return loss

    def collect(self, stage: str) -> tuple[float, float]:
        """Mean loss and accuracy since the last call; stage is "fit" or "val"."""
        loss, accuracy = self.losses[stage], self.accuracies[stage]
        values = float(loss.compute()), float(accuracy.compute())
        loss.reset()
        accuracy.reset()
        return values

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        optimizer = torch.optim.Adam(param_groups(self.model, recipe.lr, recipe.mask_lr_scale), lr=recipe.lr)
        factor = partial(warmup_cosine, steps=self.steps, warmup_steps=self.warmup_steps, floor=min(1.0, recipe.min_lr / recipe.lr))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
