"""A folder of pictures, a folder below it for each class, read as they are needed."""

import struct
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
from flexseq.data.places import existing_folder
from flexseq.data.splits import held_out, limited, stratified_split
from flexseq.data.standardise import Standardise
from flexseq.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
TRAINING, TESTING = ("train",), ("val", "test", "validation")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALIDATION = 0.1
"""Share of the training pictures that choose the best epoch instead of training, where the folder has a test split."""
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
"""What Pillow raises on broken files."""
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


def read_picture(path: Path, size: int) -> np.ndarray:
    """The middle square of a picture at another size: (3, size, size), bytes.

    Raises:
        InputError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata
            picture.draft("RGB", (2 * size, 2 * size))  # JPEGs are decoded no larger than is needed
            picture = picture.convert("RGB")
            edge = min(picture.size)
            left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
            middle = picture.crop((left, top, left + edge, top + edge))
            square = middle.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(square).transpose(2, 0, 1)
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


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
    """Pictures in folders: train/CLASS/... and val/CLASS/... (or test/), or CLASS/... alone, which is split 70/15/15.

    Pictures are read and resized when a batch needs them (`--workers` for several at a time); training ones are padded by an eighth,
    cropped at random and flipped. Files whose head cannot be read are left out, counted and named in the notes.

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
    base = existing_folder(folder)
    train, test = (next((base / one for one in names if (base / one).is_dir()), None) for names in (TRAINING, TESTING))
    if train is not None and test is None:
        raise InputError(f"{base} holds train/, but none of {', '.join(f'{one}/' for one in TESTING)} beside it")
    notes: list[str] = []
    files, targets, classes = _pictures_by_class(train or base, notes, decode)
    mean, std = (torch.tensor([factor * value for value in values]).view(3, 1, 1) for factor, values in ((255, MEAN), (255, STD)))
    to_unit = Standardise(mean, 1 / std)
    if train is not None and test is not None:
        test_files, test_targets, test_classes = _pictures_by_class(test, notes, decode)
        if test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise InputError("; ".join([f"{train} and {test} expected the same classes, got {odd[0]} in one of them alone", *notes]))
        chosen = limited(targets, limit)
        kept, validating = held_out(targets[chosen], VALIDATION)
        parts = [chosen[kept], chosen[validating]]
        tested: tuple[Any, np.ndarray, np.ndarray] = Pictures(test_files, size), test_targets, limited(test_targets, limit)
        notes.append(f"{len(validating):,} of the training pictures choose the best epoch and do not train")
    else:
        chosen = limited(targets, limit)
        *parts, last = [chosen[part] for part in stratified_split(targets[chosen])]
        tested = Pictures(files, size), targets, last
    inputs: Any = Pictures(files, size)
    splits = [Split(inputs, targets, part, to_unit) for part in parts]
    augment = CropAndFlip(size // 8, -torch.tensor(MEAN) / torch.tensor(STD))
    shape = (3, size, size)
    train_split, validation_split = splits
    test_split = Split(*tested, to_unit)
    return Dataset(name, str(base), train_split, validation_split, test_split, classes, shape, notes, {"size": size}, augment)


def _pictures_by_class(folder: Path, notes: list[str], decode: bool) -> tuple[list[Path], np.ndarray, list[str]]:
    """Picture files, their classes as numbers, and the classes' names; what cannot be opened goes into `notes`."""
    files: list[Path] = []
    targets: list[int] = []
    broken: list[Path] = []
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    counted: list[str] = []
    for name in classes:
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        # Warnings, about odd metadata, are switched off around the threads: in them they would stay off. Pillow lets go of the interpreter.
        with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
            warnings.simplefilter("ignore")
            opens = list(pool.map(_opens, found, [decode] * len(found)))
        readable = [path for path, whole in zip(found, opens, strict=True) if whole]
        broken += sorted(set(found) - set(readable))
        if readable:
            files += readable
            targets += [len(counted)] * len(readable)
            counted.append(name)
    if not files:
        what = f"none of its {len(broken)} pictures can be read" if broken else f"expected a folder of {', '.join(SUFFIXES)} for each class"
        raise InputError(f"{folder} holds no pictures: {what}")
    if len(counted) < 2:
        because = f": {unreadable(broken)}" if broken else ""
        raise InputError(f"{folder} expected pictures of at least two classes, got {counted[0]} alone{because}")
    if broken:
        notes.append(unreadable(broken))
    return files, np.array(targets), counted


def unreadable(broken: Sequence[Path]) -> str:
    """A note that counts and names files."""
    named = ", ".join(str(path) for path in broken[:NAMED]) + (", ..." if len(broken) > NAMED else "")
    return (
        f"{len(broken)} picture{'s' if len(broken) > 1 else ''} cannot be read and {'are' if len(broken) > 1 else 'is'} left out: {named}"
    )


def _opens(path: Path, decode: bool) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if decode:
                picture.draft("RGB", (16, 16))  # of a JPEG an eighth of the work
                picture.load()
            return min(picture.size) > 0
    except (*BROKEN, Image.DecompressionBombError):
        return False
