"""Downsampled ImageNet, from the official npz archives."""

import hashlib
import json
import math
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from flexseq.data.dataset import Dataset
from flexseq.data.downloads import set_aside
from flexseq.data.image_formats import checked_labels
from flexseq.data.images import image_dataset
from flexseq.data.places import cache_dir, data_dir, existing_folder
from flexseq.errors import InputError


def load_small_imagenet(size: int, *, folder: str | None = None, limit: int | None = None) -> Dataset:
    """Downsampled ImageNet (Chrabaszcz et al.), from the official npz archives.

    The archives are unpacked once into flexseq's cache, and mapped from there. 50,000 training images, stratified, are the validation
    split; the official validation images test.

    Args:
        size: 8, 16, 32 or 64 px.
        folder: holds train_data_batch_1.npz to _10.npz (train_data.npz for 8 px) and val_data.npz, itself or in folders below it.
        limit: use at most this many images of each of training and test, each class in proportion.

    Raises:
        InputError: another size; no folder; files that are missing, truncated or of another size.
    """
    if size not in (8, 16, 32, 64):
        raise InputError(f"size expected 8, 16, 32 or 64, got {size}")
    base = data_dir("imagenet_k") if folder is None else existing_folder(folder)
    train, test = _imagenet_archives(base, size)
    store = _unpacked_imagenet(train, test, size)
    images, labels, test_images, test_labels = (
        np.load(store / f"{part}.npy", mmap_mode="r") for part in ("train", "train_labels", "test", "test_labels")
    )
    arrays = images, labels, test_images, test_labels
    classes = [f"class {i + 1}" for i in range(1000)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return image_dataset(f"imagenet_{size}", str(base), arrays, classes, mean, std, limit, size // 8)


def imagenet_is_here(folder: str | None = None) -> bool:
    """Whether a folder holds archives of downsampled ImageNet."""
    base = data_dir("imagenet_k") if folder is None else Path(folder)
    return base.is_dir() and next(base.rglob("val_data.npz"), None) is not None


def _imagenet_archives(base: Path, size: int) -> tuple[list[Path], Path]:
    """Training archives in order, and the one of the validation images."""
    names = ["train_data.npz"] if size == 8 else [f"train_data_batch_{i}.npz" for i in range(1, 11)]
    there = sorted(base.rglob("*.npz")) if base.is_dir() else []
    found = {path.name: path for path in there if _npz_size(path) == size}
    for path in there:
        if path.name in (*names, "val_data.npz") and not zipfile.is_zipfile(path):
            set_aside(path, "it is no whole zip file")
    missing = [name for name in (*names, "val_data.npz") if name not in found]
    if missing:
        raise InputError(
            f"{base} holds no {', '.join(missing)} of {size} px; fetch downsampled ImageNet ({size} x {size}, npz) "
            "from https://image-net.org by hand and give its folder with --data-dir"
        )
    return [found[name] for name in names], found["val_data.npz"]


def _unpacked_imagenet(train: list[Path], test: Path, size: int) -> Path:
    """The cached folder with the archives' arrays as plain npy files; made where missing."""
    about = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in (*train, test)]
    store = cache_dir() / "imagenet" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    if store.is_dir():
        return store
    store.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=store.parent, prefix=".part"))
    try:
        _unpack_npz(train, part / "train.npy", part / "train_labels.npy", size)
        _unpack_npz([test], part / "test.npy", part / "test_labels.npy", size)
        if not store.is_dir():  # another run may have been quicker
            part.rename(store)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return store


def _unpack_npz(archives: list[Path], images_to: Path, labels_to: Path, size: int) -> None:
    headers = [_npz_header(path) for path in archives]
    total = sum(rows for rows, _ in headers)
    images = np.lib.format.open_memmap(images_to, "w+", np.uint8, (total, 3, size, size))
    labels = np.lib.format.open_memmap(labels_to, "w+", np.int64, (total,))
    start = 0
    for path, (count, _) in zip(archives, headers, strict=True):
        print(f"unpacking {path}", flush=True)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                images[start : start + count] = arrays["data"].reshape(count, 3, size, size)
                labels[start : start + count] = checked_labels(arrays["labels"] - 1, 1000, path)
        except (ValueError, KeyError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            set_aside(path, str(error))
            raise InputError(f"{path} cannot be read: {error}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        start += count
    images.flush()
    labels.flush()


def _npz_size(path: Path) -> int:
    """Pixels along an edge of an archive's images; 0 where it holds none."""
    try:
        return _npz_header(path)[1]
    except InputError:
        return 0


def _npz_header(path: Path) -> tuple[int, int]:
    """How many images an archive holds, and their pixels along an edge, from its header alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("data.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no archive of downsampled ImageNet: {error}") from error
    size = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
    if not size or shape[1] != 3 * size * size or dtype != np.uint8:
        raise InputError(f"{path} is no archive of downsampled ImageNet: it holds {dtype} of shape {shape}")
    return shape[0], size
