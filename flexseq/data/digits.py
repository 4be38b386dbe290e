"""scikit-learn's handwritten digits as sequences: the dataset that needs no download."""

import numpy as np

from flexseq.data.dataset import Dataset, Split
from flexseq.data.splits import limited, stratified_split
from flexseq.data.standardise import standardiser


def load_digits(*, limit: int | None = None) -> Dataset:
    """1,797 images of 8 x 8 pixels, row by row: sequences of 64 steps, 10 classes, stratified 70/15/15.

    Args:
        limit: use at most this many samples, each class in proportion.
    """
    from sklearn import datasets

    images, targets = datasets.load_digits(return_X_y=True)  # (samples, 64), 0 to 16
    chosen = limited(targets, limit)
    inputs, targets = images[chosen, None].astype(np.float32), targets[chosen]
    indices = stratified_split(targets)
    transform = standardiser(inputs, indices[0], per="all")
    train, validation, test = (Split(inputs, targets, part, transform) for part in indices)
    return Dataset("digits", "scikit-learn", train, validation, test, [str(digit) for digit in range(10)], inputs.shape[1:])
