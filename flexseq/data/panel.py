"""From sktime's panels of series to arrays for a network."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexseq.checks import is_number
from flexseq.data.standardise import EPSILON
from flexseq.errors import InputError

ORDERS_OF_MAGNITUDE = 20
"""How many times a channel's root mean square distance to its median exceeds that of its median series, for the estimators to compress it.
Most problems that sktime ships have 1, the motions of BasicMotions 2; currents of appliances of all sizes (PLAID) and cases in countries of
all sizes (Covid3Month) have 108."""
SMALL_SERIES, SMALLEST_UNIT = 0.1, 1e-6
"""Which quantile of the series' distances is the unit of compression, and its least share of the whole channel's distance: what is below is
noise."""


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
        InputError: no series; a series without steps; unequal numbers of channels; infinite values, and those too large for float32;
            values that are no numbers.
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
        _check_size(array, array, f"series {position}, channel {{}}, step {{}}")
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
        centre, unit: of each channel; one that is compressed is arcsinh((values - centre) / unit) before that, and a unit of 0 says that it
            is not. None of them is where there are no such lists. Each that is has one more channel: the values standardised within
            each series, which have its shape, as the compressed ones have its level.
    """

    mean: list[float]
    scale: list[float]
    shows_missing: bool
    centre: list[float] | None = None
    unit: list[float] | None = None

    @classmethod
    def of(cls, panel: Panel, *, compress: bool = False) -> "Scaling":
        """By the statistics of what is there; a constant channel becomes 0.

        Args:
            panel: of the training series.
            compress: pass channels whose series are of several orders of magnitude (`ORDERS_OF_MAGNITUDE`) through arcsinh, from the
                channel's median, in units of what its small series are away from there: standardised by the large ones, all others
                would be alike.

        Raises:
            InputError: a channel of which no value is there.
        """
        counts = (~np.isnan(panel.values)).sum((0, 2))
        if not counts.all():
            raise InputError(f"X expected values in every channel, got none in channel {int(np.argmin(counts))}")
        units = [_centre_and_unit(channel) if compress else (0.0, 0.0) for channel in panel.values.swapaxes(0, 1)]
        centre, unit = ([pair[i] for pair in units] for i in range(2))
        values = _compressed(panel.values, centre, unit)
        largest = np.nanmax(np.abs(values), (0, 2))
        units_of_largest = values / np.where(largest > 0, largest, 1)[:, None]  # whose squares do not overflow
        mean, std = largest * np.nanmean(units_of_largest, (0, 2)), largest * np.nanstd(units_of_largest, (0, 2))
        constant = std <= 1e-12 * largest
        scale = np.where(constant, 0.0, 1 / (std + EPSILON * np.where(std > 1, 1.0, np.maximum(std, 1e-300))))
        return cls(mean.tolist(), scale.tolist(), panel.has_missing, *((centre, unit) if any(unit) else ()))

    def check(self) -> None:
        """Raise InputError unless all numbers are finite and there are as many for each channel: a file may hold anything."""
        for name in ("mean", "scale", "centre", "unit"):
            values = getattr(self, name)
            if values is None and name in ("centre", "unit"):
                continue
            if not isinstance(values, list) or len(values) != len(self.mean) or not all(is_number(value) for value in values):
                raise InputError(f"a scaling expected {name} to be {len(self.mean)} finite numbers")
        if not self.mean or not isinstance(self.shows_missing, bool) or (self.centre is None) != (self.unit is None):
            raise InputError("a scaling expected numbers for at least one channel")

    @property
    def channels(self) -> int:
        """Of the network's inputs."""
        return len(self.mean) + len(self._compressed_channels) + self.shows_missing

    @property
    def _compressed_channels(self) -> list[int]:
        return [channel for channel, unit in enumerate(self.unit or []) if unit]

    def inputs(self, panel: Panel) -> np.ndarray:
        """(series, channels, longest length) in float32; padding is 0.

        Missing inputs lie on the line between their neighbours (at the ends, they are as the nearest); a channel without any value is 0.
        (The papers have 0 for all of them: GunPoint with 30 % missing has 81 % so, and 91 % with lines, means of three seeds.)

        Raises:
            InputError: another number of channels than in training; values that are no inputs in float32.
        """
        if panel.values.shape[1] != len(self.mean):
            raise InputError(f"X expected series of {len(self.mean)} channels, as in fit, got {panel.values.shape[1]}")
        column = (1, -1, 1)
        values = panel.values if self.centre is None or self.unit is None else _compressed(panel.values, self.centre, self.unit)
        scaled = (values - np.reshape(self.mean, column)) * np.reshape(self.scale, column)
        if self._compressed_channels:
            scaled = np.concatenate([scaled, _standardised_within(panel.values[:, self._compressed_channels])], 1)
        there = ~np.isnan(scaled)
        inputs = np.where(there, scaled, 0.0)
        for series, length in enumerate(panel.lengths):
            for channel in np.flatnonzero(~there[series, :, :length].all(1) & there[series].any(1)):
                known = np.flatnonzero(there[series, channel])
                inputs[series, channel, :length] = np.interp(np.arange(length), known, scaled[series, channel, known])
        if self.shows_missing:
            inputs = np.concatenate([inputs, there[:, : len(self.mean)].mean(1, keepdims=True)], 1)
        _check_size(inputs[:, : len(self.mean)], panel.values, "series {}, channel {}, step {}")
        return inputs.astype(np.float32)


