"""From sktime's panels of series to arrays for a network."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flexseq.data.standardise import EPSILON
from flexseq.errors import InputError


@dataclass
class Panel:
    """Series of unequal lengths in one array.

    Args:
        values: (series, channels, longest length), NaN where a value is missing, and in the padding.
        lengths: (series,).
    """

    values: np.ndarray
    lengths: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """(series, 1, longest length), true where a step is no padding."""
        return np.arange(self.values.shape[2]) < self.lengths[:, None, None]

    @property
    def has_missing(self) -> bool:
        """Whether a value within a series is missing."""
        return bool((np.isnan(self.values) & self.inside).any())


def read_panel(frames: list[Any]) -> Panel:
    """A panel of sktime's "df-list" type: a DataFrame for each series, steps in rows, channels in columns.

    Raises:
        InputError: no series; a series without steps; unequal numbers of channels; infinite values; values that are no numbers.
    """
    if not frames:
        raise InputError("X expected at least one series, got none")
    channels = frames[0].shape[1]
    arrays = []
    for position, frame in enumerate(frames):
        if frame.shape[0] == 0:
            raise InputError(f"X expected series of at least one step, got none in series {position}")
        if frame.shape[1] != channels:
            raise InputError(f"X expected series of {channels} channels, got {frame.shape[1]} in series {position}")
        try:
            array = frame.to_numpy(np.float64, na_value=np.nan).T
        except (TypeError, ValueError) as error:
            raise InputError(f"X expected numbers, got {frame.dtypes.iloc[0]} in series {position}") from error
        if np.isinf(array).any():
            channel, step = np.argwhere(np.isinf(array))[0]
            raise InputError(f"X expected finite values, got {array[channel, step]} in series {position}, channel {channel}, step {step}")
        if np.isnan(array).all():  # sktime makes such a series of one without steps, too
            raise InputError(f"X expected series with at least one value, got none in series {position}")
        arrays.append(array)
    lengths = np.array([array.shape[1] for array in arrays])
    values = np.full((len(arrays), channels, lengths.max()), np.nan)
    for row, array in zip(values, arrays, strict=True):
        row[:, : array.shape[1]] = array
    return Panel(values, lengths)


@dataclass(frozen=True)
class Scaling:
    """How values become inputs: standardised by channel, missing ones filled in, with a channel more for them where training had any.

    Args:
        mean, scale: of each channel: (values - mean) * scale.
        shows_missing: whether there is one more channel, the share of a step's channels that have a value: 1 where all do.
    """

    mean: list[float]
    scale: list[float]
    shows_missing: bool

    @classmethod
    def of(cls, panel: Panel) -> "Scaling":
        """By the statistics of what is there; a constant channel becomes 0.

        Raises:
            InputError: a channel of which no value is there.
        """
        counts = (~np.isnan(panel.values)).sum((0, 2))
        if not counts.all():
            raise InputError(f"X expected values in every channel, got none in channel {int(np.argmin(counts))}")
        mean, std = np.nanmean(panel.values, (0, 2)), np.nanstd(panel.values, (0, 2))
        constant = std <= 1e-12 * np.nanmax(np.abs(panel.values), (0, 2))
        scale = np.where(constant, 0.0, 1 / (std + EPSILON * np.where(std > 1, 1.0, np.maximum(std, 1e-300))))
        return cls(mean.tolist(), scale.tolist(), panel.has_missing)

    @property
    def channels(self) -> int:
        """Of the network's inputs."""
        return len(self.mean) + self.shows_missing

    def inputs(self, panel: Panel) -> np.ndarray:
        """(series, channels, longest length) in float32; padding is 0.

        Missing values lie on the line between their neighbours (at the ends, they are as the nearest); a channel without any value is 0.
        (The papers have 0 for all of them: GunPoint with 30 % missing has 81 % so, and 91 % with lines, means of three seeds.)

        Raises:
            InputError: another number of channels than in training.
        """
        if panel.values.shape[1] != len(self.mean):
            raise InputError(f"X expected series of {len(self.mean)} channels, as in fit, got {panel.values.shape[1]}")
        column = (1, -1, 1)
        scaled = (panel.values - np.reshape(self.mean, column)) * np.reshape(self.scale, column)
        there = ~np.isnan(scaled)
        inputs = np.where(there, scaled, 0.0)
        for series, length in enumerate(panel.lengths):
            for channel in np.flatnonzero(~there[series, :, :length].all(1) & there[series].any(1)):
                known = np.flatnonzero(there[series, channel])
                inputs[series, channel, :length] = np.interp(np.arange(length), known, scaled[series, channel, known])
        if self.shows_missing:
            inputs = np.concatenate([inputs, there.mean(1, keepdims=True)], 1)
        return inputs.astype(np.float32)
