"""Image datasets in their official binary formats: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, STL-10."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flexseq.data.augment import CropAndFlip
from flexseq.data.dataset import Dataset, Split
from flexseq.data.downloads import checksum_of, fetch, set_aside_if_altered, unpack_tar
from flexseq.data.image_formats import Arrays, read_cifar10, read_cifar100, read_mnist, read_stl10
from flexseq.data.places import data_dir, existing_folder
from flexseq.data.splits import held_out, limited
from flexseq.data.standardise import Standardise
from flexseq.errors import InputError, unknown_name

VALIDATION = 0.1
"""Share of the training images that choose the best epoch instead of training."""


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
        counts: training and test images that there are; fewer or more are a sign of altered files.
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
    counts: tuple[int, int] | None = None


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
    for place in () if source.inside else (base, base / name):  # files that are read as they are, and so checked every time
        if _other_dataset(name, place) is None:
            for file, checksum in source.files.items():
                set_aside_if_altered(place / file, checksum)
    root = _found(name, base)
    if root is None:
        _provide(name, source, base, download)
        root = _found(name, base)
        if root is None:
            raise InputError(f"{base} holds the archive of {name}, but not {source.inside}/{source.holds} in it")
    arrays = source.read(root)
    for split, count, images in zip(("training", "test"), source.counts or (), arrays[::2], strict=False):
        if len(images) != count:
            raise InputError(f"{root} holds {len(images):,} {split} images of {name}, of {count:,}: truncated or altered?")
    return image_dataset(name, str(root), arrays, list(source.classes), source.mean, source.std, limit, source.crop_padding)


def images_are_here(name: str, folder: str | None = None) -> bool:
    """Whether a dataset's files lie in a folder, unpacked or not, without asking anyone to fetch them."""
    base = data_dir(name) if folder is None else Path(folder)
    return _found(name, base) is not None or (SOURCES[name].inside != "" and all((base / file).is_file() for file in SOURCES[name].files))


def image_dataset(
    name: str,
    source: str,
    arrays: Arrays,
    classes: list[str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    limit: int | None,
    padding: int,
) -> Dataset:
    """Images, with a tenth of the training ones (at most 50,000) held out as validation, standardised by channel.

    Args:
        name, source, classes, limit: see `Dataset` and `load_images`.
        arrays: images and labels of both splits.
        mean, std: of each channel, of values in [0, 1].
        padding: pixels by which training images are padded with black, to be cropped at random and flipped; 0 for neither.
    """
    images, labels, test_images, test_labels = arrays
    chosen = limited(labels, limit)
    kept, validating = held_out(labels[chosen], min(VALIDATION, 50_000 / len(chosen)))
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
    places = places if source.inside else [place for place in (base, base / name) if _other_dataset(name, place) is None]

    def there(path: Path) -> bool:
        return path.is_file() or path.with_name(path.name.removesuffix(".gz")).is_file()

    return next((place for place in places if all(there(place / file) for file in needed)), None)


def _other_dataset(name: str, place: Path) -> str | None:
    """The dataset whose files lie in a folder under the names that those of `name` have, too, as Fashion-MNIST's have MNIST's."""
    own = SOURCES[name].files
    others = {checksum: other for other, source in SOURCES.items() for checksum in source.files.values() if checksum not in own.values()}
    return next((others[found] for file in own if (found := checksum_of(place / file)) in others), None)


def _provide(name: str, source: Source, base: Path, download: bool) -> None:
    """Put a dataset's files into `base`, or where another's lie there into a folder below it, and unpack their archive."""
    other = _other_dataset(name, base)
    if other is not None and not download:
        raise InputError(f"{base} holds {other}, whose files have the names of {name}'s; give another folder, or --download")
    base = base if other is None else base / name
    for file, checksum in source.files.items():
        there = set_aside_if_altered(base / file, checksum)
        if not there and not download:
            raise InputError(f"{base} holds neither {source.inside or name}/{source.holds} nor {file}; give another folder, or --download")
        if not there:
            fetch([f"{url}{file}" for url in source.urls], checksum, base)
        if source.inside:
            print(f"unpacking {base / file}", flush=True)
            unpack_tar(base / file, base / name)


_DIGITS = tuple(str(digit) for digit in range(10))
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_NATURAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _mnist(urls: tuple[str, ...], sums: tuple[str, ...], classes: tuple[str, ...]) -> Source:
    counts = (60_000, 10_000)
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = dict(zip(names, sums, strict=True))
    return Source(urls, files, names[0], "", read_mnist, classes, (0.1307,), (0.3081,), counts=counts)


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
        read_cifar10,
        _CIFAR10,
        **_NATURAL,
        crop_padding=4,
        counts=(50_000, 10_000),
    ),
    "cifar100": Source(
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        "train.bin",
        "cifar-100-binary",
        read_cifar100,
        tuple(f"fine class {i}" for i in range(100)),
        **_NATURAL,
        crop_padding=4,
        counts=(50_000, 10_000),
    ),
    "stl10": Source(
        ("https://cs.stanford.edu/~acoates/stl10/", "http://ai.stanford.edu/~acoates/stl10/"),
        {"stl10_binary.tar.gz": "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"},
        "train_X.bin",
        "stl10_binary",
        read_stl10,
        _STL10,
        (0.4467, 0.4398, 0.4066),
        (0.2603, 0.2566, 0.2713),
        crop_padding=12,
        counts=(5_000, 8_000),
    ),
}
"""The datasets by name."""
