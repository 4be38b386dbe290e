"""From what a user gives to one DataFrame for each series: channels by name, labels by the series they belong to, steps by time stamp."""

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from flexseq.errors import InputError, unknown_name

GAPS = ("close", "fill")
TOLERANCE = 1e-3
"""By how much of a step two time stamps may differ and still mean the same, in floating point."""


def as_frames(X: Any) -> tuple[Any, list[Any] | None]:
    """A panel as a list of DataFrames, steps in rows and channels in columns, and its series' labels; others are left to sktime.

    A panel of nested series is joined by time stamp within each series, so channels of unequal lengths lack values instead of losing them.

    Args:
        X: a DataFrame of series in cells ("nested_univ"), one with series and time stamps as its index ("pd-multiindex"), a list of
            DataFrames ("df-list"), or whatever else sktime takes.

    Raises:
        InputError: a cell that is no series; two channels of one name.
    """
    if isinstance(X, np.ndarray) and np.iscomplexobj(X):
        raise InputError(f"X expected real numbers, got {X.dtype}")
    if isinstance(X, list) and X and all(isinstance(frame, pd.DataFrame) for frame in X):
        for position, frame in enumerate(X):
            _check_names(frame.columns, f"series {position}")
            _check_real(frame, f"series {position}")
        return X, None
    if not isinstance(X, pd.DataFrame) or X.empty:
        return X, None
    _check_names(X.columns, "X")
    _check_real(X, "X")
    if X.index.nlevels == 2:
        groups = [(label, frame.droplevel(0)) for label, frame in X.groupby(level=0, sort=False)]
        if sum(len(frame) for _, frame in groups) != len(X):
            raise InputError("X expected a label for each series, got a missing one in its index")
        return [frame for _, frame in groups], [label for label, _ in groups]
    if X.index.nlevels != 1 or not isinstance(X.iloc[0, 0], pd.Series | np.ndarray):
        return X, None
    joined: list[str] = []
    frames = [_joined(row, label, joined) for label, (_, row) in zip(X.index, X.iterrows(), strict=True)]
    if joined:
        warnings.warn(
            f"X has channels of unequal lengths or time stamps in {len(joined)} series ({joined[0]}): they are joined by time stamp, and "
            "what one of them lacks counts as missing. Resample them to the same steps if their rates differ",
            stacklevel=3,
        )
    return frames, list(X.index)


def _joined(row: pd.Series, label: Any, joined: list[str]) -> pd.DataFrame:
    cells: dict[Any, pd.Series] = {}
    for name, cell in row.items():
        if not isinstance(cell, pd.Series | np.ndarray):
            raise InputError(f"X expected a series in every cell, got {cell!r} for series {label!r}, channel {name!r}")
        cells[name] = pd.Series(cell)
    if not any(map(len, cells.values())):
        raise InputError(f"X expected series with at least one value, got none in series {label}")
    first = next(iter(cells.values())).index
    if all(cell.index.equals(first) for cell in cells.values()):
        return pd.DataFrame({name: cell.to_numpy() for name, cell in cells.items()}, index=first)
    for name, cell in cells.items():
        if not cell.index.is_unique:
            raise InputError(f"X expected one value for each time stamp, got several in series {label!r}, channel {name!r}")
    lengths = ", ".join(f"{name!r} {len(cell)} steps" for name, cell in list(cells.items())[:3])
    joined.append(f"series {label!r}: {lengths}")
    try:
        return pd.concat(cells, axis=1).sort_index()
    except TypeError as error:
        raise InputError(f"X expected time stamps of one kind in series {label!r}: {error}") from error


def _check_real(frame: pd.DataFrame, where: str) -> None:
    for name, kind in frame.dtypes.items():
        if isinstance(kind, np.dtype) and kind.kind == "c":
            raise InputError(f"X expected real numbers, got complex ones in {where}, channel {name!r}")


def _check_names(names: Any, where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"X expected channels of different names, got {twice[0]!r} twice in {where}")


def aligned(y: Any, labels: list[Any] | None) -> Any:
    """Targets in the order of the series: by label where both have the same ones, as sktime defines it; else as they come.

    Raises:
        InputError: labels that belong to the same series but not one to one.
    """
    if labels is None or not isinstance(y, pd.Series | pd.DataFrame) or len(y) != len(labels) or list(y.index) == labels:
        return y
    if set(y.index) != set(labels):
        return y
    if not y.index.is_unique or len(set(labels)) != len(labels):
        raise InputError("y expected one target for each label of X, got labels that stand there several times in another order")
    return y.loc[labels]


