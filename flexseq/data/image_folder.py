"""A folder of pictures, a folder below it for each class, read as they are needed."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexseq.data.augment import CropAndFlip, RandAugment
from flexseq.data.dataset import Dataset, Split
from flexseq.data.pictures import SUFFIXES, opens, read_picture
from flexseq.data.places import existing_folder
from flexseq.data.splits import held_out, limited, stratified_split
from flexseq.data.standardise import Standardise
from flexseq.errors import InputError

TRAINING, VALIDATING, TESTING = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")
"""Names of folders, in small letters or capitals."""
IGNORED_FILES = ("thumbs.db", "desktop.ini")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALIDATION = 0.1
"""Share of the training pictures that choose the best epoch instead of training, where the folder has a test split."""
LARGEST = 2048
"""Pixels along an edge."""
NAMED = 3
"""Unreadable files that a note names."""


@dataclass(frozen=True)
class Pictures:
    """Picture files as an array of bytes, (files, 3, size, size): each is read when it is asked for, its middle square resized.

    Args:
        files: their paths.
        size: pixels along an edge.
    """

    files: list[Path]
    size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        if not len(indices):
            return np.zeros((0, 3, self.size, self.size), np.uint8)
        return np.stack([read_picture(self.files[i], self.size) for i in indices])


def load_cats_dogs(folder: str, *, size: int = 150, limit: int | None = None) -> Dataset:
    """Pictures of two classes, with up to three random changes to each training picture.

    Args:
        folder: PetImages of the official archive, with Cat/ and Dog/ in it, or the folder above it; or a folder as `load_image_folder`
            takes, with any two classes.
        size, limit: see `load_image_folder`.

    Raises:
        InputError: as `load_image_folder`; another number of classes than two.
    """
    base = existing_folder(folder)
    if (base / "PetImages").is_dir():
        base = base / "PetImages"
    dataset = load_image_folder(str(base), size=size, limit=limit, name="cats_dogs", decode=True)
    if len(dataset.classes) != 2:
        raise InputError(f"{base} expected pictures of two classes, got {len(dataset.classes)}: {', '.join(dataset.classes[:4])}, ...")
    dataset.augment = RandAugment(torch.tensor(MEAN), torch.tensor(STD))
    return dataset


def load_image_folder(
    folder: str, *, size: int = 224, limit: int | None = None, name: str = "image_folder", decode: bool = False
) -> Dataset:
    """Pictures in folders: train/CLASS/... and test/CLASS/... (or val/, or both), or CLASS/... alone, which is split 70/15/15.

    Of train/, val/ and test/, each is what its name says; where there is one of the last two alone it tests, and a tenth of the training
    pictures validates. Pictures are read and resized when a batch needs them (`--workers` for several at a time); training ones are padded
    by an eighth, cropped at random and flipped. Files that are no pictures or whose head cannot be read are left out, counted and named in
    the notes, and so are folders without any picture.

    Args:
        folder: the folder above those.
        size: pixels along an edge, at least 4.
        limit: use at most this many pictures of each of training and test, each class in proportion; of CLASS/... alone, in all.
        name: of the dataset.
        decode: find broken files by decoding every picture beforehand, which takes a millisecond or two each; else a file that is broken
            further in stops the run.

    Raises:
        InputError: no such folder; no pictures in it; fewer than two classes; a size under 4.
    """
    if size < 4:
        raise InputError(f"--size expected at least 4 px, got {size}")
    if size > LARGEST:
        raise InputError(f"--size expected at most {LARGEST:,} px, got {size:,}")
    base = existing_folder(folder)
    train, validation, test = (_folder_called(base, names) for names in (TRAINING, VALIDATING, TESTING))
    others = [place for place in (test, validation) if place is not None]
    if train is not None and not others:
        raise InputError(f"{base} holds {train.name}/, but none of val/, test/ beside it")
    if train is None and test is not None and validation is not None:
        raise InputError(f"{base} holds {validation.name}/ and {test.name}/, but no train/ beside them")
    notes: list[str] = []
    files, targets, classes = _pictures_by_class(train or base, notes, decode)
    mean, std = (torch.tensor([factor * value for value in values]).view(3, 1, 1) for factor, values in ((255, MEAN), (255, STD)))
    to_unit = Standardise(mean, 1 / std)
    inputs: Any = Pictures(files, size)
    if train is not None:
        held: list[Split] = []
        for place in others:
            its_files, its_targets, its_classes = _pictures_by_class(place, notes, decode)
            if its_classes != classes:
                odd = sorted(set(classes) ^ set(its_classes))
                raise InputError("; ".join([f"{train} and {place} expected the same classes, got {odd[0]} in one of them alone", *notes]))
            pictures: Any = Pictures(its_files, size)
            held.append(Split(pictures, its_targets, limited(its_targets, limit), to_unit))
        chosen = limited(targets, limit)
        if len(held) == 2:
            splits = [Split(inputs, targets, chosen, to_unit), held[1], held[0]]
        else:
            kept, validating = held_out(targets[chosen], VALIDATION)
            splits = [Split(inputs, targets, chosen[kept], to_unit), Split(inputs, targets, chosen[validating], to_unit), held[0]]
            notes.append(f"{len(validating):,} of the training pictures choose the best epoch and do not train")
    else:
        chosen = limited(targets, limit)
        splits = [Split(inputs, targets, chosen[part], to_unit) for part in stratified_split(targets[chosen])]
    augment = CropAndFlip(size // 8, -torch.tensor(MEAN) / torch.tensor(STD))
    shape = (3, size, size)
    return Dataset(name, str(base), splits[0], splits[1], splits[2], classes, shape, notes, {"size": size}, augment)


def _folder_called(base: Path, names: tuple[str, ...]) -> Path | None:
    """The folder below `base` of one of these names, capitals or not.

    Raises:
        InputError: several of them.
    """
    found = [place for place in sorted(base.iterdir()) if place.is_dir() and place.name.lower() in names]
    if len(found) > 1:
        raise InputError(f"{base} expected one of {', '.join(place.name + '/' for place in found)}, which mean the same, got both")
    return found[0] if found else None


def _pictures_by_class(folder: Path, notes: list[str], decode: bool) -> tuple[list[Path], np.ndarray, list[str]]:
    """Picture files, their classes as numbers, and the classes' names; what cannot be opened goes into `notes`."""
    files: list[Path] = []
    targets: list[int] = []
    broken: list[Path] = []
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    counted: list[str] = []
    others: list[Path] = []
    without: list[str] = []
    for name in classes:
        there = [path for path in (folder / name).rglob("*") if not path.name.startswith(".") and not path.is_dir()]
        found = sorted(path for path in there if path.suffix.lower() in SUFFIXES)
        others += sorted(path for path in there if path.suffix.lower() not in SUFFIXES and path.name.lower() not in IGNORED_FILES)
        # Warnings, about odd metadata, are switched off around the threads: in them they would stay off. Pillow lets go of the interpreter.
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")
            open_well = list(pool.map(opens, found, [decode] * len(found)))
        readable = [path for path, whole in zip(found, open_well, strict=True) if whole]
        broken += sorted(set(found) - set(readable))
        if readable:
            files += readable
            targets += [len(counted)] * len(readable)
            counted.append(name)
        else:
            without.append(name)
    if not files:
        what = f"none of its {len(broken)} pictures can be read" if broken else "expected a folder of .jpg, .png, ... for each class"
        raise InputError(f"{folder} holds no pictures: {what}")
    if len(counted) < 2:
        because = f": {unreadable(broken)}" if broken else ""
        raise InputError(f"{folder} expected pictures of at least two classes, got {counted[0]} alone{because}")
    if broken:
        notes.append(unreadable(broken))
    if others:
        notes.append(f"{len(others)} files of {folder} are no pictures by their names and are left out: {_listed(others)}")
    if without:
        notes.append(f"{len(without)} folders of {folder} hold no picture that can be read and are no classes: {_listed(without)}")
    return files, np.array(targets), counted


def unreadable(broken: Sequence[Path]) -> str:
    """A note that counts and names files."""
    named = _listed(broken)
    return (
        f"{len(broken)} picture{'s' if len(broken) > 1 else ''} cannot be read and {'are' if len(broken) > 1 else 'is'} left out: {named}"
    )


def _listed(names: Sequence[object]) -> str:
    return ", ".join(str(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
