"""The classic tests of long memory, made on the spot: copying and adding."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flexseq.checks import is_integer
from flexseq.data.dataset import IGNORED, Dataset, Split, as_it_is
from flexseq.errors import InputError

SYMBOLS, RECALLED, BLANK, GO = 8, 10, 0, 9
SEEDS = {"train": 0, "validation": 1, "test": 2}


LONGEST = 10**6
"""Steps; a thousand such sequences take ten gigabytes."""


def load_copy_memory(*, length: int = 1000, limit: int | None = None) -> Dataset:
    """Ten symbols, then `length` blanks, then a sign to repeat the ten.

    Sequences have length + 20 steps: symbols 1 to 8, `length` - 1 blanks (0), 11 signs (9); as 10 channels, one-hot. Only the last ten
    steps have targets, the symbols in their order: chance is 12.5 %.

    Args:
        length: steps over which the symbols are to be remembered, at least 1.
        limit: training sequences, 10,000 by default; 1,000 validate and 1,000 test, or as many.

    Raises:
        InputError: a length or limit below 1.

    Source:
        Hochreiter & Schmidhuber 1997; as in Bai et al. 2018.
    """

    def make(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        symbols = np.random.default_rng(seed).integers(1, SYMBOLS + 1, (samples, RECALLED))
        inputs = np.full((samples, length + 2 * RECALLED), BLANK, np.uint8)
        inputs[:, :RECALLED] = symbols
        inputs[:, length + RECALLED - 1 :] = GO
        targets = np.full(inputs.shape, IGNORED, np.int64)
        targets[:, -RECALLED:] = symbols
        return inputs[:, None], targets

    classes = ["blank", *(f"symbol {i}" for i in range(1, SYMBOLS + 1)), "go"]
    splits = _splits(make, length, limit, _one_hot)
    return Dataset(
        "copy_memory", "made here", *splits, classes, (GO + 1, length + 2 * RECALLED), options={"length": length}, kind="labelling"
    )


def load_adding(*, length: int = 1000, limit: int | None = None) -> Dataset:
    """Numbers, two of which are marked: what is their sum?

    The first channel has numbers from U(0, 1), the second a 1 at one step of each half. A constant answer has a mean squared error of 1/6.

    Args:
        length: steps, at least 2.
        limit: training sequences, 10,000 by default; 1,000 validate and 1,000 test, or as many.

    Raises:
        InputError: a length below 2, a limit below 1.

    Source:
        Hochreiter & Schmidhuber 1997; as in Bai et al. 2018.
    """
    _check_length(length, 2)

    def make(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        inputs = np.zeros((samples, 2, length), np.float32)
        inputs[:, 0] = rng.random((samples, length), np.float32)
        rows = np.arange(samples)
        marked = rng.integers(0, length // 2, samples), rng.integers(length // 2, length, samples)
        for at in marked:
            inputs[rows, 1, at] = 1
        return inputs, inputs[rows, 0, marked[0]] + inputs[rows, 0, marked[1]]

    splits = _splits(make, length, limit, as_it_is)
    return Dataset("adding", "made here", *splits, [], (2, length), options={"length": length}, kind="regression")


def _splits(
    make: Callable[[int, int], tuple[np.ndarray, np.ndarray]], length: int, limit: int | None, transform: Callable[[Tensor], Tensor]
) -> tuple[Split, Split, Split]:
    _check_length(length, 1)
    train = 10_000 if limit is None else limit
    sizes = {"train": train, "validation": min(train, 1_000), "test": min(train, 1_000)}
    made = []
    for name, seed in SEEDS.items():
        inputs, targets = make(sizes[name], seed)
        made.append(Split(inputs, targets, np.arange(sizes[name]), transform))
    return made[0], made[1], made[2]


def _check_length(length: int, least: int) -> None:
    if not is_integer(length) or length < least:
        raise InputError(f"--length expected at least {least}, got {length!r}")
    if length > LONGEST:
        raise InputError(f"--length expected at most {LONGEST:,}, got {length:,}")


def _one_hot(x: Tensor) -> Tensor:
    return F.one_hot(x[:, 0].to(torch.int64), GO + 1).movedim(2, 1).to(torch.float32)
