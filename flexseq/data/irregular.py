"""Series with missing time steps, and series at another sampling rate."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexseq.data.dataset import Dataset, Split, Then
from flexseq.errors import InputError


@dataclass
class DroppedSplit(Split):
    """A split of whose series some steps are missing, always the same ones of each.

    Args:
        inputs, targets, indices, transform, lengths: as in `Split`.
        share: of the steps that are missing.
        seed: of which.
    """

    share: float = 0.0
    seed: int = 0

    def batch(self, positions: Sequence[int] | np.ndarray) -> tuple[Any, Tensor]:
        """As `Split.batch`, missing steps at 0, and one channel more that is 1 where there is data."""
        inputs, targets = super().batch(positions)
        x = inputs if self.lengths is None else inputs[0]
        there = torch.zeros(len(x), 1, x.shape[-1])
        for row, sample in zip(there, self.indices[np.asarray(positions, dtype=np.int64)], strict=True):
            length = x.shape[-1] if self.lengths is None else int(self.lengths[sample])
            missing = min(round(self.share * length), length - 1)
            row[0, np.random.default_rng([self.seed, int(sample)]).permutation(length)[missing:]] = 1
        x = torch.cat([x * there, there], 1)
        return (x if self.lengths is None else (x, inputs[1])), targets


def drop_steps(dataset: Dataset, percent: int, seed: int = 0) -> Dataset:
    """A dataset of whose series some steps, drawn at random for each, are missing: zeros, and a channel that is 1 where data exists.

    Steps are dropped after standardisation (by all steps, as if the series were whole), so that a missing one has the mean's value. One
    step of each series is left.

    Args:
        dataset: of series, (channels, length).
        percent: of the steps, 1 to 99.
        seed: of which.

    Raises:
        InputError: another percentage; images.

    Source:
        CKConv and FlexConv: 30, 50 and 70 per cent.
    """
    if not 1 <= percent <= 99:
        raise InputError(f"--drop expected a percentage from 1 to 99, got {percent}")
    if len(dataset.shape) != 2:
        raise InputError(f"--drop is for series, and {dataset.name} has images")

    def dropped(split: Split) -> Split:
        return DroppedSplit(split.inputs, split.targets, split.indices, split.transform, split.lengths, share=percent / 100, seed=seed)

    channels, length = dataset.shape
    return dataclasses.replace(
        dataset,
        train=dropped(dataset.train),
        validation=dropped(dataset.validation),
        test=dropped(dataset.test),
        shape=(channels + 1, length),
        notes=[*dataset.notes, f"{percent} % of the steps of each series are missing; one channel says which are there"],
        options={**dataset.options, "drop": percent},
    )


def resample(x: Tensor, rate: float) -> Tensor:
    """Series at another sampling rate, band-limited: (..., length) -> (..., about rate * length), the first sample where it was.

    Args:
        x: series.
        rate: above 0; taken as a fraction of whole numbers up to 100.
    """
    from scipy.signal import resample_poly

    if not 0 < rate <= 100:
        raise InputError(f"--test-rate expected above 0 and at most 100, got {rate}")
    fraction = Fraction(rate).limit_denominator(100)
    if fraction.numerator == 0:
        raise InputError(f"--test-rate expected at least 0.01, got {rate}")
    values = resample_poly(x.double().numpy(), fraction.numerator, fraction.denominator, axis=-1, padtype="line")
    return torch.from_numpy(np.ascontiguousarray(values)).to(x.dtype)


def at_rate(split: Split, rate: float) -> Split:
    """A split whose series are resampled; see `resample`."""
    return dataclasses.replace(split, transform=Then(split.transform, partial(resample, rate=rate)))
