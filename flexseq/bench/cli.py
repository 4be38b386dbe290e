"""The command line's options."""

import contextlib
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flexseq.backbones import BACKBONES, CONVERSIONS
from flexseq.bench.cli_machine import Device, DeviceCount, Nodes, Precision, Strategy, Workers, lightning_precision, several
from flexseq.bench.cli_studies import STUDIES
from flexseq.bench.networks import NETWORKS
from flexseq.bench.plan import make_plan
from flexseq.bench.run import run
from flexseq.bench.sweep import run_sweep
from flexseq.bench.tasks import TASKS
from flexseq.command import absolute, failing_in_one_sentence, folder_of_results, given
from flexseq.errors import InputError, unknown_name
from flexseq.kernels import KERNELS
from flexseq.processes import by_itself, is_first_process

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    help="Train a network on a task and leave results, pictures and weights in a folder. Without a task: list the tasks. "
    "Options that are not given have the task's recipe, which result.json records."
)
def bench(
    task: Annotated[str | None, typer.Argument(help="what to train on; none lists the tasks")] = None,
    model: Annotated[str | None, typer.Option(help=" | ".join(NETWORKS) + "; or a row of table1, such as CKTCN-gabor-2")] = None,
    depth: Annotated[int | None, typer.Option(help="blocks")] = None,
    width: Annotated[int | None, typer.Option(help="channels inside")] = None,
    kernel: Annotated[str | None, typer.Option(help=" | ".join(KERNELS))] = None,
    conv: Annotated[str | None, typer.Option(help="flex | ck | njet | conv (with --kernel-size); cfnet: cf | conv")] = None,
    kernel_size: Annotated[
        int | None, typer.Option(help="taps before cropping; by default the sequence's length, or the images' size")
    ] = None,
    mask_sigma: Annotated[
        float | None, typer.Option(help="standard deviation where masks start; the kernel spans -1 to 1, the papers have 0.075")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="probability")] = None,
    head: Annotated[str | None, typer.Option(help="where the logits come from: last (step) | mean (over time)")] = None,
    causal: Annotated[
        bool | None, typer.Option("--causal/--centred", help="flextcn: whether a step sees the past alone (default), or the future too")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help=f"niff tasks: {' | '.join(BACKBONES)}")] = None,
    conversion: Annotated[str | None, typer.Option(help=f"niff tasks: {' | '.join(CONVERSIONS)}")] = None,
    parameterisation: Annotated[str | None, typer.Option(help="cfnet: hwio | hwi | hwo | hw, what the kernels are functions of")] = None,
    positions: Annotated[
        str | None, typer.Option(help="cfnet: how many values of each kernel a step draws, or with a point their share; 32768 by default")
    ] = None,
    update: Annotated[str | None, typer.Option(help="cfnet: replace | average, what becomes of the values drawn")] = None,
    rate: Annotated[float | None, typer.Option(help="cfnet: what a new value counts with --update average; 0.1 by default")] = None,
    gradient: Annotated[str | None, typer.Option(help="cfnet: sparse | naive | rematerialised | chunked")] = None,
    half: Annotated[bool | None, typer.Option("--half/--whole", help="cfnet: keep half spectra (default), or whole ones")] = None,
    refresh_every: Annotated[int | None, typer.Option(help="cfnet: make the state anew from the networks every so many steps")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate")] = None,
    kernel_penalty: Annotated[float | None, typer.Option(help="weight of the norms of all kernels")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="largest norm of the gradient; 0 for none")] = None,
    average_statistics: Annotated[
        bool | None,
        typer.Option("--average-statistics", help="at the end, average batch normalisation's statistics over all training batches"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of weights, order and dropout")] = 0,
    seeds: Annotated[int, typer.Option(help="runs, with seeds counted up from --seed: mean and spread")] = 1,
    limit: Annotated[int | None, typer.Option(help="use at most this many samples")] = None,
    source: Annotated[str | None, typer.Option(help="transfer: pixels along an edge to train at; with --sweep several, as 16,20")] = None,
    target: Annotated[
        str | None, typer.Option(help="transfer: pixels along an edge to test and fine-tune at; with --sweep several, as 28,30,32")
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="transfer: the grid of all sources and targets, with --penalty or with both penalties; goes on with what --out holds",
        ),
    ] = False,
    penalty: Annotated[
        str | None, typer.Option(help="what frequencies above Nyquist pay: none | magnet (without masks) | flexconv (with masks)")
    ] = None,
    below_nyquist: Annotated[
        bool | None,
        typer.Option("--start-below-nyquist/--start-as-drawn", help="scale kernels at the start so that their limit is at most Nyquist"),
    ] = None,
    fine_tune_epochs: Annotated[int | None, typer.Option(help="transfer: epochs at the target")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="pixels along an edge; imagenet_k: 8 | 16 | 32 (default) | 64; niff_imagenet: 224, cats_dogs: 150 by default"),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="the folder that holds the data")] = None,
    download: Annotated[bool, typer.Option("--download", help="fetch the data into --data-dir if it is not there")] = False,
    problem: Annotated[str | None, typer.Option(help="archive: the problem's name, such as GunPoint")] = None,
    length: Annotated[int | None, typer.Option(help="copy_memory, adding: how long sequences are; 1,000 by default")] = None,
    drop: Annotated[int | None, typer.Option(help="series: percent of the steps of each that are missing")] = None,
    test_rate: Annotated[
        float | None, typer.Option(help="series: test a second time, sampled so many times as densely as in training, such as 0.5 or 2")
    ] = None,
    words: Annotated[str | None, typer.Option(help="speech: classes, as a,b,c")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="speech: paper (stratified; default for the paper's words) | lists (the folder's own; default for others)"),
    ] = None,
    short: Annotated[
        str | None, typer.Option(help="speech: clips under a second: drop (default for the paper's words) | pad (default for others)")
    ] = None,
    device: Device = "auto",
    devices: DeviceCount = 1,
    num_nodes: Nodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32",
    workers: Workers = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a small version of the task's recipe: fewer samples and epochs")] = False,
    out: Annotated[Path | None, typer.Option(help="the run's folder; by default a new one in runs/")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run that --out holds")] = False,
) -> None:
    same_command = "the same command goes on after the last finished epoch"
    how_to_go_on = same_command if sweep else f"with --resume and --out (above) {same_command}"
    with failing_in_one_sentence(how_to_go_on), contextlib.ExitStack() as stack:
        if task is None:
            list_tasks(data_dir)
            return
        together = several(devices, num_nodes, strategy)
        stack.enter_context(by_itself(together.processes == 1))
        if task not in TASKS:
            raise unknown_name("task", task, [*TASKS, *STUDIES])
        if resume and out is None:
            raise InputError("--resume needs --out, the folder of the run to go on with")
        data_dir = absolute(data_dir)
        training = given(epochs=epochs, batch_size=batch_size, lr=lr, kernel_penalty=kernel_penalty, gradient_clip=gradient_clip)
        training |= given(alias_penalty=penalty, fine_tune_epochs=fine_tune_epochs, start_below_nyquist=below_nyquist)
        training |= given(average_statistics=average_statistics)
        training |= {"precision": lightning_precision(precision), "seed": seed, "workers": workers}
        network = given(depth=depth, width=width, kernel=kernel, conv=conv, kernel_size=kernel_size)
        network |= given(causal=causal, mask_sigma=mask_sigma, dropout=dropout, head=head, backbone=backbone, conversion=conversion)
        network |= given(parameterisation=parameterisation, positions=_positions(positions), update=update, rate=rate, gradient=gradient)
        network |= given(half=half, refresh_every=refresh_every)
        data = given(data_dir=data_dir, download=download or None, words=words, split=split, short=short, limit=limit, size=size)
        data |= given(drop=drop, length=length, problem=problem)
        if sweep:
            transfer = TASKS[task].transfer
            if transfer is None:
                raise InputError(f"--sweep needs a transfer task, got {task}")
            if test_rate is not None:
                raise InputError("--test-rate does not go with --sweep")
            path = run_sweep(
                task,
                folder_of_results(out, Path("runs") / f"{task}-sweep"),
                sources=_sizes("source", source) if source else list(transfer.sources),
                targets=_sizes("target", target) if target else list(transfer.targets),
                penalties=None if penalty is None else [penalty],
                seeds=list(range(seed, seed + seeds)),
                device=device,
                devices=together,
                training=training,
                model=model,
                network=network,
                data=data,
                quick=quick,
            )
            if is_first_process():
                print(path.read_text())
                print(path)
            return
        plan = make_plan(
            task,
            model=model,
            network=network,
            training=training,
            data=data,
            sizes=given(source=_size("source", source), target=_size("target", target)),
            test_rate=test_rate,
            quick=quick,
        )
        name = f"{task}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
        if together.processes > 1:  # all are to mean the same folder: the later ones inherit the first one's name for it
            name = os.environ.setdefault("FLEXSEQ_RUN", name)
        path = run(plan, folder_of_results(out, Path("runs") / name), seeds=seeds, device=device, resume=resume, devices=together)
        if is_first_process():
            print(path)


