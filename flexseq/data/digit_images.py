"""scikit-learn's handwritten digits as images, and at any size: a study of resolutions that needs no download."""

import numpy as np
import torch
from torch import Tensor

from flexseq.data.dataset import Dataset, Split
from flexseq.data.splits import limited, stratified_split
from flexseq.data.standardise import standardiser
from flexseq.errors import InputError
from flexseq.functional.circular_conv import resample


def load_digit_images(*, limit: int | None = None) -> Dataset:
    """1,797 images of 8 x 8 pixels, 10 classes, stratified 70/15/15.

    Args:
        limit: use at most this many samples, each class in proportion.
    """
    from sklearn import datasets

    pixels, targets = datasets.load_digits(return_X_y=True)  # (samples, 64), 0 to 16
    chosen = limited(targets, limit)
    inputs, targets = pixels[chosen].reshape(-1, 1, 8, 8).astype(np.float32), targets[chosen]
    indices = stratified_split(targets)
    transform = standardiser(inputs, indices[0], per="all")
    train, validation, test = (Split(inputs, targets, part, transform) for part in indices)
    return Dataset("digits", "scikit-learn", train, validation, test, [str(digit) for digit in range(10)], inputs.shape[1:])


def fourier_resize(x: Tensor, size: int) -> Tensor:
    """Images with more pixels and the same spectrum: (batch, channels, height, width) -> (batch, channels, size, size).

    Interpolates what lies between the pixels by the image's own sines, mirrored at the edges so that none wraps round. The first pixel
    stays the first: with a whole ratio every so many-th pixel is one of the old ones.

    Raises:
        InputError: fewer pixels than there were.
    """
    if size < max(x.shape[-2:]):
        raise InputError(f"Fourier interpolation expected at least {max(x.shape[-2:])} px, got {size}")
    for dim in (-2, -1):
        along = x.movedim(dim, -1)
        x = resample(torch.cat([along, along.flip(-1)], -1), [2 * size])[..., :size].movedim(-1, dim)
    return x
