"""One run of the bench: load, train, test, and leave the results in a folder."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexseq import saving
from flexseq.bench.networks import is_papers, row_name
from flexseq.bench.plan import Plan, build, load
from flexseq.bench.plots import LEARNED, plot_confusion, plot_curves, plot_learned
from flexseq.bench.results import (
    RESULT,
    confusion,
    is_finished,
    print_result,
    read_result,
    summary_of,
    versions,
    where_it_ran,
    write_result,
)
from flexseq.bench.transfer import OURS as TRANSFERS
from flexseq.bench.transfer import SOURCE, run_transfer
from flexseq.data.dataset import Dataset
from flexseq.data.irregular import at_rate
from flexseq.errors import InputError
from flexseq.files import remove_unfinished, write_text
from flexseq.nn.cfconv import CFConv
from flexseq.processes import alone, by_itself, check_devices, is_first_process, say
from flexseq.resolution import set_resolution
from flexseq.training.fit import CHECKPOINT, LOG, ONE, Devices, Fitted, fit, pick_device, predict
from flexseq.training.objective import Objective, objective

RECIPE = "recipe.json"
MODELS = ("model.safetensors", "best.safetensors")
OURS = (RECIPE, RESULT, LOG, CHECKPOINT, *MODELS, "curves.png", "confusion.png", *LEARNED, *TRANSFERS)
"""What a run writes: a folder that holds any of these is some run's."""
FREE = ("workers", "download", "data_dir")
"""Parts of a recipe that may differ between a run and its continuation: they do not change the result."""


def run(plan: Plan, folder: Path, *, seeds: int, device: str, resume: bool, devices: Devices = ONE) -> Path:
    """Train with one seed, or with several and sum them up.

    Args:
        plan: what to run.
        folder: where results go; one below it for each of several seeds.
        seeds: how many, counted from the recipe's.
        device: "auto", "cpu", "cuda" or "mps".
        resume: go on with what the folder holds.
        devices: how many train together; files are the first process's to write.

    Returns:
        The path of the result file.

    Raises:
        InputError: the folder holds another run; the data or options are bad.
    """
    check_folder(folder)
    with by_itself(devices.processes == 1), alone(folder) if is_first_process() else contextlib.nullcontext(True) as mine:
        if not mine:
            raise InputError(f"{folder} is being run by another process; wait for it, or give another --out")
        return run_in_own_folder(plan, folder, seeds=seeds, device=device, resume=resume, devices=devices)


def run_in_own_folder(plan: Plan, folder: Path, *, seeds: int, device: str, resume: bool, devices: Devices = ONE) -> Path:
    """`run` where the caller holds the folder's lock."""
    if seeds < 1:
        raise InputError(f"--seeds expected at least 1, got {seeds}")
    where = pick_device(device)
    check_devices(where.type, devices.devices, devices.num_nodes)
    plans = [plan.with_seed(plan.recipe.seed + i) for i in range(seeds)]
    folders = [folder] if seeds == 1 else [folder / f"seed-{one.recipe.seed}" for one in plans]
    if where.type == "cpu" and plan.recipe.precision == "16-mixed":
        raise InputError("--precision 16 needs a GPU; on a CPU there is bf16")
    whole = {**plan.as_json(), "seeds": seeds}
    if seeds > 1:
        check_claim(folder, whole, resume)
    for one, own_folder in zip(plans, folders, strict=True):
        check_claim(own_folder, one.as_json(), resume)
    dataset = None
    results = []
    if resume and is_first_process() and folder.is_dir():
        remove_unfinished(folder)
    for one, own_folder in zip(plans, folders, strict=True):
        if is_finished(own_folder):
            say(f"{own_folder} is finished already")
            results.append(read_result(own_folder))
            continue
        if dataset is None:
            dataset = load(one)
            say(f"{dataset.name}: {', '.join(f'{size:,} to {use}' for use, size in _uses(dataset))}, from {dataset.source}")
            for note in dataset.notes:
                say(f"note: {note}")
            build(plan, dataset)  # bad arguments are to leave no folder behind
            if seeds > 1:
                _claim(folder, whole, resume)
            say(f"results go to {folder}")
        try:
            results.append(_run_one(one, dataset, own_folder, where, resume, devices))
        except BaseException:
            if seeds > 1 and not any((place / CHECKPOINT).exists() for other in folders for place in (other, other / SOURCE)):
                _let_go(folder)
            raise
        if seeds > 1 and is_first_process():
            print_result(results[-1])
    if not is_first_process():
        return folder / RESULT
    result = results[0] if seeds == 1 else summary_of(results)
    if seeds > 1:
        write_result(folder, result)
    print_result(result)
    return folder / RESULT


