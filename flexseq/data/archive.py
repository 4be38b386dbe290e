"""Problems of the UCR and UEA archives, read by sktime."""

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from flexseq.data.dataset import Dataset, Split, as_it_is
from flexseq.data.panel import Panel, Scaling, read_panel
from flexseq.data.places import data_dir, existing_folder
from flexseq.data.splits import held_out_as_it_goes, limited, stratified_split
from flexseq.data.standardise import standardiser
from flexseq.errors import InputError, unknown_name
from flexseq.processes import alone

VALIDATION = 0.2
"""Share of the training series that choose the best epoch instead of training."""
CHARACTERS = "CharacterTrajectories"


def load_archive(*, problem: str, folder: str | None = None, download: bool = False, limit: int | None = None) -> Dataset:
    """A classification problem with its official splits, standardised by channel; missing values get a channel of their own.

    A fifth of the training series, stratified, is the validation split; where a class is too small for that, it is drawn without regard to
    classes, and classes of one member train.

    Args:
        problem: its name in the archive, such as "GunPoint".
        folder: holds NAME_TRAIN.ts and NAME_TEST.ts, itself or in a folder NAME; by default what sktime ships, or its download into
            flexseq's cache.
        download: fetch it into `folder` if it is not there.
        limit: use at most this many series of each of training and test, each class in proportion.

    Raises:
        InputError: an unknown problem, with the nearest names; a folder without it; a problem that is no classification.
    """
    train_file, test_file = _files(problem, folder, download)
    if _is_regression(train_file):
        raise InputError(f"{problem} is a problem of regression; archive takes those of classification")
    train, labels = _read(train_file)
    test, test_labels = _read(test_file)
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise InputError(f"{train_file} expected series of at least two classes, got {classes[0]} alone")
    unseen = sorted(set(test_labels) - set(classes))
    if unseen:
        raise InputError(f"{test_file} holds series of the class {unseen[0]}, of which there is none to train on")
    targets, test_targets = (np.array([classes.index(label) for label in some]) for some in (labels, test_labels))
    chosen, tested = limited(targets, limit), limited(test_targets, limit)
    notes = []
    kept, validating, in_proportion = held_out_as_it_goes(targets[chosen], VALIDATION)
    if not in_proportion:
        notes.append("a class is too small to be in both splits: the validation split is drawn without regard to classes")
    panel = read_panel(train)
    scaling = Scaling.of(Panel(panel.values[chosen[kept]], panel.lengths[chosen[kept]]))
    inputs = scaling.inputs(panel)
    test_panel = read_panel(test)
    test_inputs = scaling.inputs(test_panel)
    lengths, test_lengths = _lengths(panel, test_panel)
    notes.append(f"{len(validating):,} of the training series choose the best epoch and do not train")
    if scaling.shows_missing:
        notes.append("values are missing, and filled in from their neighbours; one channel says which are there")
    return Dataset(
        "archive",
        str(train_file.parent),
        Split(inputs, targets, chosen[kept], as_it_is, lengths),
        Split(inputs, targets, chosen[validating], as_it_is, lengths),
        Split(test_inputs, test_targets, tested, as_it_is, test_lengths),
        [str(label) for label in classes],
        (scaling.channels, max(inputs.shape[2], test_inputs.shape[2])),
        notes,
        {"problem": problem, "missing": scaling.shows_missing},
    )


def load_character_trajectories(*, folder: str | None = None, download: bool = False, limit: int | None = None) -> Dataset:
    """CharacterTrajectories as the papers have it: all series in one, 3 channels, padded with their last value, stratified 70/15/15.

    Args:
        folder, download: as for `load_archive`.
        limit: use at most this many series in all, each class in proportion.

    Raises:
        InputError: as `load_archive`.

    Source:
        FlexConv, appendix B.2: 2,858 series of 182 steps, 20 classes. Standardised by the training split's statistics at each step.
    """
    parts = [_read(path) for path in _files(CHARACTERS, folder, download)]
    labels = np.concatenate([part[1] for part in parts])
    classes = sorted(set(labels))
    targets = np.array([classes.index(label) for label in labels])
    panel = read_panel([frame for part in parts for frame in part[0]])
    last = panel.values[np.arange(len(targets)), :, panel.lengths - 1]
    inputs = np.where(panel.inside, panel.values, last[:, :, None]).astype(np.float32)
    chosen = limited(targets, limit)
    splits = [chosen[part] for part in stratified_split(targets[chosen])]
    transform = standardiser(inputs, splits[0], per="step")
    train, validation, test = (Split(inputs, targets, part, transform) for part in splits)
    source = str(_files(CHARACTERS, folder, download)[0].parent)
    return Dataset("character_trajectories", source, train, validation, test, [str(label) for label in classes], inputs.shape[1:])


