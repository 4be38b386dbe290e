"""Many runs in one folder: each cell of a table or grid is one, and those that are finished are not run again."""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flexseq.bench.plan import Plan
from flexseq.bench.results import RESULT, read_result
from flexseq.bench.run import RECIPE, check_claim, run
from flexseq.bench.transfer import SOURCE
from flexseq.files import write_text
from flexseq.words import duration

RUNS = "runs"


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


def run_cells(cells: list[Cell], folder: Path, *, device: str, draw: Callable[[], Path]) -> None:
    """Run what is not finished yet, one after the other, and draw after each; each leaves what a run of the bench leaves.

    Args:
        cells: what to run.
        folder: the study's; runs go below its `runs`.
        device: as for a run.
        draw: draws all that is finished.

    Raises:
        InputError: as a run does; what was finished before stays.
    """
    began, ran = time.perf_counter(), 0
    for position, cell in enumerate(cells):
        place = folder / RUNS / cell.folder
        left = ""
        if ran:
            left = f", about {duration((time.perf_counter() - began) / ran * (len(cells) - position))} left"
        print(f"{position + 1} of {len(cells)}{left}: {cell.folder}", flush=True)
        if (place / RESULT).is_file():
            check_claim(place, cell.plan.as_json(), resume=True)
            continue
        if not place.exists() and cell.same_source is not None:
            _take_over(folder / RUNS / cell.same_source, place, cell.plan)
        run(cell.plan, place, seeds=1, device=device, resume=place.exists())
        ran += 1
        draw()


def results_of(folder: Path, cell_folders: Iterable[str]) -> list[dict[str, Any]]:
    """The results of those cells that are finished."""
    places = [folder / RUNS / name for name in cell_folders]
    return [read_result(place) for place in places if (place / RESULT).is_file()]


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation, None for a single value.

    Example:
        >>> mean_and_spread([1.0, 3.0]), mean_and_spread([2.0])
        ((2.0, 1.4142135623730951), (2.0, None))
    """
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def in_percent(values: list[float], *, signed: bool = False) -> str:
    """Shares as "92.2 ± 0.1", in percent; "" for none.

    Example:
        >>> in_percent([0.9, 0.92]), in_percent([-0.05], signed=True), in_percent([])
        ('91.0 ± 1.4', '-5.0', '')
    """
    if not values:
        return ""
    mean, spread = mean_and_spread([100 * value for value in values])
    return f"{mean:{'+' if signed else ''}.1f}" + ("" if spread is None else f" ± {spread:.1f}")


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