def _check_size(numbers: np.ndarray, values: np.ndarray, where: str) -> None:
    """Refuse numbers that are infinite in float32, by the values that they were made of; `where` formats their indices."""
    too_large = np.argwhere(np.abs(numbers) > np.finfo(np.float32).max)
    if len(too_large):
        value = values[tuple(too_large[0])]
        what = "values that float32 can hold" if np.isfinite(value) else "finite values"
        raise InputError(f"X expected {what}, got {value} in {where.format(*too_large[0])}")


def _centre_and_unit(channel: np.ndarray) -> tuple[float, float]:
    """For compressing a channel, (series, steps); 0, 0 where its series are of one order of magnitude."""
    centre = float(np.nanmedian(channel))
    distances = np.abs(channel - centre)
    largest = np.nanmax(distances)
    if largest <= 1e-12 * abs(centre):  # constant, or rounding
        return 0.0, 0.0
    squares = (distances / largest) ** 2
    whole = np.sqrt(np.nanmean(squares))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # series that lack the channel
        series = np.sqrt(np.nanmean(squares, 1))
    series = series[series > 0]  # neither those, nor ones that stay at the median
    if whole <= ORDERS_OF_MAGNITUDE * np.median(series):
        return 0.0, 0.0
    return centre, float(largest * max(np.quantile(series, SMALL_SERIES), SMALLEST_UNIT * whole))


def _compressed(values: np.ndarray, centre: list[float], unit: list[float]) -> np.ndarray:
    """(series, channels, steps) with the channels that have a unit passed through arcsinh."""
    if not any(unit):
        return values
    values = values.copy()
    for channel, (middle, size) in enumerate(zip(centre, unit, strict=True)):
        if size:
            values[:, channel] = np.arcsinh((values[:, channel] - middle) / size)
    return values


def _standardised_within(values: np.ndarray) -> np.ndarray:
    """(series, channels, steps), each channel of each series for itself; a constant one becomes 0, what is missing stays missing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # a channel that a series lacks
        mean, std = (function(values, 2, keepdims=True) for function in (np.nanmean, np.nanstd))
        largest = np.nanmax(np.abs(values), 2, keepdims=True)
    constant = ~(std > 1e-12 * largest)
    return np.where(constant, np.where(np.isnan(values), np.nan, 0.0), (values - mean) / np.where(constant, 1, std))
