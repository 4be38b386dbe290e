"""The official binary formats of image datasets: MNIST's, CIFAR's, STL-10's."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from flexseq.errors import InputError

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training images (samples, channels, height, width) in uint8 and labels (samples,), then the test split's."""


def read_mnist(root: Path) -> Arrays:
    parts = []
    for split in ("train", "t10k"):
        for kind, ndim in (("images-idx3", 3), ("labels-idx1", 1)):
            parts.append(read_idx(root / f"{split}-{kind}-ubyte", ndim))
    images, labels, test_images, test_labels = parts
    for some, answers, split in ((images, labels, "training"), (test_images, test_labels, "test")):
        if len(some) != len(answers):
            raise InputError(f"{root} holds {len(some):,} {split} images in MNIST's format, but {len(answers):,} labels")
    return images[:, None], checked_labels(labels, 10, root), test_images[:, None], checked_labels(test_labels, 10, root)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """An array of bytes in MNIST's format, packed or not."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = gzip.decompress(packed.read_bytes()) if packed.is_file() else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{packed if packed.is_file() else path} cannot be read: {error}") from error
    header = 4 + 4 * ndim
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], ">u4")) if len(data) >= header else ()
    if len(data) < header or data[:4] != bytes([0, 0, 8, ndim]) or len(data) != header + int(np.prod(shape)):
        raise InputError(f"{path} is no complete file of {ndim}-dimensional bytes in MNIST's format: truncated or altered?")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_cifar10(root: Path) -> Arrays:
    return _read_cifar(root, [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", label_bytes=1, classes=10)


def read_cifar100(root: Path) -> Arrays:
    return _read_cifar(root, ["train.bin"], "test.bin", label_bytes=2, classes=100)  # the second byte is the fine label


def _read_cifar(root: Path, train: list[str], test: str, *, label_bytes: int, classes: int) -> Arrays:
    size = label_bytes + 3 * 32 * 32
    parts = []
    for names in (train, [test]):
        records = np.concatenate([_read_records(root / name, size) for name in names])
        parts += [records[:, label_bytes:].reshape(-1, 3, 32, 32), checked_labels(records[:, label_bytes - 1], classes, root)]
    return parts[0], parts[1], parts[2], parts[3]


def read_stl10(root: Path) -> Arrays:
    parts = []
    for split in ("train", "test"):
        images = _read_records(root / f"{split}_X.bin", 3 * 96 * 96).reshape(-1, 3, 96, 96).swapaxes(2, 3)  # column by column
        labels = _read_records(root / f"{split}_y.bin", 1)[:, 0]
        if len(images) != len(labels):
            raise InputError(f"{root} holds {len(images)} {split} images of STL-10, but {len(labels)} labels")
        parts += [images, checked_labels(labels - 1, 10, root)]
    return parts[0], parts[1], parts[2], parts[3]


def _read_records(path: Path, size: int) -> np.ndarray:
    """(records, size) bytes."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not len(data) or len(data) % size:
        raise InputError(f"{path} holds {len(data):,} bytes, which is no whole number of records of {size:,}: truncated?")
    return data.reshape(-1, size)


def checked_labels(labels: np.ndarray, classes: int, where: Path) -> np.ndarray:
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise InputError(f"{where} holds a label of {label}, of {classes} classes: altered?")
    return labels
