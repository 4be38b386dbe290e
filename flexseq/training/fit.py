"""Train a network, and test it."""

import logging
import signal
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexseq.data.dataset import Dataset, Split
from flexseq.data.loader import EpochLoader
from flexseq.errors import InputError
from flexseq.models.norms import synchronise_batch_norm
from flexseq.torchmetrics_import import import_torchmetrics
from flexseq.training.objective import Objective, objective
from flexseq.training.recipe import Recipe

CHECKPOINT = "last.ckpt"
LOG = "history.csv"


@dataclass(frozen=True)
class Devices:
    """How many devices train together.

    Args:
        devices: on each machine, a process each.
        num_nodes: machines; each runs the same command, with Lightning's variables or under torchrun.
    """

    devices: int = 1
    num_nodes: int = 1

    @property
    def processes(self) -> int:
        """In all."""
        return self.devices * self.num_nodes


ONE = Devices()


@dataclass
class Fitted:
    """A finished run.

    Args:
        rows: a dict of measurements for each epoch.
        best_epoch: the one with the best measure on the validation split (then the lowest loss), counted from 1.
        best_weights: the state_dict after it; the model itself holds the final epoch's.
    """

    rows: list[dict[str, float]]
    best_epoch: int
    best_weights: dict[str, Tensor]


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" takes CUDA, then Apple's, then the CPU.

    Raises:
        InputError: it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    if not there.get(name):
        raise InputError(
            f"device expected auto or one of {', '.join(kind for kind, available in there.items() if available)} here, got {name!r}"
        )
    return torch.device(name)


