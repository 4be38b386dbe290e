"""Many runs in one folder: each cell of a table or grid is one, and those that are finished are not run again."""

import contextlib
import dataclasses
import json
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flexseq.bench.plan import Plan
from flexseq.bench.results import RESULT, is_finished, read_result
from flexseq.bench.run import RECIPE, check_claim, check_folder
from flexseq.bench.run import run_in_own_folder as run
from flexseq.bench.transfer import SOURCE
from flexseq.errors import InputError
from flexseq.files import write_text
from flexseq.processes import alone, is_first_process, say, wait_for_all
from flexseq.training.fit import ONE, Devices
from flexseq.words import duration

RUNS, ABOUT = "runs", "study.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        folder: where it goes, below the study's.
        plan: what is run.
        same_source: the folder of a cell that trains alike at the source of a transfer: what it did there is taken over if it is finished.
    """

    folder: str
    plan: Plan
    same_source: str | None = None


def claim_study(folder: Path, about: dict[str, Any]) -> None:
    """Make a folder a study's own: what is gathered in one table or grid has to be run alike.

    Args:
        folder: made where it is not there.
        about: everything that all its runs or fits share.

    Raises:
        InputError: the folder holds a study with other options, or something else.
    """
    check_folder(folder)
    path = folder / ABOUT
    about = json.loads(json.dumps(about))
    if not path.is_file():
        # Hidden files are what a process leaves that was killed in the middle of this.
        if folder.exists() and (not folder.is_dir() or any(not item.name.startswith(".") for item in folder.iterdir())):
            raise InputError(f"{folder} is no empty folder and holds no study; give another --out")
        write_text(path, json.dumps(about, indent=1) + "\n")
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise InputError(f"{path} is damaged and cannot be read; remove it to go on with these options, or give another --out")
    differing = [f"{key}: {before.get(key)} there, {about.get(key)} here" for key in about | before if before.get(key) != about.get(key)]
    if differing:
        raise InputError(f"{folder} holds a study with other options ({'; '.join(differing)}); give another --out")


def run_cells(cells: list[Cell], folder: Path, *, device: str, devices: Devices = ONE, draw: Callable[[], Path]) -> None:
    """Run what is not finished yet, one after the other, and draw after each; each leaves what a run of the bench leaves.

    A cell that fails does not keep the others from being run, unless several processes train together; one that another process is
    running is left to it.

    Args:
        cells: what to run.
        folder: the study's; runs go below its `runs`.
        device, devices: as for a run.
        draw: draws all that is finished.

    Raises:
        InputError: some cells failed, said at the end; what is finished stays.
    """
    first, together = is_first_process(), devices.processes > 1
    todo = []
    for cell in cells:
        if is_finished(folder / RUNS / cell.folder):
            check_claim(folder / RUNS / cell.folder, cell.plan.as_json(), resume=True)
        else:
            todo.append(cell)
    say(f"{len(cells) - len(todo)} of {len(cells)} runs are finished; results go to {folder}")
    failed: dict[str, list[str]] = {}
    began, mine_so_far = time.perf_counter(), 0
    for position, cell in enumerate(todo):
        place = folder / RUNS / cell.folder
        a_run = (time.perf_counter() - began) / mine_so_far if mine_so_far else None
        left = "" if a_run is None else f", at most about {duration(a_run * (len(todo) - position))} left"
        say(f"{position + 1} of {len(todo)}{left}: {cell.folder}")
        with alone(place) if first else contextlib.nullcontext(True) as mine:
            if not mine and together:
                raise InputError(
                    f"{place} is being run by another process; several devices that train together need the folder for themselves"
                )
            if not mine:
                say(f"{place} is being run by another process: left to it")
                continue
            if is_finished(place):
                say(f"{place} was finished by another process meanwhile")
                continue
            mine_so_far += 1
            try:
                if first and not place.exists() and cell.same_source is not None:
                    _take_over(folder / RUNS / cell.same_source, place, cell.plan)
                wait_for_all()  # so that all see the same files
                run(cell.plan, place, seeds=1, device=device, resume=place.exists(), devices=devices)
            except Exception as error:  # memory that is used up, a disk that is full: the other cells are still to be run
                if together:  # the others would wait for this process
                    raise
                message = str(error)
                if not isinstance(error, InputError):
                    message = f"{type(error).__name__}: {error}"
                    traceback.print_exc()
                print(f"{cell.folder} failed: {message}", flush=True)
                failed.setdefault(message.splitlines()[0], []).append(cell.folder)
                continue
        if first:
            draw()
    if failed:
        count = sum(map(len, failed.values()))
        reasons = "; ".join(f"{message} ({', '.join(folders[:3])}{', ...' if folders[3:] else ''})" for message, folders in failed.items())
        raise InputError(f"{count} of {len(todo)} runs failed: {reasons}")


def results_of(folder: Path, cell_folders: Iterable[str]) -> list[dict[str, Any]]:
    """The results of those cells that are finished."""
    places = [folder / RUNS / name for name in cell_folders]
    return [read_result(place) for place in places if is_finished(place)]


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, None for a single value.

    Example:
        >>> mean_and_spread([1.0, 3.0]), mean_and_spread([2.0])
        ((2.0, 1.4142135623730951), (2.0, None))
    """
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def in_percent(values: list[float], *, signed: bool = False, decimals: int = 1) -> str:
    """Shares as "92.2 ± 0.1", in percent; "" for none.

    Example:
        >>> in_percent([0.9, 0.92]), in_percent([-0.05], signed=True), in_percent([])
        ('91.0 ± 1.4', '-5.0', '')
    """
    if not values:
        return ""
    mean, spread = mean_and_spread([100 * value for value in values])
    return f"{mean:{'+' if signed else ''}.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _take_over(finished: Path, place: Path, plan: Plan) -> None:
    """Copy the training at the source from a run that differs in the target alone."""
    if not (finished / RESULT).is_file():
        return
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copytree(finished / SOURCE, part / SOURCE)
    write_text(part / RECIPE, plan.as_text())
    part.rename(place)
