"""Image datasets in their official binary formats: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, STL-10, downsampled ImageNet."""

import gzip
import hashlib
import json
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flexseq.data.augment import CropAndFlip
from flexseq.data.dataset import Dataset, Split
from flexseq.data.downloads import fetch, set_aside_if_altered, unpack_tar
from flexseq.data.places import cache_dir, data_dir, existing_folder
from flexseq.data.splits import held_out, limited
from flexseq.data.standardise import Standardise
from flexseq.errors import InputError, unknown_name

VALIDATION = 0.1
"""Share of the training images that choose the best epoch instead of training."""

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Training images (samples, channels, height, width) in uint8 and labels (samples,), then the test split's."""


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from and how it is read.

    Args:
        urls: folders on servers.
        files: checksums (SHA-256) of the files there.
        holds: a file by which the data is recognised, below `inside`.
        inside: the folder that the archive unpacks to; empty where there is no archive.
        read: that folder -> the arrays.
        classes: names.
        mean, std: of each channel, of values in [0, 1].
        crop_padding: pixels by which training images are padded, to be cropped at random and flipped; 0 for neither.
    """

    urls: tuple[str, ...]
    files: dict[str, str]
    holds: str
    inside: str
    read: Callable[[Path], Arrays]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0


def load_images(name: str, *, folder: str | None = None, download: bool = False, limit: int | None = None) -> Dataset:
    """One of the datasets of `SOURCES`, as images.

    A tenth of the training images, stratified, is the validation split; the official test images test.

    Args:
        name: "mnist", "fashion_mnist", "cifar10", "cifar100" or "stl10".
        folder: where the data lies, unpacked or as the official files; by default flexseq's cache, into which it is fetched.
        download: fetch it into `folder` if it is not there.
        limit: use at most this many images of each of training and test, each class in proportion.

    Raises:
        InputError: an unknown name; a folder without the data; a file that is truncated or altered.
    """
    if name not in SOURCES:
        raise unknown_name("dataset", name, SOURCES)
    source = SOURCES[name]
    if folder is None:
        base, download = data_dir(name), True
    else:
        base = Path(folder).expanduser() if download else existing_folder(folder)
    for file, checksum in () if source.inside else source.files.items():  # read as they are, and so checked every time
        for place in (base, base / name):
            set_aside_if_altered(place / file, checksum)
    root = _found(name, base)
    if root is None:
        _provide(name, source, base, download)
        root = _found(name, base)
        if root is None:
            raise InputError(f"{base} holds the archive of {name}, but not {source.inside}/{source.holds} in it")
    arrays = source.read(root)
    return _dataset(name, str(root), arrays, list(source.classes), source.mean, source.std, limit, source.crop_padding)


def images_are_here(name: str, folder: str | None = None) -> bool:
    """Whether a dataset's files lie in a folder, unpacked or not, without asking anyone to fetch them."""
    base = data_dir(name) if folder is None else Path(folder)
    return _found(name, base) is not None or all((base / file).is_file() for file in SOURCES[name].files)


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
    return _dataset(f"imagenet_{size}", str(base), arrays, classes, mean, std, limit, size // 8)


def imagenet_is_here(folder: str | None = None) -> bool:
    """Whether a folder holds archives of downsampled ImageNet."""
    base = data_dir("imagenet_k") if folder is None else Path(folder)
    return base.is_dir() and next(base.rglob("val_data.npz"), None) is not None


def _dataset(
    name: str,
    source: str,
    arrays: Arrays,
    classes: list[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    limit: int | None,
    padding: int,
) -> Dataset:
    images, labels, test_images, test_labels = arrays
    chosen = limited(labels, limit)
    kept, validating = held_out(labels[chosen], min(VALIDATION, 50_000 / len(labels)))
    to_unit = Standardise(*(torch.tensor(values).view(-1, 1, 1) for values in ([255 * m for m in mean], [1 / (255 * s) for s in std])))
    train, validation = (Split(images, labels, chosen[part], to_unit) for part in (kept, validating))
    test = Split(test_images, test_labels, limited(test_labels, limit), to_unit)
    black = -torch.tensor(mean) / torch.tensor(std)
    augment = CropAndFlip(padding, black) if padding else None
    notes = [f"{len(validation):,} of the training images choose the best epoch and do not train; the papers train on all"]
    return Dataset(
        name,
        source,
        train,
        validation,
        test,
        classes,
        images.shape[1:],
        notes,
        {"crop_padding": padding, "size": images.shape[-1]},
        augment,
    )


def _found(name: str, base: Path) -> Path | None:
    """The folder below `base` that holds a dataset unpacked."""
    source = SOURCES[name]
    places = [base, base / source.inside, base / name / source.inside]
    needed = [source.holds] if source.inside else list(source.files)

    def there(path: Path) -> bool:
        return path.is_file() or path.with_name(path.name.removesuffix(".gz")).is_file()

    return next((place for place in places if all(there(place / file) for file in needed)), None)


def _provide(name: str, source: Source, base: Path, download: bool) -> None:
    """Put a dataset's files into `base`, and unpack their archive."""
    for file, checksum in source.files.items():
        there = set_aside_if_altered(base / file, checksum)
        if not there and not download:
            raise InputError(f"{base} holds neither {source.inside or name}/{source.holds} nor {file}; give another folder, or --download")
        if not there:
            fetch([f"{url}{file}" for url in source.urls], checksum, base)
        if source.inside:
            print(f"unpacking {base / file}", flush=True)
            unpack_tar(base / file, base / name)


def _read_mnist(root: Path) -> Arrays:
    parts = []
    for split in ("train", "t10k"):
        for kind, ndim in (("images-idx3", 3), ("labels-idx1", 1)):
            parts.append(_read_idx(root / f"{split}-{kind}-ubyte", ndim))
    images, labels, test_images, test_labels = parts
    return images[:, None], _checked(labels, 10, root), test_images[:, None], _checked(test_labels, 10, root)


def _read_idx(path: Path, ndim: int) -> np.ndarray:
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


def _read_cifar10(root: Path) -> Arrays:
    return _read_cifar(root, [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", label_bytes=1, classes=10)


def _read_cifar100(root: Path) -> Arrays:
    return _read_cifar(root, ["train.bin"], "test.bin", label_bytes=2, classes=100)  # the second byte is the fine label


def _read_cifar(root: Path, train: list[str], test: str, *, label_bytes: int, classes: int) -> Arrays:
    size = label_bytes + 3 * 32 * 32
    parts = []
    for names in (train, [test]):
        records = np.concatenate([_read_records(root / name, size) for name in names])
        parts += [records[:, label_bytes:].reshape(-1, 3, 32, 32), _checked(records[:, label_bytes - 1], classes, root)]
    return parts[0], parts[1], parts[2], parts[3]


def _read_stl10(root: Path) -> Arrays:
    parts = []
    for split in ("train", "test"):
        images = _read_records(root / f"{split}_X.bin", 3 * 96 * 96).reshape(-1, 3, 96, 96).swapaxes(2, 3)  # column by column
        labels = _read_records(root / f"{split}_y.bin", 1)[:, 0]
        if len(images) != len(labels):
            raise InputError(f"{root} holds {len(images)} {split} images of STL-10, but {len(labels)} labels")
        parts += [images, _checked(labels - 1, 10, root)]
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


def _checked(labels: np.ndarray, classes: int, where: Path) -> np.ndarray:
    for label in (labels.min(), labels.max()):
        if not 0 <= label < classes:
            raise InputError(f"{where} holds a label of {label}, of {classes} classes: altered?")
    return labels


def _imagenet_archives(base: Path, size: int) -> tuple[list[Path], Path]:
    """Training archives in order, and the one of the validation images."""
    names = ["train_data.npz"] if size == 8 else [f"train_data_batch_{i}.npz" for i in range(1, 11)]
    found = {path.name: path for path in sorted(base.rglob("*.npz")) if _npz_size(path) == size} if base.is_dir() else {}
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
                labels[start : start + count] = _checked(arrays["labels"] - 1, 1000, path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, zlib.error) as error:
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


_DIGITS = tuple(str(digit) for digit in range(10))
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_NATURAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _mnist(urls: tuple[str, ...], sums: tuple[str, ...], classes: tuple[str, ...]) -> Source:
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = dict(zip(names, sums, strict=True))
    return Source(urls, files, names[0], "", _read_mnist, classes, (0.1307,), (0.3081,))


SOURCES = {
    "mnist": _mnist(
        ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        _DIGITS,
    ),
    "fashion_mnist": _mnist(
        (
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        _FASHION,
    ),
    "cifar10": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        "data_batch_1.bin",
        "cifar-10-batches-bin",
        _read_cifar10,
        _CIFAR10,
        **_NATURAL,
        crop_padding=4,
    ),
    "cifar100": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        "train.bin",
        "cifar-100-binary",
        _read_cifar100,
        tuple(f"fine class {i}" for i in range(100)),
        **_NATURAL,
        crop_padding=4,
    ),
    "stl10": Source(
        ("https://cs.stanford.edu/~acoates/stl10/", "http://ai.stanford.edu/~acoates/stl10/"),
        {"stl10_binary.tar.gz": "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"},
        "train_X.bin",
        "stl10_binary",
        _read_stl10,
        _STL10,
        (0.4467, 0.4398, 0.4066),
        (0.2603, 0.2566, 0.2713),
        crop_padding=12,
    ),
}
"""The datasets by name."""
