"""The tasks: their data, recipe, network and published figures. To add one, add it to TASKS."""

import os
from typing import Any

from flexseq.bench.recipes import (
    ADDING,
    ARCHIVE,
    CATS_DOGS,
    CF_CIFAR,
    CHARACTER_TRAJECTORIES,
    CIFAR,
    CIFAR_TRANSFER,
    COPY_MEMORY,
    DIGITS,
    DIGITS_TRANSFER,
    IMAGENET,
    IMAGENET_TRANSFER,
    NIFF_CIFAR,
    NIFF_IMAGENET,
    NPCIFAR10,
    PMNIST,
    SCIFAR10,
    SMNIST,
    SPEECH_MFCC,
    SPEECH_RAW,
    STL10,
    TaskRecipe,
)
from flexseq.bench.task import Task, Transfer
from flexseq.data.augment import resize
from flexseq.data.dataset import Dataset
from flexseq.data.digit_images import fourier_resize
from flexseq.errors import InputError


def _load_digits(**options: Any) -> Dataset:
    from flexseq.data.digits import load_digits

    return load_digits(**options)


def _load_speech(mfcc: bool, *, data_dir: str | None = None, words: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.speech_commands import load_speech_commands

    chosen = None if words is None else tuple(word.strip() for word in words.split(",") if word.strip())
    return load_speech_commands(mfcc=mfcc, folder=data_dir, words=chosen, **options)


def _speech_is_here(folder: str | None) -> bool:
    from flexseq.data.speech_commands import is_here

    return is_here(folder)


def _speech(name: str, description: str, *, mfcc: bool, defaults: TaskRecipe, paper: dict[str, float]) -> Task:
    return Task(
        name=name,
        description=description,
        needs="Speech Commands v0.02 (2.3 GB, fetched on first use) or any folder in its layout (--data-dir)",
        is_here=_speech_is_here,
        load=lambda **options: _load_speech(mfcc, **options),
        options=("data_dir", "download", "words", "split", "short", "limit", "drop", "test_rate"),
        defaults=defaults,
        paper=paper,
        paper_samples=34_975,
        paper_options={"split": "paper", "short": "drop"},
    )


def _load_images(name: str, *, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.images import load_images

    return load_images(name, folder=data_dir, **options)


def _images_are_here(name: str, folder: str | None) -> bool:
    from flexseq.data.images import images_are_here

    return images_are_here(name, folder)


def _images(
    name: str, description: str, megabytes: int, defaults: TaskRecipe, paper: dict[str, float] | None = None, samples: int = 0
) -> Task:
    return Task(
        name=name,
        description=description,
        needs=f"the official files ({megabytes:,} MB, fetched on first use), or a folder that holds them (--data-dir)",
        is_here=lambda folder: _images_are_here(name, folder),
        load=lambda **options: _load_images(name, **options),
        options=("data_dir", "download", "limit"),
        defaults=defaults,
        model="flexnet",
        paper=paper or {},
        paper_samples=samples,
    )


def _load_image_sequences(name: str, *, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.image_sequences import load_image_sequences

    return load_image_sequences(name, folder=data_dir, **options)


def _image_sequences(name: str, description: str, images: str, samples: int, defaults: TaskRecipe, paper: list[float]) -> Task:
    rows = (
        "CKCNN-2",
        "CKTCN-fourier-2",
        "CKTCN-gabor-2",
        "CKTCN-magnet-2",
        "FlexTCN-magnet-2",
        "FlexTCN-magnet-4",
        "FlexTCN-magnet-6",
        "FlexTCN-siren-6",
        "FlexTCN-fourier-6",
        "FlexTCN-gabor-6",
    )
    return Task(
        name=name,
        description=description,
        needs=f"as {images}",
        is_here=lambda folder: _images_are_here(images, folder),
        load=lambda **options: _load_image_sequences(name, **options),
        options=("data_dir", "download", "limit", "drop", *(("test_rate",) if name in ("smnist", "scifar10") else ())),
        defaults=defaults,
        paper={row: round(value / 100, 4) for row, value in zip(rows, paper, strict=True)},
        paper_samples=samples,
    )


def _load_synthetic(name: str, **options: Any) -> Dataset:
    from flexseq.data import synthetic

    return {"copy_memory": synthetic.load_copy_memory, "adding": synthetic.load_adding}[name](**options)


def _synthetic(name: str, description: str, defaults: TaskRecipe) -> Task:
    return Task(
        name=name,
        description=description,
        needs="nothing: made on the spot",
        is_here=lambda folder: True,
        load=lambda **options: _load_synthetic(name, **options),
        options=("limit", "length"),
        defaults=defaults,
    )


def _load_archive(*, problem: str | None = None, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.archive import load_archive

    if problem is None:
        raise InputError("archive needs --problem, a name of the UCR or UEA archive such as GunPoint or BasicMotions")
    return load_archive(problem=problem, folder=data_dir, **options)


def _load_characters(*, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.archive import load_character_trajectories

    return load_character_trajectories(folder=data_dir, **options)


def _characters_are_here(folder: str | None) -> bool:
    from flexseq.data.archive import CHARACTERS, archive_is_here

    return archive_is_here(CHARACTERS, folder)


def _load_imagenet(*, size: int = 32, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.small_imagenet import load_small_imagenet

    return load_small_imagenet(size, folder=data_dir, **options)


def _imagenet_is_here(folder: str | None) -> bool:
    from flexseq.data.small_imagenet import imagenet_is_here

    return imagenet_is_here(folder)


def _load_image_folder(*, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.image_folder import load_image_folder

    if data_dir is None:
        raise InputError("niff_imagenet needs --data-dir, a folder with train/CLASS and val/CLASS in it")
    return load_image_folder(data_dir, **options)


def _load_cats_dogs(*, data_dir: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.image_folder import load_cats_dogs

    if data_dir is None:
        raise InputError("cats_dogs needs --data-dir, the folder PetImages of the official archive, or one with two classes in its layout")
    return load_cats_dogs(data_dir, **options)


def _load_digit_images(**options: Any) -> Dataset:
    from flexseq.data.digit_images import load_digit_images

    return load_digit_images(**options)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="digits",
            description="scikit-learn's 1,797 handwritten digits as sequences of 64 steps",
            needs="nothing: comes with scikit-learn",
            is_here=lambda folder: True,
            load=_load_digits,
            options=("limit", "drop", "test_rate"),
            defaults=DIGITS,
        ),
        _speech(
            "speech_mfcc",
            "ten spoken words as 20 MFCCs over 161 steps",
            mfcc=True,
            defaults=SPEECH_MFCC,
            # FlexConv, Table 2, column SC
            paper={
                "CKCNN-2": 0.9527,
                "CKTCN-fourier-2": 0.9565,
                "CKTCN-gabor-2": 0.9666,
                "CKTCN-magnet-2": 0.9701,
                "FlexTCN-magnet-2": 0.9710,
                "FlexTCN-magnet-4": 0.9773,
                "FlexTCN-magnet-6": 0.9767,
                "FlexTCN-siren-6": 0.9583,
                "FlexTCN-fourier-6": 0.9762,
                "FlexTCN-gabor-6": 0.9735,
            },
        ),
        _speech(
            "speech_raw",
            "ten spoken words as 16,000 raw samples",
            mfcc=False,
            defaults=SPEECH_RAW,
            # FlexConv, Table 2, column SC_raw
            paper={
                "CKCNN-2": 0.7166,
                "CKTCN-fourier-2": 0.7490,
                "CKTCN-gabor-2": 0.7810,
                "CKTCN-magnet-2": 0.8069,
                "FlexTCN-magnet-2": 0.8803,
                "FlexTCN-magnet-4": 0.9045,
                "FlexTCN-magnet-6": 0.9173,
                "FlexTCN-siren-6": 0.8573,
                "FlexTCN-fourier-6": 0.9102,
                "FlexTCN-gabor-6": 0.9150,
            },
        ),
        # FlexConv, Table 1: in the order of its rows
        _image_sequences(
            "smnist",
            "MNIST pixel by pixel, 784 steps",
            "mnist",
            70_000,
            SMNIST,
            [99.31, 99.44, 99.52, 99.55, 99.60, 99.60, 99.62, 99.03, 99.49, 99.50],
        ),
        _image_sequences(
            "pmnist",
            "MNIST pixel by pixel in one fixed random order, 784 steps",
            "mnist",
            70_000,
            PMNIST,
            [98.00, 98.40, 98.38, 98.57, 98.61, 98.72, 98.63, 95.36, 97.97, 98.37],
        ),
        _image_sequences(
            "scifar10",
            "CIFAR-10 pixel by pixel, 1,024 steps",
            "cifar10",
            60_000,
            SCIFAR10,
            [62.25, 68.28, 69.26, 74.58, 78.99, 80.26, 80.82, 69.24, 74.79, 78.36],
        ),
        _image_sequences(
            "npcifar10",
            "CIFAR-10 row by row and then noise, 1,000 steps",
            "cifar10",
            60_000,
            NPCIFAR10,
            [60.5, 66.26, 67.37, 67.52, 67.11, 67.42, 69.87, 57.27, 67.35, 67.56],
        ),
        Task(
            name="character_trajectories",
            description="twenty letters as movements of a pen, 182 steps of 3 channels",
            needs="CharacterTrajectories of the UEA archive (fetched through sktime on first use), or a folder that holds it (--data-dir)",
            is_here=_characters_are_here,
            load=_load_characters,
            options=("data_dir", "download", "limit", "drop", "test_rate"),
            defaults=CHARACTER_TRAJECTORIES,
            # FlexConv, Table 2, column CT
            paper={
                "CKCNN-2": 0.9953,
                "CKTCN-magnet-2": 0.9953,
                "FlexTCN-magnet-2": 0.9953,
                "FlexTCN-magnet-4": 0.9953,
                "FlexTCN-magnet-6": 0.9953,
            },
            paper_samples=2_858,
        ),
        Task(
            name="archive",
            description="any classification problem of the UCR and UEA archives (--problem NAME)",
            needs="nothing for the ten that come with sktime; others are fetched through it, or read from --data-dir",
            is_here=lambda folder: True,
            load=_load_archive,
            options=("problem", "data_dir", "download", "limit", "drop", "test_rate"),
            defaults=ARCHIVE,
        ),
        _synthetic("copy_memory", "repeat ten symbols after a thousand blanks (--length)", COPY_MEMORY),
        _synthetic("adding", "add the two of a thousand numbers that are marked (--length)", ADDING),
        _images("mnist", "handwritten digits, 28 px", 12, CIFAR, {"FlexNet-magnet-7": 0.997}, 70_000),
        _images("fashion_mnist", "pieces of clothing, 28 px", 31, CIFAR),
        _images(
            "cifar10",
            "photographs of ten kinds of things, 32 px",
            170,
            CIFAR,
            # FlexConv, Tables 3 and 6
            {
                "FlexNet-conv3-7": 0.895,
                "FlexNet-conv33-7": 0.780,
                "CKNet-siren-7": 0.721,
                "CKNet-magnet-7": 0.868,
                "FlexNet-siren-7": 0.890,
                "FlexNet-fourier-7": 0.916,
                "FlexNet-gabor-7": 0.919,
                "FlexNet-magnet-3": 0.904,
                "FlexNet-magnet-5": 0.910,
                "FlexNet-magnet-7": 0.922,
            },
            60_000,
        ),
        _images("cifar100", "photographs of a hundred kinds of things, 32 px", 169, CIFAR),
        _images("stl10", "photographs of ten kinds of things, 96 px", 2640, STL10, {"FlexNet-magnet-7": 0.686}, 13_000),
        Task(
            name="imagenet_k",
            description="photographs of a thousand kinds of things, 8 to 64 px (--size)",
            needs="a folder (--data-dir) with the npz archives of downsampled ImageNet, from image-net.org by hand",
            is_here=_imagenet_is_here,
            load=_load_imagenet,
            options=("data_dir", "size", "limit"),
            defaults=IMAGENET,
            model="flexnet",
            # FlexConv, Table 7, at 32 px
            paper={"FlexNet-magnet-5": 0.249},
            paper_samples=1_331_167,
            paper_options={"size": 32},
        ),
        Task(
            name="niff_cifar10",
            description="CIFAR-10 by well-known networks (--backbone) and their NIFF versions (--conversion)",
            needs="as cifar10",
            is_here=lambda folder: _images_are_here("cifar10", folder),
            load=lambda **options: _load_images("cifar10", **options),
            options=("data_dir", "download", "limit"),
            defaults=NIFF_CIFAR,
            model="backbone",
            # NIFF, Tables A2 and A4; its ConvNeXt-tiny for CIFAR-10 is a network of 6.4 M parameters, not the one of 28 M
            paper={
                "resnet18-baseline": 0.9274,
                "resnet18-separated": 0.9018,
                "resnet18-niff": 0.9063,
                "resnet18-niff_full": 0.9266,
                "resnet18-niff_linear": 0.8311,
                "resnet50-baseline": 0.9375,
                "resnet50-separated": 0.9213,
                "resnet50-niff": 0.9311,
                "resnet50-niff_full": 0.9339,
                "resnet50-niff_linear": 0.8754,
                "densenet121-baseline": 0.9393,
                "densenet121-separated": 0.9200,
                "densenet121-niff": 0.9249,
                "densenet121-niff_full": 0.9247,
                "densenet121-niff_linear": 0.7995,
                "mobilenet_v2-baseline": 0.9451,
                "mobilenet_v2-niff": 0.9403,
                "mobilenet_v2-niff_linear": 0.9321,
            },
            paper_samples=60_000,
        ),
        Task(
            name="niff_imagenet",
            description="a folder of pictures, such as ImageNet, by the same networks (--backbone, --conversion), 224 px (--size)",
            needs="a folder (--data-dir) with train/CLASS/*.jpg and val/CLASS/*.jpg",
            is_here=lambda folder: folder is not None and os.path.isdir(os.path.join(folder, "train")),
            load=_load_image_folder,
            options=("data_dir", "size", "limit"),
            defaults=NIFF_IMAGENET,
            model="backbone",
        ),
        Task(
            name="cats_dogs",
            description="photographs of cats and dogs, 150 px (--size), by CF-Conv's network",
            needs="a folder (--data-dir) with Cat/ and Dog/, as the official archive has, or any two classes",
            is_here=lambda folder: (
                folder is not None and any(os.path.isdir(os.path.join(folder, one)) for one in ("PetImages", "Cat", "train"))
            ),
            load=_load_cats_dogs,
            options=("data_dir", "size", "limit"),
            defaults=CATS_DOGS,
            model="cfnet",
            # CF-Conv, second version, Table 1
            paper={
                "CFNet-conv3-6": 0.8664,
                "CFNet-hwio-4096-whole-6": 0.7526,
                "CFNet-hwio-32768-whole-6": 0.7927,
                "CFNet-hwio-262144-whole-6": 0.8530,
            },
            paper_samples=24_998,  # two of the 25,000 files are empty
            paper_options={"size": 150},
        ),
        Task(
            name="cf_cifar10",
            description="CIFAR-10 by CF-Conv's network",
            needs="as cifar10",
            is_here=lambda folder: _images_are_here("cifar10", folder),
            load=lambda **options: _load_images("cifar10", **options),
            options=("data_dir", "download", "limit"),
            defaults=CF_CIFAR,
            model="cfnet",
        ),
        Task(
            name="digits_transfer",
            description="train on scikit-learn's digits at 8 px, test at 16 px: as it is, and fine-tuned",
            needs="nothing: comes with scikit-learn",
            is_here=lambda folder: True,
            load=_load_digit_images,
            options=("limit",),
            defaults=DIGITS_TRANSFER,
            model="flexnet",
            transfer=Transfer(8, 16, fourier_resize, sources=(8,), targets=(10, 12, 14, 16)),
        ),
        Task(
            name="cifar10_transfer",
            description="train on CIFAR-10 at 16 px, test at 32 px: as it is, and fine-tuned",
            needs="as cifar10",
            is_here=lambda folder: _images_are_here("cifar10", folder),
            load=lambda **options: _load_images("cifar10", **options),
            options=("data_dir", "download", "limit"),
            defaults=CIFAR_TRANSFER,
            model="flexnet",
            transfer=Transfer(16, 32, resize),
        ),
        Task(
            name="imagenet_k_transfer",
            description="train on downsampled ImageNet at 16 px, test at 32 px: as it is, and fine-tuned",
            needs="as imagenet_k, at the larger size",
            is_here=_imagenet_is_here,
            load=_load_imagenet,
            options=("data_dir", "size", "limit"),
            defaults=IMAGENET_TRANSFER,
            model="flexnet",
            transfer=Transfer(16, 32, resize),
        ),
    )
}