def archive_is_here(problem: str, folder: str | None = None) -> bool:
    """Whether a problem lies in a folder, or comes with sktime, without asking anyone to fetch it."""
    return _found(problem, folder) is not None


def known_problems() -> list[str]:
    """The names of the archives' problems, as sktime lists them."""
    from sktime.datasets import tsc_dataset_names as lists

    return sorted({*lists.multivariate, *lists.univariate, *lists.univariate_equal_length})  # "Yoga" is in the last one alone


def _lengths(*panels: Panel) -> list[np.ndarray | None]:
    whole = len({int(length) for panel in panels for length in panel.lengths}) == 1
    return [None if whole else panel.lengths for panel in panels]


def _files(problem: str, folder: str | None, download: bool) -> tuple[Path, Path]:
    found = _found(problem, folder)
    if found is None and problem not in known_problems():
        raise unknown_name("problem", problem, known_problems())
    if found is None and folder is not None and not download:
        existing_folder(folder)
        raise InputError(f"{folder} holds no {problem}_TRAIN.ts and {problem}_TEST.ts; give another folder, or --download")
    if found is None:
        _fetch(problem, data_dir("archive") if folder is None else Path(folder).expanduser())
        found = _found(problem, folder)
    if found is None:
        raise InputError(f"sktime's download of {problem} holds no {problem}_TRAIN.ts and {problem}_TEST.ts")
    return found


def _found(problem: str, folder: str | None) -> tuple[Path, Path] | None:
    import sktime.datasets

    if folder is None:
        bases = [Path(sktime.datasets.__path__[0]) / "data", data_dir("archive")]
    else:
        bases = [Path(folder).expanduser()]
    for place in (place for base in bases for place in (base / problem, base)):
        files = place / f"{problem}_TRAIN.ts", place / f"{problem}_TEST.ts"
        if all(file.is_file() for file in files):
            return files
    return None


def _fetch(problem: str, base: Path) -> None:
    """Let sktime download a problem into a folder beside its place, and put it there whole."""
    with alone(base / problem, wait=True):  # of several processes one fetches, and the others find it
        if not (base / problem).exists():
            _fetch_alone(problem, base)


def _fetch_alone(problem: str, base: Path) -> None:
    from sktime.datasets import load_UCR_UEA_dataset

    part = Path(tempfile.mkdtemp(dir=base, prefix=".part"))
    try:
        print(f"fetching {problem} through sktime", flush=True)
        load_UCR_UEA_dataset(problem, split="train", return_X_y=True, extract_path=str(part))
        files = list(part.rglob(f"{problem}_*.ts"))
        target = base / problem
        if files and not target.exists():
            files[0].parent.rename(target)
    except Exception as error:  # whatever sktime raises, from sockets to zip files
        raise InputError(f"{problem} could not be fetched: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(path: Path) -> tuple[list[Any], np.ndarray]:
    """The series of a .ts file, a DataFrame each, and their labels."""
    from sktime.datasets import load_from_tsfile
    from sktime.datatypes import convert

    try:
        nested, labels = load_from_tsfile(str(path), return_data_type="nested_univ")
        frames = convert(nested, "nested_univ", "df-list")
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{path} cannot be read as a problem of the archive: {error}") from error
    return frames, np.asarray(labels, dtype=str)


def _is_regression(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        header = [line.lower().split() for line in itertools.takewhile(lambda line: not line.lower().startswith("@data"), file)]
    return any(words[:2] == ["@targetlabel", "true"] for words in header)
