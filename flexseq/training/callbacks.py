"""What happens round an epoch: seeds, the log, checkpoints, progress."""

import csv
import io
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flexseq.data.loader import epoch_seed
from flexseq.errors import InputError
from flexseq.files import replacing, write_text
from flexseq.processes import is_first_process
from flexseq.training.objective import Objective
from flexseq.words import duration


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written beside their target, synced and renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        with replacing(path) as part:
            torch.save(checkpoint, part)


class EpochSeeds(Callback):
    """Seed torch at the first batch of each epoch, from the run's seed and the epoch: dropout then repeats in a resumed run."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            torch.manual_seed((epoch_seed(self.seed, trainer.current_epoch) + trainer.global_rank * 2**32) % 2**63)


class History(Callback):
    """A row of measurements for each epoch, as a CSV file that is rewritten whole, and the weights of the best epoch on validation.

    Both are part of the checkpoint, so that a resumed run goes on with what it had.

    Args:
        path: of the CSV file; None for none.
        objective: by whose measure epochs are compared.
    """

    def __init__(self, path: Path | None, objective: Objective):
        self.path = path
        self.objective = objective
        self.rows: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.session = 1
        self._began = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        measure = self.objective.measure
        train_loss, train_measure = pl_module.collect("fit")
        validation_loss, validation_measure = pl_module.collect("val")
        now = time.perf_counter()
        epoch = trainer.current_epoch + 1
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            f"train_{measure}": train_measure,
            "validation_loss": validation_loss,
            f"validation_{measure}": validation_measure,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": now - self._began,
            "session": self.session,
        }
        self._began = now
        self.rows.append(row)
        pl_module.check_finite(epoch, train_loss, validation_loss)
        best = self.rows[self.best_epoch - 1] if self.best_epoch else None
        if best is None or self._beats(row, best):
            self.best_epoch = epoch
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.model.state_dict().items()}
        self._write()

    def _beats(self, row: dict[str, float], best: dict[str, float]) -> bool:
        measure = f"validation_{self.objective.measure}"
        if math.isnan(best[measure]) or math.isnan(best["validation_loss"]):
            return True  # nothing is validated, and the last epoch counts; or the best one so far was none
        if row[measure] == best[measure]:
            return row["validation_loss"] < best["validation_loss"]
        return self.objective.better(row[measure], best[measure])

    def _write(self) -> None:
        if self.path is None or not is_first_process():
            return
        check_folder_is_there(self.path)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best_epoch": self.best_epoch, "best_weights": self.best_weights, "session": self.session}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        self.best_epoch = state_dict["best_epoch"]
        self.best_weights = state_dict["best_weights"]
        self.session = state_dict["session"] + 1


class EveryEpoch(Callback):
    """Save a checkpoint at every epoch's end; it comes after the callbacks whose state it is to hold."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        check_folder_is_there(self.path)
        trainer.save_checkpoint(self.path)


def check_folder_is_there(path: Path) -> None:
    """Raise InputError where a run's folder was removed: what it began with is lost, and a new one could not be resumed."""
    if not path.parent.is_dir():
        raise InputError(f"the run's folder {path.parent} was removed while it ran; nothing is written")


class Interruption(Callback):
    """Ctrl-C ends training wherever it comes, also where Python drops exceptions, as in the destructors of a loader's workers."""

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.came = True
        raise KeyboardInterrupt

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._raise()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._raise()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._raise()

    def _raise(self) -> None:
        if self.came:
            raise KeyboardInterrupt


class StopEarly(Callback):
    """Stop once the validation split's measure has not improved for some epochs.

    Args:
        history: which epoch was the best; it comes before this callback.
        patience: epochs, of which those of the learning rate's warm-up do not count: what is best there is so by chance.
    """

    def __init__(self, history: History, patience: int):
        self.history = history
        self.patience = patience

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        warmup_epochs = math.ceil(pl_module.warmup_steps / trainer.num_training_batches)
        if len(self.history.rows) - max(self.history.best_epoch, warmup_epochs) >= self.patience:
            trainer.should_stop = True


class Report(Callback):
    """A line for each epoch and the time that is left; in a terminal also a bar over all steps.

    Args:
        history: where the epoch's numbers are; it comes before this callback.
        epochs: of the whole run.
        label: what is being trained, in a word or two.
    """

    EVERY = 30.0  # seconds between lines within an epoch, where there is no terminal

    def __init__(self, history: History, epochs: int, label: str):
        self.history = history
        self.epochs = epochs
        self.label = label
        self.console = Console(soft_wrap=True, highlight=False, quiet=not is_first_process())
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal or self.console.quiet,
            speed_estimate_period=600,
        )
        self._began = self._spoke = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch:
            self.console.print(f"{self.label}: resuming at epoch {trainer.current_epoch + 1} of {self.epochs}")
        self._began = self._spoke = time.perf_counter()
        self._first_step = trainer.global_step
        self.task = self.bar.add_task(self.label, total=pl_module.steps, completed=trainer.global_step)
        self.bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.bar.update(
            self.task, completed=trainer.global_step, description=f"{self.label} epoch {trainer.current_epoch + 1}/{self.epochs}"
        )
        now = time.perf_counter()
        if not self.console.is_terminal and now - self._spoke > self.EVERY:
            self._spoke = now
            steps = pl_module.steps // self.epochs
            self.console.print(
                f"{self.label}: epoch {trainer.current_epoch + 1}/{self.epochs}, step {batch_idx + 1}/{steps}, "
                f"about {self._left(trainer, pl_module)} left"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._spoke = time.perf_counter()
        row = self.history.rows[-1]
        objective = self.history.objective
        train, validation = (objective.shown(row[f"{split}_{objective.measure}"]) for split in ("train", "validation"))
        self.console.print(
            f"{self.label}: epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.4f}  train {train}  "
            + ("" if math.isnan(row["validation_loss"]) else f"validation {validation}  ")
            + f"{row['seconds']:.1f} s, about {self._left(trainer, pl_module)} left"
        )

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self.bar.stop()

    def _left(self, trainer: Trainer, pl_module: Any) -> str:
        done = trainer.global_step - self._first_step
        return duration((time.perf_counter() - self._began) / max(done, 1) * (pl_module.steps - trainer.global_step))