def _uses(dataset: Dataset) -> list[tuple[str, int]]:
    return list(zip(("train on", "validate", "test"), dataset.sizes.values(), strict=True))


def check_folder(folder: Path) -> None:
    """Raise InputError unless a folder is there or can be made."""
    try:
        if folder.is_symlink() and not folder.exists():
            raise InputError(f"--out {folder} is a link to {os.readlink(folder)}, which does not exist")
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise InputError(f"cannot use {folder} for results: {error.strerror}") from error
    if not nearest.is_dir():
        what = f"the file {folder}" if nearest == folder else f"{folder}, but {nearest} is a file"
        raise InputError(f"--out expected a folder, got {what}")


def check_claim(folder: Path, recipe: dict[str, Any], resume: bool) -> None:
    """Raise InputError where the folder holds another run."""
    if not is_first_process():
        return
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out expected a folder, got the file {folder}")
        there = [name for name in OURS if (folder / name).exists()]
    except OSError as error:
        raise InputError(f"cannot use {folder} for results: {error.strerror}") from error
    if not there:
        return
    if resume and there == [RECIPE] and not (folder / RECIPE).stat().st_size:
        return  # killed while it made the folder its own
    if not resume:
        raise InputError(f"{folder} already holds a run ({', '.join(there)}); continue it with --resume, or give another --out")
    try:
        before = json.loads((folder / RECIPE).read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise InputError(f"{folder} holds {', '.join(there)} but no readable {RECIPE}, so it cannot be resumed; give another --out")
    flat_before, flat_here = _flat(before), _flat(recipe)
    flat_before["seeds"], flat_here["seeds"] = flat_before.get("seeds", 1), flat_here.get("seeds", 1)
    if 1 < flat_before["seeds"] < flat_here["seeds"]:
        flat_before["seeds"] = flat_here["seeds"]  # a run of several seeds may get more
    differing = [
        f"{part}: {flat_before.get(part)} there, {flat_here.get(part)} here"
        for part in sorted(flat_before.keys() | flat_here.keys())
        if flat_before.get(part) != flat_here.get(part) and part.rpartition(".")[2] not in FREE
    ]
    if differing:
        raise InputError(f"{folder} holds another run, which cannot be resumed with these options ({'; '.join(differing)})")


def _claim(folder: Path, recipe: dict[str, Any], resume: bool) -> None:
    """Make the folder this run's own; only once data and network are there, so that bad options leave nothing behind."""
    if not is_first_process():
        return
    if resume and not (folder / RECIPE).exists():
        print(f"nothing to resume in {folder}: starting there")
    try:
        if not resume:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / RECIPE, "x"):  # of two that start at once in one folder, one stops here
                pass
        write_text(folder / RECIPE, json.dumps(recipe, indent=1) + "\n")
    except FileExistsError as error:
        raise InputError(f"{folder} already holds a run; continue it with --resume, or give another --out") from error
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error


def _let_go(folder: Path) -> None:
    """Give up the claim on a folder where no epoch was finished: there is nothing to go on with."""
    if not is_first_process() or (folder / CHECKPOINT).exists() or (folder / SOURCE / CHECKPOINT).exists():
        return
    for name in (RECIPE, LOG, f"{SOURCE}/{LOG}"):
        (folder / name).unlink(missing_ok=True)
    for place in (folder / SOURCE, folder):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in json.loads(json.dumps(value)).items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def _run_one(plan: Plan, dataset: Dataset, folder: Path, device: torch.device, resume: bool, devices: Devices) -> dict[str, Any]:
    recipe = plan.recipe
    torch.manual_seed(recipe.seed)
    if plan.task.transfer is None:
        model = build(plan, dataset)
    _claim(folder, plan.as_json(), resume)
    try:
        if plan.task.transfer is not None:
            return run_transfer(plan, plan.task.transfer, dataset, folder, device, resume, devices)
        label = f"{plan.task.name} seed {recipe.seed}"
        fitted = fit(model, dataset, recipe, folder, device=device, devices=devices, resume=resume, label=label)
    except BaseException:
        _let_go(folder)
        raise
    return _finish(plan, dataset, model, fitted, folder, device) if is_first_process() else {}


