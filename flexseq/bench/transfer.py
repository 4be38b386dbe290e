"""Train at one resolution, test at another: as it is, and after fine-tuning there."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexseq import saving
from flexseq.analysis.spectra import frequencies_by_layer
from flexseq.bench.networks import row_name
from flexseq.bench.plan import Plan, build
from flexseq.bench.plots import plot_learned, plot_transfer
from flexseq.bench.results import versions, where_it_ran, write_result
from flexseq.bench.task import Transfer
from flexseq.data.dataset import Dataset, Split
from flexseq.errors import InputError
from flexseq.processes import is_first_process
from flexseq.resolution import set_resolution
from flexseq.training.fit import ONE, Devices, Fitted, fit, predict
from flexseq.training.objective import objective
from flexseq.training.recipe import Recipe

SOURCE, TARGET = "source", "target"
OURS = (SOURCE, TARGET, "transfer.png")
"""What a transfer leaves in its folder, beside what every run leaves."""


@dataclasses.dataclass
class Resized:
    """One function of a batch, then resizing; either may be None."""

    first: Callable[[Tensor], Tensor] | None
    resize: Callable[[Tensor, int], Tensor] | None
    size: int

    def __call__(self, x: Tensor) -> Tensor:
        x = x if self.first is None else self.first(x)
        return x if self.resize is None else self.resize(x, self.size)


def at_size(dataset: Dataset, size: int, resize: Callable[[Tensor, int], Tensor]) -> Dataset:
    """A dataset whose images are resized; training images after they were augmented at their own size."""

    def resized(split: Split) -> Split:
        return dataclasses.replace(split, transform=Resized(split.transform, resize, size))

    if dataset.augment is None:
        train, augment = resized(dataset.train), None
    else:
        train, augment = dataset.train, Resized(dataset.augment, resize, size)
    validation, test = resized(dataset.validation), resized(dataset.test)
    shape = (dataset.shape[0], size, size)
    return dataclasses.replace(dataset, train=train, validation=validation, test=test, augment=augment, shape=shape)


def sizes_between(source: int, target: int, count: int = 5) -> list[int]:
    """Sizes from the source to the target, both among them.

    Example:
        >>> sizes_between(16, 32), sizes_between(8, 10)
        ([16, 20, 24, 28, 32], [8, 9, 10])
    """
    return sorted({round(source + (target - source) * i / (count - 1)) for i in range(count)}, reverse=target < source)


def run_transfer(
    plan: Plan, transfer: Transfer, dataset: Dataset, folder: Path, device: torch.device, resume: bool, devices: Devices = ONE
) -> dict[str, Any]:
    """Train at the source, test there and at the target as it is, fine-tune at the target, test again; write everything.

    Args:
        plan: of the run; its recipe serves both trainings, with `fine_tune_epochs` for the second.
        transfer: the sizes.
        dataset: at its own size.
        folder: for results; the two trainings' checkpoints go into folders below it.
        device: where to train.
        resume: go on with what the folder holds.
    """
    recipe: Recipe = plan.recipe
    source, target = (at_size(dataset, size, transfer.resize) for size in (transfer.source, transfer.target))
    torch.manual_seed(recipe.seed)
    model = build(plan, source)

    for data in (source, target):
        data.test.batch([0])  # a size that the images cannot be brought to is to be said now, not after the training
    notes = list(dataset.notes)
    if max(transfer.source, transfer.target) > dataset.shape[-1]:
        notes.append(f"the images have {dataset.shape[-1]} px, and are interpolated where more are asked for")

    first_process = is_first_process()  # the others only train

    def accuracy(data: Dataset) -> float:
        if not first_process:
            return math.nan
        predicted, true = predict(model, data.test, device=device, batch_size=recipe.batch_size)
        return objective(data.kind).score(predicted, true)

    def train(data: Dataset, stage: str, how: Recipe) -> Fitted:
        label = f"{plan.task.name} seed {recipe.seed} {stage} {data.shape[-1]} px"
        (folder / stage).mkdir(parents=True, exist_ok=True)
        return fit(model, data, how, folder / stage, device=device, devices=devices, resume=resume, label=label)

    first = train(source, SOURCE, recipe)
    at_source = accuracy(source)
    if first_process:
        saving.save(model, folder / SOURCE / "model.safetensors")
        plot_learned(model, folder, ratio=transfer.target / transfer.source)
    frequencies = frequencies_by_layer(model)
    over_size = {}
    for size in sizes_between(transfer.source, transfer.target):
        if size not in (transfer.source, transfer.target):
            set_resolution(model, size / transfer.source)
            over_size[size] = accuracy(at_size(dataset, size, transfer.resize))
    unchanged = set_resolution(model, transfer.target / transfer.source)
    at_target = accuracy(target)
    over_size |= {transfer.source: at_source, transfer.target: at_target}
    if first_process:
        print(f"{at_source:.2%} at {transfer.source} px, {at_target:.2%} at {transfer.target} px as it is", flush=True)
    fine_tuning = dataclasses.replace(recipe, epochs=recipe.fine_tune_epochs)
    second = train(target, TARGET, fine_tuning)
    fine_tuned = accuracy(target)
    if not first_process:
        return {}
    if not folder.is_dir():
        raise InputError(f"the run's folder {folder} was removed while it ran; nothing is written")
    saving.save(model, folder / "model.safetensors")
    best = second.rows[second.best_epoch - 1]["validation_accuracy"]
    final_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(second.best_weights)
    at_best = accuracy(target)
    model.load_state_dict(final_weights)
    rows = [*first.rows, *second.rows]
    result = {
        "task": plan.task.name,
        "model": row_name(plan.model, plan.network),
        "parameters": sum(p.numel() for p in model.parameters()),
        "metric": "accuracy at the target, fine-tuned",
        "value": fine_tuned,
        "value_at_source": at_source,
        "value_at_target_as_it_is": at_target,
        "change_at_target": at_target - at_source,
        "value_at_best_validation": at_best,
        "best_validation": best,
        "paper_value": None,
        "accuracy_over_size": {str(size): over_size[size] for size in sorted(over_size)},
        "frequencies": frequencies,
        "source_size": transfer.source,
        "target_size": transfer.target,
        "penalty": recipe.alias_penalty,
        "start_below_nyquist": recipe.start_below_nyquist,
        "unchanged_layers": list(unchanged),
        "epochs": recipe.epochs,
        "fine_tune_epochs": recipe.fine_tune_epochs,
        "seconds": sum(row["seconds"] for row in rows),
        "seconds_per_epoch": sum(row["seconds"] for row in first.rows) / len(first.rows),
        **where_it_ran(device, recipe.precision),
        "sessions": int(second.rows[-1]["session"]),
        "seed": recipe.seed,
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "sizes": dataset.sizes,
            "shape": list(dataset.shape),
            "notes": notes,
            "options": dataset.options,
        },
        "versions": versions(),
        "recipe": plan.as_json(),
    }
    plot_transfer(first.rows, second.rows, result, folder / "transfer.png")
    write_result(folder, result)
    return result
