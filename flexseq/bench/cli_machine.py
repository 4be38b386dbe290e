"""The command lines' options of where and how to compute."""

from typing import Annotated

import typer

from flexseq.errors import unknown_name
from flexseq.training.fit import Devices

PRECISIONS = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
STRATEGIES = ("auto", "ddp")

Device = Annotated[str, typer.Option(help="auto | cpu | cuda | mps")]
DeviceCount = Annotated[int, typer.Option("--devices", help="how many train together on this machine, a process each; they share a batch")]
Nodes = Annotated[int, typer.Option("--num-nodes", help="machines that train together; each runs the same command")]
Strategy = Annotated[str, typer.Option(help="auto | ddp: how several devices train together; both mean ddp")]
Precision = Annotated[str, typer.Option(help=" | ".join(PRECISIONS) + " bits")]
Workers = Annotated[int, typer.Option(help="processes that prepare batches")]


def several(devices: int, num_nodes: int, strategy: str) -> Devices:
    """The devices that train together.

    Raises:
        InputError: an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    return Devices(devices, num_nodes)


def lightning_precision(precision: str) -> str:
    """Lightning's name for --precision.

    Raises:
        InputError: an unknown one.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    return PRECISIONS[precision]
