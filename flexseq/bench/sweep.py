"""Training at several sizes and testing at several others: the grid of accuracy changes."""

import json
from pathlib import Path
from typing import Any

from flexseq.bench.plan import make_plan
from flexseq.bench.plots import plot_grids
from flexseq.bench.results import read_result
from flexseq.bench.run import FREE
from flexseq.bench.study import RUNS, Cell, claim_study, in_percent, run_cells
from flexseq.errors import InputError
from flexseq.files import write_text
from flexseq.processes import is_first_process
from flexseq.training.fit import ONE, Devices

GRID_FILE = "grid.md"
VARIED = ("seed", "workers", "alias_penalty")
"""What may differ between the runs of one grid."""
CHANGES = {"change_at_target": "as it is", "change_fine_tuned": "fine-tuned"}


def run_sweep(
    task: str,
    folder: Path,
    *,
    sources: list[int],
    targets: list[int],
    penalties: list[str] | None,
    seeds: list[int],
    device: str,
    devices: Devices = ONE,
    training: dict[str, Any],
    **given: Any,
) -> Path:
    """Train at each source with each penalty, test and fine-tune at each target; go on with what `folder` holds.

    The training at a source is done once for all its targets.

    Args:
        task: a transfer task.
        folder: where the runs accumulate, and grid.md, grid.json and grid.png go.
        sources, targets: pixels along an edge.
        penalties: see `Recipe`; where None, both kinds, or none for kernels without a known limit.
        seeds: one run each.
        device, devices: as for a run.
        training: of the recipe.
        given: the rest of what `make_plan` takes.

    Returns:
        The path of grid.md.

    Raises:
        InputError: runs with other options in the folder; as a run does.

    Source:
        FlexConv, Fig. 5.
    """
    usual = make_plan(task, training=training, sizes={"source": sources[0], "target": targets[0]}, **given).recipe.alias_penalty
    penalties = penalties or (["none"] if usual == "none" else ["magnet", "flexconv"])
    about = {"task": task, "training": {key: value for key, value in training.items() if key not in VARIED}, **given}
    about["data"] = {key: value for key, value in given["data"].items() if key not in FREE}
    cells = []
    for seed in seeds:
        for penalty in penalties:
            for source in sources:
                for target in targets:
                    recipe = {**training, "alias_penalty": penalty, "seed": seed}
                    plan = make_plan(task, training=recipe, sizes={"source": source, "target": target}, **given)
                    first = None if target == targets[0] else _cell(penalty, source, targets[0], seed)
                    cells.append(Cell(_cell(penalty, source, target, seed), plan, first))
    claim_study(folder, about)
    run_cells(cells, folder, device=device, devices=devices, draw=lambda: _draw(task, folder))
    return _draw(task, folder) if is_first_process() else folder / GRID_FILE


def _cell(penalty: str, source: int, target: int, seed: int) -> str:
    return f"{penalty}/{source}-{target}/seed-{seed}"


def _draw(task: str, folder: Path) -> Path:
    """Write grid.md, grid.json and grid.png of all that is finished in a folder."""
    found: dict[str, dict[tuple[int, int], list[dict[str, Any]]]] = {}
    for result_file in sorted((folder / RUNS).glob("*/*-*/seed-*/result.json")):
        result = read_result(result_file.parent)
        result["change_fine_tuned"] = result["value"] - result["value_at_source"]
        found.setdefault(result["penalty"], {}).setdefault((result["source_size"], result["target_size"]), []).append(result)
    if not found:
        raise InputError(f"{folder} holds no finished run of {task}")
    sizes = [size for by_sizes in found.values() for size in by_sizes]
    sources, targets = (sorted({size[i] for size in sizes}) for i in (0, 1))
    grids = {
        f"penalty {penalty}, {name}": [[[r[key] for r in by_sizes.get((source, target), [])] for target in targets] for source in sources]
        for penalty, by_sizes in found.items()
        for key, name in CHANGES.items()
    }
    lines = [f"# {task}: change of test accuracy from source to target, in percent", ""]
    for title, grid in grids.items():
        lines += [f"## {title}", "", f"| source | {' | '.join(f'{target} px' for target in targets)} |", "|---|" + "---|" * len(targets)]
        for source, row in zip(sources, grid, strict=True):
            lines.append(f"| {source} px | {' | '.join(in_percent(values, signed=True) for values in row)} |")
        lines.append("")
    results = [result for by_sizes in found.values() for of_sizes in by_sizes.values() for result in of_sizes]
    models = sorted({f"{r['model']}, {r['epochs']} + {r['fine_tune_epochs']} epochs" for r in results})
    samples = sorted({"/".join(f"{n:,}" for n in r["dataset"]["sizes"].values()) for r in results})
    lines.append(f"{'; '.join(models)}; train/validation/test: {'; '.join(samples)}; seeds {sorted({r['seed'] for r in results})}.")
    lines.append("Mean ± sample standard deviation over seeds, final epochs.")
    write_text(folder / "grid.json", json.dumps({"sources": sources, "targets": targets, "grids": grids}, indent=1) + "\n")
    plot_grids(grids, sources, targets, folder / "grid.png")
    path = folder / GRID_FILE
    write_text(path, "\n".join(lines) + "\n")
    return path
