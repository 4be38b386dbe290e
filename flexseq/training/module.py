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
from flexseq.training.cuda_graphs import GraphedNetwork
from flexseq.training.objective import Objective
from flexseq.training.parameters import kernel_penalty, param_groups
from flexseq.training.recipe import Recipe
from flexseq.training.schedule import warmup_cosine

LOSS = "the loss"
NEVER = float("inf")

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
        self._graphed = GraphedNetwork(model) if recipe.cuda_graphs else None
        self._first_step: dict[str, Tensor] = {}  # by what: the first of the epoch's steps where it was NaN or infinite, on its device

    def training_step(self, batch: tuple[Any, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        loss, norms = self._step((inputs if self.augment is None else self.augment(inputs), targets), "fit")
        if self.trainer.world_size > 1:
            loss = loss * self._share(targets).to(loss.dtype)
        self._look_at(LOSS, loss)
        if self.recipe.kernel_penalty:
            penalty = self.recipe.kernel_penalty * (kernel_penalty(self.model) if norms is None else norms)
            self._look_at("the penalty on kernels' norms", penalty)
            loss = loss + penalty
        if self.recipe.alias_penalty != "none":
            penalty = self.recipe.alias_weight * alias_penalty(self.model, include_mask=self.recipe.alias_penalty == "flexconv")
            self._look_at("the penalty on frequencies above Nyquist", penalty)
            loss = loss + penalty
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

    def _step(self, batch: tuple[Any, Tensor], stage: str) -> tuple[Tensor, Tensor | None]:
        """The loss, and where a CUDA graph gives it too, the penalty on kernels."""
        inputs, targets = batch
        self._look_at(f"{'training' if stage == 'fit' else 'validation'} inputs", inputs if isinstance(inputs, Tensor) else inputs[0])
        if targets.is_floating_point():
            self._look_at(f"{'training' if stage == 'fit' else 'validation'} targets", targets)
        if self.trainer.precision == "64-true":
            targets = targets.double() if targets.is_floating_point() else targets
        norms = None
        dtype = next(self.model.parameters()).dtype
        if stage == "fit" and self._graphed is not None and isinstance(inputs, Tensor):
            outputs, norms = self._graphed(inputs.to(dtype))
        else:
            outputs = apply(self.model, inputs, dtype)
        loss = self.objective.loss(outputs, targets)
        if stage == "fit" and self.recipe.label_smoothing:
            uniform = -outputs.log_softmax(1).mean(1)  # the loss of a target that is spread over all classes
            loss = loss + self.recipe.label_smoothing * (uniform[targets != IGNORED].mean() - loss)
        self.losses[stage].update(loss.detach() * len(targets))
        self.samples[stage].update(float(len(targets)))
        self.measures[stage].update(self.objective.predict(outputs.detach()), targets)
        return loss, norms

    def _look_at(self, what: str, values: Tensor) -> None:
        """Remember when values were NaN or infinite for the first time, without waiting for the device."""
        finite = torch.isfinite(values.detach()).all()
        first = torch.where(finite, NEVER, float(self.global_step))
        self._first_step[what] = torch.minimum(first, self._first_step[what]) if what in self._first_step else first

    def check_finite(self, epoch: int, train_loss: float, validation_loss: float) -> None:
        """At an epoch's end, before anything is written: what the loss came from, the weights, and the losses.

        Raises:
            InputError: any is NaN or infinite; says which, and what may help.
        """
        firsts = {what: float(first) for what, first in self._first_step.items()}
        self._first_step = {}
        of_loss = firsts.pop(LOSS, NEVER)
        for what, first in firsts.items():  # weights that are NaN make penalties so, too, but then the loss as well
            if first < NEVER and ("penalty" not in what or first < of_loss):
                help_ = "a smaller weight of it may help" if "penalty" in what else "the data hold such values, or their scaling makes them"
                raise InputError(f"{what} became NaN or infinite in epoch {epoch}: {help_}")
        help_ = "a lower learning rate may help"
        if not math.isfinite(train_loss):
            raise InputError(f"the training loss became {train_loss} in epoch {epoch}; {help_}")
        with torch.no_grad():
            values = [value for value in self.model.state_dict().values() if isinstance(value, Tensor) and value.is_floating_point()]
            finite = torch.stack([torch.isfinite(value).all() for value in values]).all() if values else True
        if not finite:
            raise InputError(f"the weights became NaN or infinite in epoch {epoch}; {help_}")
        if self.validates and not math.isfinite(validation_loss):
            raise InputError(f"the validation loss became {validation_loss} in epoch {epoch}; {help_}")

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
