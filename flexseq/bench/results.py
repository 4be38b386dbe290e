"""What a run leaves behind: result.json, and a table on the screen."""

import importlib.metadata
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import flexseq
from flexseq.errors import InputError
from flexseq.files import write_text
from flexseq.processes import share
from flexseq.torchmetrics_import import import_torchmetrics
from flexseq.training.objective import OBJECTIVES

RESULT = "result.json"
TRANSFERRED = {
    "value_at_source": "test accuracy at {source_size} px",
    "value_at_target_as_it_is": "test accuracy at {target_size} px, as it is",
    "change_at_target": "change, in points of a hundred",
    "value_at_test_rate": "test {measure} at {test_rate:g} times the rate",
}
"""Figures at another resolution than training's, before any fine-tuning."""
PACKAGES = ("torch", "numpy", "pytorch-lightning", "torchmetrics", "scikit-learn", "sktime", "torchaudio", "soundfile")


def confusion(predicted: torch.Tensor, true: torch.Tensor, num_classes: int) -> np.ndarray:
    """(true, predicted) counts."""
    import_torchmetrics()
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(predicted, true, num_classes).numpy()


def versions(*more: str) -> dict[str, str]:
    """Of flexseq, Python and the packages that a result depends on (and `more`), as far as they are installed."""
    found = {"flexseq": flexseq.__version__, "python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def where_it_ran(device: torch.device, precision: str) -> dict[str, Any]:
    """Device, type of numbers (from Lightning's name for it), threads and processes, as a result holds them."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "dtype": {"32-true": "float32", "64-true": "float64", "bf16-mixed": "bfloat16", "16-mixed": "float16"}[precision],
        "threads": torch.get_num_threads(),
        "processes": share()[1],
    }


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write result.json, whole or not at all."""
    path = folder / RESULT
    write_text(path, json.dumps(result, indent=1) + "\n")
    return path


def read_result(folder: Path) -> dict[str, Any]:
    """What `write_result` wrote.

    Raises:
        InputError: the file is damaged, or another program's.
    """
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged and cannot be read; remove it and run again with --resume") from error
    if not isinstance(result, dict):
        raise InputError(f"{path} is no result of the bench; remove it and run again with --resume")
    return result


def is_finished(folder: Path) -> bool:
    """Whether a run's folder holds its result; one that is damaged is put aside, and said to be."""
    if not (folder / RESULT).is_file():
        return False
    try:
        read_result(folder)
    except InputError:
        aside = folder / f"{RESULT}.altered"
        (folder / RESULT).replace(aside)
        print(f"{folder / RESULT} is damaged: kept as {aside}, not used", flush=True)
        return False
    return True


def summary_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several seeds: the first one's fields, with mean and spread (sample standard deviation) in the place of its figures."""
    values = [result["value"] for result in results]
    at_best = [result["value_at_best_validation"] for result in results]
    shared = {key: value for key, value in results[0].items() if key not in ("seed", "per_class", "best_epoch", "frequencies")}
    if "accuracy_over_size" in shared:
        over_size = [result["accuracy_over_size"] for result in results]
        shared["accuracy_over_size"] = {size: statistics.mean(one[size] for one in over_size) for size in over_size[0]}
    for key in TRANSFERRED:
        if key in shared:
            each = [result[key] for result in results]
            shared |= {key: statistics.mean(each), f"{key}_spread": statistics.stdev(each)}
    return {
        **shared,
        "value": statistics.mean(values),
        "spread": statistics.stdev(values),
        "values": values,
        "value_at_best_validation": statistics.mean(at_best),
        "best_validation": statistics.mean(result["best_validation"] for result in results),
        "seconds": sum(result["seconds"] for result in results),
        "seconds_per_epoch": statistics.mean(result["seconds_per_epoch"] for result in results),
        "seed": results[0]["seed"],
        "seeds": [result["seed"] for result in results],
    }


def print_result(result: dict[str, Any]) -> None:
    """The figures as a table, beside the paper's where it has one."""
    console = Console(soft_wrap=True, highlight=False)
    title = f"{result['task']}: {result['model']}, {result['parameters']:,} parameters"
    paper = [] if result["paper_value"] is None else [f"{result['paper_value']:.2%}"]
    table = Table("", "this run", *["paper" for _ in paper], title=title)
    measure = "error" if result["metric"] == "error" else "accuracy"
    shown = OBJECTIVES["regression" if measure == "error" else "classification"].shown
    spread = f" ± {shown(result['spread'])} over seeds {', '.join(map(str, result['seeds']))}" if "spread" in result else ""
    for key, name in TRANSFERRED.items():
        if key in result:
            around = f" ± {shown(result[f'{key}_spread'])}" if f"{key}_spread" in result else ""
            table.add_row(name.format(measure=measure, **result), f"{shown(result[key])}{around}")
    where = f" at {result['target_size']} px, fine-tuned" if "target_size" in result else ""
    table.add_row(f"test {measure}{where}, final epoch", f"{shown(result['value'])}{spread}", *paper)
    table.add_row(f"test {measure}{where} at the best validation epoch", shown(result["value_at_best_validation"]))
    table.add_row(f"best validation {measure}{where}", shown(result["best_validation"]))
    table.add_row("seconds an epoch", f"{result['seconds_per_epoch']:.2f}")
    console.print(table)
    if "per_class" in result:
        classes = Table("class", "test samples", "accuracy", title="test accuracy by class, final epoch")
        for name, row in result["per_class"].items():
            classes.add_row(name, str(row["samples"]), "" if row["accuracy"] is None else f"{row['accuracy']:.2%}")
        console.print(classes)
