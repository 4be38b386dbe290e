"""Which samples train, which choose, which test."""

import numpy as np

from flexseq.errors import InputError


def stratified_split(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """70 / 15 / 15 per cent, each class in proportion.

    As in the original code: scikit-learn's train_test_split, 0.7 with random_state 0, the rest halved with random_state 1.

    Args:
        targets: (samples,), classes.

    Returns:
        Indices of the training, validation and test split.

    Raises:
        InputError: a class too small to be in every split.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(targets))
    try:
        train, rest = train_test_split(everything, train_size=0.7, random_state=0, stratify=targets)
        validation, test = train_test_split(rest, train_size=0.5, random_state=1, stratify=targets[rest])
    except ValueError as error:
        raise InputError(
            f"cannot split {len(targets)} samples of {len(np.unique(targets))} classes into 70/15/15 per cent: {error}"
        ) from error
    return train, validation, test


def held_out(targets: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the samples that train, and of a share that is held out, each class in proportion, always the same ones.

    Raises:
        InputError: a class too small to be in both.
    """
    from sklearn.model_selection import train_test_split

    try:
        train, rest = train_test_split(np.arange(len(targets)), test_size=share, random_state=0, stratify=targets)
    except ValueError as error:
        raise InputError(f"cannot hold out {share:.0%} of {len(targets)} samples of {len(np.unique(targets))} classes: {error}") from error
    return np.sort(train), np.sort(rest)


def limited(targets: np.ndarray, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` samples, each class in proportion, always the same ones; all where limit is None.

    Raises:
        InputError: fewer than one sample for each class.
    """
    from sklearn.model_selection import train_test_split

    if limit is None or limit >= len(targets):
        return np.arange(len(targets))
    try:
        chosen, _ = train_test_split(np.arange(len(targets)), train_size=limit, random_state=0, stratify=targets)
    except ValueError as error:
        raise InputError(f"cannot limit {len(targets)} samples of {len(np.unique(targets))} classes to {limit}: {error}") from error
    return np.sort(chosen)