def _finish(plan: Plan, dataset: Dataset, model: nn.Module, fitted: Fitted, folder: Path, device: torch.device) -> dict[str, Any]:
    """Test the final weights and the best ones on validation, and write everything; result.json last."""
    if not (folder / RECIPE).is_file():
        raise InputError(f"the run's folder {folder} was removed while it ran; nothing is written")
    options: dict[str, Any] = {"device": device, "batch_size": plan.recipe.batch_size, "kind": dataset.kind}
    aim = objective(dataset.kind)
    predicted, true = predict(model, dataset.test, **options)
    saving.save(model, folder / "model.safetensors")
    plot_learned(model, folder)
    final_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(fitted.best_weights)
    saving.save(model, folder / "best.safetensors")
    at_best, _ = predict(model, dataset.test, **options)
    model.load_state_dict(final_weights)
    other_rate = {} if plan.test_rate is None else _test_at_rate(plan.test_rate, model, dataset, aim, options)

    plot_curves(fitted.rows, fitted.best_epoch, aim.measure, folder / "curves.png")
    per_class = {}
    if dataset.kind == "classification":
        matrix = confusion(predicted, true, len(dataset.classes))
        plot_confusion(matrix, dataset.classes, folder / "confusion.png")
        per_class = {
            name: {"samples": int(row.sum()), "accuracy": float(row[i] / row.sum()) if row.sum() else None}
            for i, (name, row) in enumerate(zip(dataset.classes, matrix, strict=True))
        }
    drawn = {
        name: {"drawn": layer.drawn_positions, "of": layer.total_positions}
        for name, layer in model.named_modules()
        if isinstance(layer, CFConv) and layer.gradient == "sparse"
    }
    row_in_paper = row_name(plan.model, plan.network)
    comparable = (
        "drop" not in plan.data
        and sum(dataset.sizes.values()) == plan.task.paper_samples
        and plan.task.paper_options.items() <= dataset.options.items()
        and is_papers(plan.model, plan.network, plan.task.defaults.networks.get(plan.model, {}))
    )
    result = {
        "task": plan.task.name,
        "model": row_in_paper,
        "parameters": sum(p.numel() for p in model.parameters()),
        "metric": aim.measure,
        "value": aim.score(predicted, true),
        "value_at_best_validation": aim.score(at_best, true),
        "best_validation": fitted.rows[fitted.best_epoch - 1][f"validation_{aim.measure}"],
        "best_epoch": fitted.best_epoch,
        **other_rate,
        "paper_value": plan.task.paper.get(row_in_paper) if comparable else None,
        "epochs": plan.recipe.epochs,
        "seconds": sum(row["seconds"] for row in fitted.rows),
        "seconds_per_epoch": sum(row["seconds"] for row in fitted.rows) / len(fitted.rows),
        **where_it_ran(device, plan.recipe.precision),
        "sessions": int(fitted.rows[-1]["session"]),  # of more than one, device and threads are the last one's
        "seed": plan.recipe.seed,
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "sizes": dataset.sizes,
            "shape": list(dataset.shape),
            "classes": dataset.classes,
            "notes": dataset.notes,
            "options": dataset.options,
        },
        **({"per_class": per_class} if per_class else {}),
        **({"drawn_positions": drawn} if drawn else {}),
        "versions": versions(),
        "recipe": plan.as_json(),
    }
    write_result(folder, result)
    return result


def _test_at_rate(rate: float, model: nn.Module, dataset: Dataset, aim: Objective, options: dict[str, Any]) -> dict[str, Any]:
    """The test split sampled `rate` times as densely, by the network set to that."""
    with set_resolution(model, rate) as unchanged:
        predicted, true = predict(model, at_rate(dataset.test, rate), **options)
    return {"test_rate": rate, "value_at_test_rate": aim.score(predicted, true), "unchanged_layers": list(unchanged)}
