"""The papers' tables: which networks on which tasks, what was published, and what this project finds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from flexseq.backbones import BACKBONES, CONVERSIONS
from flexseq.bench.networks import ROWS
from flexseq.bench.plan import Plan, make_plan
from flexseq.bench.plots import plot_over_size, plot_table
from flexseq.bench.run import FREE
from flexseq.bench.study import RUNS, Cell, claim_study, in_percent, mean_and_spread, results_of, run_cells
from flexseq.bench.tasks import TASKS
from flexseq.errors import InputError
from flexseq.files import write_text
from flexseq.processes import is_first_process
from flexseq.training.fit import ONE, Devices

TABLE_FILE = "table.md"


@dataclasses.dataclass(frozen=True)
class Column:
    """One figure of a table.

    Args:
        title: its head.
        task: whose runs it is read from.
        key: which of a result's figures, a share.
        signed: whether it is a change.
    """

    title: str
    task: str
    key: str = "value"
    signed: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One network.

    Args:
        name: what --rows calls it.
        model: the network's name in the bench.
        network, training: its arguments and the recipe's, where they are not the task's.
        paper: what was published, by column; in percent, "mean ± spread".
        on_request: run only where --rows names it.
    """

    name: str
    model: str
    network: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    paper: dict[str, str] = dataclasses.field(default_factory=dict)
    on_request: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the papers.

    Args:
        title: what it is of.
        columns, rows: what it holds.
        decimals: of percentages.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    decimals: int = 1

    @property
    def tasks(self) -> list[str]:
        """The tasks of its columns, each once."""
        return list(dict.fromkeys(column.task for column in self.columns))


TCN_PAPER = {"smnist": "99.0", "pmnist": "97.2"}
"""Bai et al. 2018, with a network of 70 K parameters."""


def _of_sequences(title: str, *tasks: str) -> Table:
    """A column for each task, the published figures as the tasks have them; rows without any are run where they are asked for."""
    rows = []
    for name, (model, network) in ROWS.items():
        paper = {task: f"{100 * TASKS[task].paper[name]:.2f}" for task in tasks if name in TASKS[task].paper}
        if name == "TCN-8":
            paper = {task: published for task, published in TCN_PAPER.items() if task in tasks}
        rows.append(Row(name, model, network, paper=paper, on_request=not paper and name != "TCN-8"))
    return Table(title, tuple(Column(task, task) for task in tasks), tuple(rows), decimals=2)


TABLE1 = _of_sequences("FlexConv, Table 1: images as sequences", "smnist", "pmnist", "scifar10", "npcifar10")
TABLE2 = _of_sequences("FlexConv, Table 2: letters, speech as MFCCs and raw", "character_trajectories", "speech_mfcc", "speech_raw")

TABLE3 = Table(
    "FlexConv, Table 3: CIFAR-10",
    (Column("CIFAR-10", "cifar10"),),
    tuple(
        Row(name, model, network, paper={"CIFAR-10": paper})
        for name, model, network, paper in (
            ("CIFARResNet-44", "cifar_resnet", {"depth": 44}, "90.9 ± 0.2"),  # the authors' reproduction, Table 6
            ("FlexNet-conv3", "flexnet", {"conv": "conv", "kernel_size": 3}, "89.5 ± 0.3"),
            ("FlexNet-conv33", "flexnet", {"conv": "conv", "kernel_size": 33}, "78.0 ± 0.3"),
            ("FlexNet-njet", "flexnet", {"conv": "njet", "width": 46}, "91.7 ± 0.1"),
            ("CKNet-siren", "flexnet", {"conv": "ck", "kernel": "siren"}, "72.1 ± 0.2"),
            ("CKNet-magnet", "flexnet", {"conv": "ck"}, "86.8 ± 0.6"),
            ("FlexNet-siren", "flexnet", {"kernel": "siren"}, "89.0 ± 0.3"),
            ("FlexNet-gabor", "flexnet", {"kernel": "gabor"}, "91.9 ± 0.2"),
            ("FlexNet", "flexnet", {}, "92.2 ± 0.1"),
        )
    ),
)

AS_IT_IS = {"alias_penalty": "none", "start_below_nyquist": False}


def _transferred(name: str, model: str, network: dict[str, Any], training: dict[str, Any], *paper: str) -> Row:
    return Row(name, model, network, training, dict(zip(("16 px", "change at 32 px"), paper, strict=False)))


def _transfer_columns(task: str) -> tuple[Column, ...]:
    return (
        Column("16 px", task, "value_at_source"),
        Column("change at 32 px", task, "change_at_target", signed=True),
        Column("32 px, fine-tuned", task, "value"),
    )