def fit(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    folder: Path | None,
    *,
    device: torch.device,
    devices: Devices = ONE,
    resume: bool = False,
    label: str | None = "",
    aim: Objective | None = None,
    patience: int | None = None,
) -> Fitted:
    """Train `model` in place on a dataset's objective, with a checkpoint and a log in `folder` after every epoch.

    Args:
        model: (batch, channels, *grid) -> (batch, outputs), or (batch, outputs, length) for a dataset of labels at each step.
        dataset: its training and validation splits are used; the latter may be empty.
        recipe: how to train.
        folder: for `last.ckpt` and `history.csv`; None to write nothing.
        device: where to train.
        devices: on how many of them; batches are shared among them, and batch normalisation has the statistics of whole batches.
        resume: go on from `last.ckpt` where there is one; bit for bit what an uninterrupted run on a CPU gives.
        label: what the progress lines begin with; None for no such lines.
        aim: the objective, where it is not the usual one of the dataset's kind.
        patience: stop after so many epochs without a better measure on the validation split; None for never.

    Returns:
        What was measured; the model holds the final weights.

    Raises:
        InputError: the loss became NaN; the checkpoint cannot be read.
    """
    import_torchmetrics()
    from pytorch_lightning import Trainer

    from flexseq.training.callbacks import EpochSeeds, EveryEpoch, History, Interruption, Report, StopEarly, WholeCheckpoints
    from flexseq.training.module import Learner

    model.train()  # one that was tested before comes in eval mode, and Lightning leaves it there
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    pin = device.type == "cuda"
    if devices.processes > 1:
        smallest = len(dataset.train) % recipe.batch_size or recipe.batch_size
        if min(smallest, recipe.batch_size) < devices.processes:
            raise InputError(
                f"--batch-size expected batches of at least {devices.processes} samples, one for each process, got {smallest} of "
                f"{len(dataset.train)} in the last one"
            )
        synchronise_batch_norm(model)
    shared: dict[str, Any] = {"workers": recipe.workers, "pin_memory": pin, "shared": True}
    train = EpochLoader(dataset.train, recipe.batch_size, seed=recipe.seed, **shared)
    validation = EpochLoader(dataset.validation, recipe.batch_size, **shared)
    aim = objective(dataset.kind) if aim is None else aim
    module = Learner(model, aim, dataset.outputs, recipe, len(train), dataset.augment, len(dataset.validation) > 0)
    history = History(None if folder is None else folder / LOG, aim)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    interruption = Interruption()
    callbacks: list[Any] = [interruption, EpochSeeds(recipe.seed), history]
    callbacks += [] if patience is None else [StopEarly(history, patience)]
    callbacks += [] if folder is None else [EveryEpoch(folder / CHECKPOINT)]
    callbacks += [] if label is None else [Report(history, recipe.epochs, label)]
    trainer = Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=devices.devices,
        num_nodes=devices.num_nodes,
        strategy="ddp" if devices.processes > 1 else "auto",
        use_distributed_sampler=False,
        max_epochs=recipe.epochs,
        precision=cast(Any, recipe.precision),
        gradient_clip_val=recipe.gradient_clip or None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
    )
    checkpoint = None if folder is None or not resume else folder / CHECKPOINT
    if checkpoint is not None and not checkpoint.is_file():
        checkpoint = None
    if checkpoint is not None:
        _check_checkpoint(checkpoint)
    with interruption, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings(
            "ignore", message=".*compute.*was called before.*update"
        )  # of several processes one may have nothing to validate
        try:
            trainer.fit(module, train, validation if len(dataset.validation) else None, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C, which it also switches off
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from error
        if interruption.came:  # in the last moment
            raise KeyboardInterrupt
    if recipe.average_statistics:
        average_statistics(model, dataset.train, device=device, batch_size=recipe.batch_size)
    return Fitted(history.rows, history.best_epoch, history.best_weights)


def _check_checkpoint(path: Path) -> None:
    """Raise InputError unless a checkpoint is whole: by the checksums that its zip file has, which torch does not look at, and readable."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is None:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or not {"state_dict", "epoch", "callbacks"} <= content.keys():
                damaged = "what Lightning writes"
    except Exception as error:  # whatever zip files, pickles and storages raise when bytes are wrong
        raise InputError(f"the checkpoint {path} cannot be read; remove it to start anew") from error
    if damaged is not None:
        raise InputError(f"the checkpoint {path} is damaged ({damaged}); remove it to start anew")


@torch.no_grad()
def average_statistics(model: nn.Module, split: Split, *, device: torch.device, batch_size: int) -> None:
    """Replace batch normalisation's running statistics by their averages over a split, in place.

    The running ones are of the last ten or so batches. Where batches differ much, as small ones of long recordings do, they are another
    batch's by chance, and the model does much worse in eval mode than it trains.

    Args:
        model: see `fit`; nothing happens without batch normalisation.
        split: the training split.
        device: where to run.
        batch_size: as in training.
    """
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    model.to(device).eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the plain mean over batches
        norm.train()
    try:
        dtype = next(model.parameters()).dtype
        for inputs, _ in EpochLoader(split, batch_size, seed=0):
            _apply(model, inputs, device, dtype)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()


@torch.no_grad()
def predict(
    model: nn.Module, split: Split, *, device: torch.device, batch_size: int, kind: str = "classification"
) -> tuple[Tensor, Tensor]:
    """What the model, in eval mode, gives to a split.

    Args:
        model: see `fit`.
        split: of a dataset.
        device: where to run.
        batch_size: samples at once.
        kind: of the dataset.

    Returns:
        Predicted and true classes or numbers, (samples,) or (samples, length) each, on the CPU.
    """
    predict_outputs = objective(kind).predict
    predicted, true = [], []
    for outputs, targets in outputs_of(model, split, device=device, batch_size=batch_size):
        predicted.append(predict_outputs(outputs).cpu())
        true.append(targets)
    return torch.cat(predicted), torch.cat(true)


@torch.no_grad()
def outputs_of(model: nn.Module, split: Split, *, device: torch.device, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The outputs of a model, in eval mode, and the targets, batch by batch; see `predict`."""
    model = model.to(device).eval()
    dtype = next(model.parameters()).dtype
    for inputs, targets in EpochLoader(split, batch_size):
        yield _apply(model, inputs, device, dtype), targets


def _apply(model: nn.Module, inputs: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    import_torchmetrics()
    from flexseq.training.module import apply

    return apply(model, inputs.to(device) if isinstance(inputs, Tensor) else tuple(part.to(device) for part in inputs), dtype)