def _positions(text: str | None) -> int | float | None:
    if text is None:
        return None
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise InputError(f"--positions expected a whole number, or a share such as 0.1, got {text}") from error


def _sizes(option: str, text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise InputError(f"--{option} expected pixels, as 16 or 16,20, got {text}") from error


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    first, *others = _sizes(option, text)
    if others:
        raise InputError(f"--{option} expected one size without --sweep, got {text}")
    return first


def list_tasks(data_dir: str | None) -> None:
    """Print the tasks, what each needs, and whether that is on this machine."""
    table = Table("task", "what", "data", "here", title="python -m flexseq.bench TASK  (--help for options)")
    for task in TASKS.values():
        table.add_row(task.name, task.description, task.needs, "yes" if task.is_here(data_dir) else "no")
    table.add_section()
    for name, (_, description, needs) in STUDIES.items():
        table.add_row(name, description, needs, "")
    Console().print(table)


def main() -> None:
    """Run the command line: a task, or one of the studies, which have their own options."""
    words = sys.argv[1:]
    # Not what follows an option, but for options without a value.
    names = [b for a, b in zip(["", *words], words, strict=False) if not a.startswith("-") or a in ("--quick", "--draw", "--download")]
    name = next((name for name in names if name in STUDIES), None)
    if name in STUDIES:
        STUDIES[name][0]()
    else:
        app()
