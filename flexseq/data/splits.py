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
    classes = len(np.unique(targets))
    if limit < classes:
        raise InputError(f"--limit expected at least {classes}, one sample for each class, got {limit}")
    try:
        chosen, _ = train_test_split(np.arange(len(targets)), train_size=limit, random_state=0, stratify=targets)
    except ValueError as error:
        raise InputError(f"cannot limit {len(targets)} samples of {len(np.unique(targets))} classes to {limit}: {error}") from error
    return np.sort(chosen)


def held_out_as_it_goes(targets: np.ndarray, share: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, bool]:
    """As `held_out` where that can be; else classes of one member train, and of the others the share is drawn without regard to classes.

    Args:
        targets: (samples,), classes.
        share: between 0 and 1; at least one sample is held out, and at least one trains.
        seed: of which.

    Returns:
        Indices of both, and whether each class is in proportion.

    Raises:
        InputError: fewer than two samples that can be held out.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(targets))
    try:
        train, rest = train_test_split(everything, test_size=share, random_state=seed, stratify=targets)
        return np.sort(train), np.sort(rest), True
    except ValueError:
        pass
    values, counts = np.unique(targets, return_counts=True)
    several = everything[np.isin(targets, values[counts > 1])]
    if len(several) < 2:
        raise InputError(f"cannot hold out {share:.0%} of {len(targets)} samples of {len(values)} classes")
    count = min(max(1, round(share * len(several))), len(several) - 1)
    rest = np.sort(np.random.default_rng(seed).permutation(several)[:count])
    return np.setdiff1d(everything, rest), rest, False