def channel_names(frame: pd.DataFrame) -> list[Any] | None:
    """The channels' names; None for those that sktime and pandas give to channels without any: "var_0", "var_1" ... or 0, 1 ..."""
    names = list(frame.columns)
    count = range(len(names))
    return None if names in ([f"var_{i}" for i in count], list(count)) else names


def in_order(frames: list[pd.DataFrame], names: list[Any] | None) -> list[pd.DataFrame]:
    """Frames with their columns in one order: that of `names`, or of the first frame.

    Raises:
        InputError: a series that lacks a channel, or has one more, by name.
    """
    wanted = list(frames[0].columns) if names is None else names
    result = []
    for position, frame in enumerate(frames):
        found = list(frame.columns)
        if found != wanted:
            missing, more = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
            if missing or more:
                what = f"no {missing[0]!r}" if missing else f"{more[0]!r} too"
                listed = ", ".join(map(repr, wanted))
                where = "as in fit" if names is not None else "as series 0 has"
                raise InputError(f"X expected the channels {listed}, {where}, got {what} in series {position}")
            frame = frame[wanted]
        result.append(frame)
    return result


def with_regular_steps(frames: list[pd.DataFrame], gaps: str, step: Any = None) -> tuple[list[pd.DataFrame], Any]:
    """Series whose steps are as far apart as their time stamps say.

    Args:
        frames: one for each series.
        gaps: "close", take rows one after the other, with a warning where time stamps are not evenly spaced; or "fill", put rows of missing
            values where time stamps are missing.
        step: between two steps, as found in training; by default the most frequent one.

    Returns:
        The frames, and the step, a number or pandas.Timedelta; None where there are no two steps.

    Raises:
        InputError: gaps that are no known name; with "fill" time stamps that are not whole numbers of steps apart, or occur twice.
    """
    if gaps not in GAPS:
        raise unknown_name("gaps", gaps, GAPS)
    times = [time for time in (_times(frame.index) for frame in frames) if time is not None]
    if len(times) < len(frames):
        return frames, step
    differences = [np.diff(time) for time in times]
    everything = np.concatenate(differences)
    if not len(everything):
        return frames, step
    if step is None:
        values, counts = np.unique(everything.round(12), return_counts=True)
        step = float(values[counts.argmax()])
    irregular = [i for i, each in enumerate(differences) if len(each) and (np.abs(each - each[0]) > TOLERANCE * abs(each[0])).any()]
    if gaps == "close":
        if irregular:
            warnings.warn(
                f"X has time stamps that are not evenly spaced in {len(irregular)} series (the first is series {irregular[0]}), which are "
                'taken one after the other as if they were. gaps="fill" makes missing steps missing values; resample others beforehand',
                stacklevel=5,
            )
        return frames, step
    return [_filled(frame, time, step, i) for i, (frame, time) in enumerate(zip(frames, times, strict=True))], step


def _filled(frame: pd.DataFrame, time: np.ndarray, step: float, position: int) -> pd.DataFrame:
    if not step > 0:
        raise InputError(f"X expected time stamps that grow, got {frame.index[0]} followed by {frame.index[1]} in series {position}")
    places = (time - time[0]) / step
    whole = places.round().astype(np.int64)
    off = np.flatnonzero(np.abs(places - whole) > TOLERANCE)
    if len(off) or (np.diff(whole) < 1).any():
        at = frame.index[off[0] if len(off) else int(np.argmax(np.diff(whole) < 1)) + 1]
        raise InputError(
            f'gaps="fill" expected time stamps that are whole numbers of steps apart, each once, got {at} in series {position}: '
            "resample first"
        )
    count = int(whole[-1]) + 1
    if count > 100 * len(frame) + 1000:
        raise InputError(f'gaps="fill" expected gaps of fewer steps, got {len(frame)} of {count:,} steps in series {position}')
    if count == len(frame):
        return frame
    return frame.set_axis(pd.Index(whole)).reindex(pd.RangeIndex(count))


def _times(index: Any) -> np.ndarray | None:
    """Time stamps as numbers; of periods and dates in days. None where they are no time."""
    if isinstance(index, pd.PeriodIndex):
        return np.array([period.ordinal for period in index], np.float64)
    if isinstance(index, pd.DatetimeIndex):
        index = index - index[0] if len(index) else pd.TimedeltaIndex([])
    if isinstance(index, pd.TimedeltaIndex):
        return np.asarray(index / pd.Timedelta(1, "D"), np.float64)
    if pd.api.types.is_numeric_dtype(index) and not pd.api.types.is_bool_dtype(index):
        return np.asarray(index, np.float64)
    return None