TABLE4 = Table(
    "FlexConv, Table 4: CIFAR-10, trained at 16 px, tested at 32 px",
    _transfer_columns("cifar10_transfer"),
    (
        _transferred("CIFARResNet-44", "cifar_resnet", {"depth": 44}, AS_IT_IS, "85.8 ± 0.2", "-31.6 ± 1.3"),
        _transferred("FlexNet-conv3", "flexnet", {"conv": "conv", "kernel_size": 3}, AS_IT_IS, "85.3 ± 0.2", "-21.2 ± 1.0"),
        _transferred("FlexNet-conv33", "flexnet", {"conv": "conv", "kernel_size": 33}, AS_IT_IS, "67.7 ± 0.6", "-57.1 ± 1.6"),
        _transferred("FlexNet-njet", "flexnet", {"conv": "njet", "width": 46}, AS_IT_IS, "86.4 ± 0.2", "-5.5 ± 1.3"),
        _transferred("CKNet-siren", "flexnet", {"conv": "ck", "kernel": "siren"}, AS_IT_IS, "45.9 ± 1.0", "-15.8 ± 1.2"),
        _transferred("FlexNet-siren", "flexnet", {"kernel": "siren"}, AS_IT_IS, "70.4 ± 0.8", "-50.0 ± 16.9"),
        _transferred("FlexNet-none", "flexnet", {}, AS_IT_IS, "86.4 ± 0.4", "-34.4 ± 14.3"),
        _transferred(
            "FlexNet-magnet", "flexnet", {}, {"alias_penalty": "magnet", "start_below_nyquist": False}, "86.5 ± 0.1", "-3.8 ± 2.0"
        ),
        _transferred(
            "FlexNet-flexconv", "flexnet", {}, {"alias_penalty": "flexconv", "start_below_nyquist": False}, "85.1 ± 0.3", "-3.3 ± 0.3"
        ),
        # This project's: kernels below Nyquist from the start, and N-Jets at FlexNet's width, which a CPU can train.
        _transferred("FlexNet-magnet-below", "flexnet", {}, {"alias_penalty": "magnet", "start_below_nyquist": True}),
        _transferred("FlexNet-njet-24", "flexnet", {"conv": "njet"}, AS_IT_IS),
    ),
)

TABLE8 = Table(
    "FlexConv, Table 8: downsampled ImageNet, trained at 16 px, tested at 32 px",
    _transfer_columns("imagenet_k_transfer"),
    (
        _transferred("CIFARResNet-32", "cifar_resnet", {"depth": 32}, AS_IT_IS, "16.1 ± 0.0", "-11.6 ± 0.4"),
        _transferred("FlexNet-njet", "flexnet", {"conv": "njet", "width": 38}, AS_IT_IS, "15.7 ± 0.1", "-1.9 ± 0.4"),
        _transferred("FlexNet", "flexnet", {}, {"alias_penalty": "magnet", "start_below_nyquist": False}, "14.9 ± 0.1", "-1.9 ± 1.7"),
    ),
)


def _converted(backbone: str, conversion: str) -> Row:
    name = f"{backbone}-{conversion}"
    paper = TASKS["niff_cifar10"].paper.get(name)
    published = {} if paper is None else {"CIFAR-10": f"{100 * paper:.2f}"}
    return Row(name, "backbone", {"backbone": backbone, "conversion": conversion}, paper=published)


NIFF = Table(
    "NIFF, Tables A2 and A4: CIFAR-10",
    (Column("CIFAR-10", "niff_cifar10"),),
    tuple(
        _converted(backbone, conversion)
        for backbone in BACKBONES
        for conversion in CONVERSIONS
        if not (backbone in ("convnext_tiny", "mobilenet_v2") and conversion in ("separated", "niff_full"))  # depthwise already
    ),
    decimals=2,
)

TABLES = {"table1": TABLE1, "table2": TABLE2, "table3": TABLE3, "table4": TABLE4, "table8": TABLE8, "niff_table": NIFF}


def run_table(
    name: str,
    folder: Path,
    *,
    rows: list[str],
    tasks: list[str],
    seeds: list[int],
    device: str,
    devices: Devices = ONE,
    draw: bool,
    **given: Any,
) -> Path:
    """Run rows x tasks x seeds, as far as they are not finished in `folder`, and draw the table of all that are.

    Args:
        name: one of `TABLES`.
        folder: where the runs accumulate, and table.md, table.json and pictures go.
        rows, tasks: by name; all where empty, but for rows on request.
        seeds: one run each.
        device, devices: as for a run.
        draw: only draw what is finished.
        given: `training`, `data` and `quick` as for `make_plan`, for all runs; what a row says itself goes before.

    Returns:
        The path of table.md.

    Raises:
        InputError: an unknown row or task; runs with other options in the folder; a run's own complaints; nothing to draw.
    """
    table = TABLES[name]
    for kind, chosen, known in (("rows", rows, [row.name for row in table.rows]), ("tasks", tasks, table.tasks)):
        for one in chosen:
            if one not in known:
                raise InputError(f"--{kind} expected some of {', '.join(known)}, got {one}")
    if not draw:
        cells = [
            Cell(_cell(task, row, seed), _plan(row, task, seed, given))
            for seed in seeds
            for row in table.rows
            for task in table.tasks
            if (row.name in rows if rows else not row.on_request) and (not tasks or task in tasks)
        ]
        for option in given["data"]:
            if not any(option in TASKS[task].options for task in tasks or table.tasks):
                raise InputError(f"{name} has no option --{option.replace('_', '-')}")
        about = {"table": name, **given}
        for part in ("data", "training"):
            about[part] = {key: value for key, value in given[part].items() if key not in FREE}
        claim_study(folder, about)
        run_cells(cells, folder, device=device, devices=devices, draw=lambda: draw_table(name, folder))
    return draw_table(name, folder) if is_first_process() else folder / TABLE_FILE


