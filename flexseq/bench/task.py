"""What a task is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flexseq.bench.recipes import TaskRecipe
from flexseq.data.dataset import Dataset
from flexseq.errors import InputError

LARGEST = 2048
"""Pixels along an edge; kernels as large as that take minutes each."""


@dataclass(frozen=True)
class Transfer:
    """From which size to which, and how images are brought there.

    Args:
        source, target: pixels along an edge.
        resize: (images, size) -> images.
        sources, targets: of a sweep over sizes.
    """

    source: int
    target: int
    resize: Callable[[Tensor, int], Tensor]
    sources: tuple[int, ...] = (16, 20)
    targets: tuple[int, ...] = (28, 30, 32, 34, 36)

    def __post_init__(self) -> None:
        for argument, size in (("source", self.source), ("target", self.target)):
            if size < 4:
                raise InputError(f"--{argument} expected at least 4 px, got {size}")
            if size > LARGEST:
                raise InputError(f"--{argument} expected at most {LARGEST:,} px, got {size:,}")


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name, description: for the list of tasks.
        needs: what data it takes, and where from.
        is_here: folder or None -> whether that data is on this machine.
        load: keyword options -> the dataset.
        options: which of the data options `load` takes, "drop" for series, which may miss steps, and "test_rate" for those that
            may be sampled at another rate.
        defaults: how it trains, and the arguments of its network.
        model: which network by default.
        transfer: from which size to which, for tasks that train and test at two.
        paper: published accuracy by the network's row, such as "FlexTCN-magnet-6".
        paper_samples: how many samples the paper's data has in all,
        paper_options: and how it was made: its figures stand beside runs on such data, and on no other.
    """

    name: str
    description: str
    needs: str
    is_here: Callable[[str | None], bool]
    load: Callable[..., Dataset]
    options: tuple[str, ...]
    defaults: TaskRecipe
    model: str = "flextcn"
    transfer: Transfer | None = None
    paper: dict[str, float] = field(default_factory=dict)
    paper_samples: int = 0
    paper_options: dict[str, Any] = field(default_factory=dict)
