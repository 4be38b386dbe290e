"""Images as sequences: sequential and permuted MNIST, sequential and noise-padded CIFAR-10."""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from flexseq.data.dataset import Dataset, Split, Then
from flexseq.data.images import load_images
from flexseq.errors import unknown_name

NOISE_PADDED_LENGTH = 1000
SEED = 0
"""Of the one permutation of pmnist, and of the one draw of noise of npcifar10: the authors' are not published."""


def pixels_in_rows(x: Tensor) -> Tensor:
    """Pixel by pixel, row after row: (batch, channels, height, width) -> (batch, channels, height * width)."""
    return x.flatten(2)


def permuted(x: Tensor, order: Tensor) -> Tensor:
    """Pixel by pixel in a fixed order: (batch, channels, height, width) -> (batch, channels, height * width)."""
    return x.flatten(2)[..., order]


def rows_then_noise(x: Tensor, noise: Tensor) -> Tensor:
    """A step is a row of the image, with channel colour * width + column, and noise follows, the same for all images.

    Args:
        x: (batch, colours, height, width).
        noise: (colours * width, steps).

    Returns:
        (batch, colours * width, height + steps).
    """
    steps = x.transpose(2, 3).flatten(1, 2)
    return torch.cat([steps, noise.expand(len(x), -1, -1)], 2)


def _transforms() -> dict[str, tuple[str, Callable[[Tensor], Tensor], tuple[int, int]]]:
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(784, generator=generator)
    noise = torch.randn(96, NOISE_PADDED_LENGTH - 32, generator=torch.Generator().manual_seed(SEED))
    return {
        "smnist": ("mnist", pixels_in_rows, (1, 784)),
        "pmnist": ("mnist", partial(permuted, order=order), (1, 784)),
        "scifar10": ("cifar10", pixels_in_rows, (3, 1024)),
        "npcifar10": ("cifar10", partial(rows_then_noise, noise=noise), (96, NOISE_PADDED_LENGTH)),
    }


IMAGES_OF = {name: images for name, (images, _, _) in _transforms().items()}
"""Which images each of the sequence datasets is made of."""


def load_image_sequences(name: str, *, folder: str | None = None, download: bool = False, limit: int | None = None) -> Dataset:
    """Images of `load_images`, standardised alike and not augmented, as sequences.

    Args:
        name: "smnist" (784 steps, 1 channel), "pmnist" (the same, permuted), "scifar10" (1,024 steps, 3 channels) or "npcifar10" (1,000
            steps, 96 channels: 32 rows, then 968 steps of noise).
        folder, download, limit: as for `load_images`.

    Raises:
        InputError: an unknown name; what `load_images` complains of.

    Source:
        FlexConv, appendix B.2.
    """
    transforms = _transforms()
    if name not in transforms:
        raise unknown_name("dataset", name, transforms)
    images, to_sequence, shape = transforms[name]
    dataset = load_images(images, folder=folder, download=download, limit=limit)

    def as_sequences(split: Split) -> Split:
        return dataclasses.replace(split, transform=Then(split.transform, to_sequence))

    train, validation, test = map(as_sequences, (dataset.train, dataset.validation, dataset.test))
    options = {"images": images, "seed": SEED} if name in ("pmnist", "npcifar10") else {"images": images}
    return dataclasses.replace(
        dataset, name=name, train=train, validation=validation, test=test, shape=shape, options=options, augment=None
    )