def draw_table(name: str, folder: Path) -> Path:
    """Write table.md, table.json and pictures of what is finished in a folder.

    Returns:
        The path of table.md.

    Raises:
        InputError: nothing is finished there.
    """
    table = TABLES[name]
    found = {row.name: {task: _finished(folder, task, row) for task in table.tasks} for row in table.rows}
    if not any(results for by_task in found.values() for results in by_task.values()):
        raise InputError(f"{folder} holds no finished run of {name}")
    data = []
    for row in table.rows:
        figures = {}
        for column in table.columns:
            values = [result[column.key] for result in found[row.name][column.task]]
            if values:
                mean, spread = mean_and_spread(values)
                figures[column.title] = {"mean": mean, "spread": spread, "values": values, "paper": row.paper.get(column.title)}
        if figures:
            first = next(results[0] for results in found[row.name].values() if results)
            data.append({"row": row.name, "parameters": first["parameters"], "figures": figures})
    write_text(folder / "table.json", json.dumps({"table": name, "title": table.title, "rows": data}, indent=1) + "\n")
    plot_table(table.title, [column.title for column in table.columns], data, folder / "table.png")
    for task in table.tasks:
        if TASKS[task].transfer is not None:
            curves = {name: [r["accuracy_over_size"] for r in by_task[task]] for name, by_task in found.items() if by_task[task]}
            plot_over_size(
                curves, next(r for by_task in found.values() for r in by_task[task])["source_size"], folder / f"{task}_sizes.png"
            )
    path = folder / TABLE_FILE
    write_text(path, _as_markdown(table, found))
    return path


def _as_markdown(table: Table, found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The table, with published figures in brackets, and what the runs were."""
    heads = [
        "row",
        "parameters",
        *(f"{column.title} (paper)" for column in table.columns),
        "seeds",
        "epochs",
        "images or series",
        "seconds",
    ]
    lines = [f"# {table.title}", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in table.rows:
        all_results = [result for results in found[row.name].values() for result in results]
        if not all_results:
            continue
        by_task = [results for results in found[row.name].values() if results]
        cells = [row.name, " / ".join(dict.fromkeys(f"{results[0]['parameters']:,}" for results in by_task))]
        for column in table.columns:
            values = in_percent(
                [result[column.key] for result in found[row.name][column.task]], signed=column.signed, decimals=table.decimals
            )
            paper = row.paper.get(column.title)
            cells.append(values + (f" ({paper})" if paper and values else ""))
        epochs = sorted({f"{r['epochs']}" + (f" + {r['fine_tune_epochs']}" if "fine_tune_epochs" in r else "") for r in all_results})
        sizes = sorted({"/".join(f"{n:,}" for n in r["dataset"]["sizes"].values()) for r in all_results})
        seeds = dict.fromkeys(", ".join(str(r["seed"]) for r in results) for results in by_task)
        seconds = [f"{mean_and_spread([r['seconds'] for r in results])[0]:.0f}" for results in by_task]
        cells += [" / ".join(seeds), ", ".join(epochs), ", ".join(sizes), " / ".join(seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    notes = sorted({note for by_task in found.values() for results in by_task.values() for r in results for note in r["dataset"]["notes"]})
    lines += [
        "",
        "Test accuracy of the final epoch in percent, mean ± sample standard deviation over seeds; samples: train/validation/test.",
    ]
    lines += [f"- {note}" for note in notes]
    everywhere = [r for by_task in found.values() for results in by_task.values() for r in results]
    machines = sorted({f"{r['device']}, {r['dtype']}, {r['threads']} threads" for r in everywhere})
    lines.append(f"- Trained on: {'; '.join(machines)}.")
    return "\n".join(lines) + "\n"


def _cell(task: str, row: Row, seed: int) -> str:
    return f"{task}/{row.name}/seed-{seed}"


def _finished(folder: Path, task: str, row: Row) -> list[dict[str, Any]]:
    places = sorted((folder / RUNS / task / row.name).glob("seed-*"), key=lambda place: int(place.name.removeprefix("seed-")))
    return results_of(folder, [f"{task}/{row.name}/{place.name}" for place in places])


def _plan(row: Row, task: str, seed: int, given: dict[str, Any]) -> Plan:
    training = {**given["training"], **row.training, "seed": seed}
    own_data = {name: value for name, value in given["data"].items() if name in TASKS[task].options}
    return make_plan(task, model=row.model, network=row.network, training=training, data=own_data, quick=given["quick"])
