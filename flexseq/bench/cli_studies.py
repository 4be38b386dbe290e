"""The command line's options for studies of many runs: the papers' tables, and fits of kernel networks."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from flexseq.bench.cli_machine import Device, DeviceCount, Nodes, Precision, Strategy, Workers, lightning_precision, several
from flexseq.bench.kernel_fits import fit_kernels
from flexseq.bench.picture_fits import IMAGE_NETWORKS, fit_pictures, pictures_in
from flexseq.bench.tables import TABLES, run_table
from flexseq.command import absolute, failing_in_one_sentence, folder_of_results, given
from flexseq.errors import InputError
from flexseq.processes import by_itself, is_first_process
from flexseq.training.fit import pick_device

tables = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
pictures = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
kernels = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

STUDIES: dict[str, tuple[typer.Typer, str, str]] = {
    **{name: (tables, table.title, f"as {', '.join(table.tasks)}") for name, table in TABLES.items()},
    "kodak_fit": (pictures, "kernel networks of equal size fitted to pictures: mean PSNR", "a folder of pictures (--data-dir)"),
    "kernel_fit": (kernels, "kernel networks and N-Jet fitted to kernels of known frequency", "nothing"),
}
"""What the bench runs beside its tasks: the options, what it is, and what data it takes."""

Out = Annotated[
    Path | None, typer.Option(help="where results accumulate: the same folder goes on with what is there; by default runs/NAME")
]


@tables.command(
    help="Run the rows of one of the papers' tables, each as a run of the bench, and print the table beside the published figures. "
    "Stopped, it goes on where it was with the same command; a run that is finished is not run again. Several processes may share --out, "
    "each with a device of its own (CUDA_VISIBLE_DEVICES=1 ...): each takes the next run that none has."
)
def table(
    name: Annotated[str, typer.Argument(help=" | ".join(TABLES))],
    rows: Annotated[str | None, typer.Option(help="some of the table's rows, as a,b,c; by default all of the papers'")] = None,
    tasks: Annotated[str | None, typer.Option(help="some of the table's tasks, as a,b,c; all by default")] = None,
    seeds: Annotated[int, typer.Option(help="runs of each row, with seeds counted up from --seed")] = 1,
    seed: Annotated[int, typer.Option(help="the first")] = 0,
    epochs: Annotated[int | None, typer.Option()] = None,
    fine_tune_epochs: Annotated[int | None, typer.Option(help="transfer: epochs at the target")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    limit: Annotated[int | None, typer.Option(help="use at most this many samples")] = None,
    data_dir: Annotated[str | None, typer.Option(help="the folder that holds the data")] = None,
    download: Annotated[bool, typer.Option("--download", help="fetch the data into --data-dir if it is not there")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="small versions of the tasks' recipes: fewer samples and epochs")] = False,
    device: Device = "auto",
    devices: DeviceCount = 1,
    num_nodes: Nodes = 1,
    strategy: Strategy = "auto",
    precision: Precision = "32",
    workers: Workers = 0,
    draw: Annotated[bool, typer.Option("--draw", help="run nothing, draw what is there")] = False,
    out: Out = None,
) -> None:
    with failing_in_one_sentence("the same command goes on after the last finished epoch"), contextlib.ExitStack() as stack:
        if seeds < 1:
            raise InputError(f"--seeds expected at least 1, got {seeds}")
        together = several(devices, num_nodes, strategy)
        stack.enter_context(by_itself(together.processes == 1))
        training = given(epochs=epochs, fine_tune_epochs=fine_tune_epochs, batch_size=batch_size)
        training |= given(precision=None if precision == "32" else lightning_precision(precision), workers=workers or None)
        data = given(data_dir=absolute(data_dir), download=download or None, limit=limit)
        path = run_table(
            name,
            folder_of_results(out, Path("runs") / name),
            rows=_listed(rows),
            tasks=_listed(tasks),
            seeds=list(range(seed, seed + seeds)),
            device=device,
            devices=together,
            draw=draw,
            training=training,
            data=data,
            quick=quick,
        )
        if is_first_process():
            print(path.read_text())
            print(path)


@pictures.command(help="Fit kernel networks of about 7,300 parameters to every picture of a folder; prints their mean PSNR.")
def kodak_fit(
    name: Annotated[str, typer.Argument(hidden=True)],
    data_dir: Annotated[str | None, typer.Option(help="the folder of pictures")] = None,
    networks: Annotated[str, typer.Option(help="which, as a,b,c")] = ",".join(IMAGE_NETWORKS),
    iterations: Annotated[int | None, typer.Option(help="20,000 by default, with --quick 500")] = None,
    crop: Annotated[int | None, typer.Option(help="the middle so many pixels along each edge; whole pictures by default")] = None,
    limit: Annotated[int | None, typer.Option(help="use at most this many pictures")] = None,
    seed: Annotated[int, typer.Option(help="of the initial weights")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="the middle 96 x 96 pixels and 500 iterations")] = False,
    device: Device = "auto",
    out: Out = None,
) -> None:
    with failing_in_one_sentence("the same command goes on after the last finished fit"):
        if data_dir is None:
            raise InputError("kodak_fit needs --data-dir, a folder of pictures such as the Kodak set's 24")
        if limit is not None and limit < 1:
            raise InputError(f"--limit expected at least 1, got {limit}")
        path = fit_pictures(
            folder_of_results(out, Path("runs") / name),
            pictures_in(data_dir)[:limit],
            networks=_listed(networks),
            iterations=iterations if iterations is not None else 500 if quick else 20_000,
            crop=crop if crop is not None else 96 if quick else None,
            seed=seed,
            device=pick_device(device),
        )
        print(path)


@kernels.command(help="Fit MAGNet, a small MAGNet, SIREN and N-Jet to Gabor functions of known frequency, noise, and an edge filter.")
def kernel_fit(
    name: Annotated[str, typer.Argument(hidden=True)],
    iterations: Annotated[int | None, typer.Option(help="5,000 by default, with --quick 500")] = None,
    seeds: Annotated[int, typer.Option(help="fits of each kernel, with seeds counted up from --seed")] = 1,
    seed: Annotated[int, typer.Option(help="the first")] = 0,
    data_dir: Annotated[str | None, typer.Option(help="a folder of pictures to fit too, in grey at 33 x 33")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="500 iterations")] = False,
    device: Device = "auto",
    out: Out = None,
) -> None:
    with failing_in_one_sentence("the same command goes on after the last finished fit"):
        if seeds < 1:
            raise InputError(f"--seeds expected at least 1, got {seeds}")
        path = fit_kernels(
            folder_of_results(out, Path("runs") / name),
            iterations=iterations if iterations is not None else 500 if quick else 5_000,
            seeds=list(range(seed, seed + seeds)),
            pictures=[] if data_dir is None else pictures_in(data_dir),
            device=pick_device(device),
        )
        print(path)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
