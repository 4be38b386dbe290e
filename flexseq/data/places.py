"""Where datasets lie on this machine, and what is kept from one run to the next."""

import os
from pathlib import Path

from flexseq.errors import InputError


def cache_dir() -> Path:
    """$FLEXSEQ_CACHE, else the user's cache folder."""
    import pooch

    return Path(os.environ.get("FLEXSEQ_CACHE") or pooch.os_cache("flexseq"))


def data_dir(name: str) -> Path:
    """Where a dataset is put, and looked for, when no folder is given."""
    return cache_dir() / "data" / name


def existing_folder(path: str | os.PathLike) -> Path:
    """A folder of the user's.

    Raises:
        InputError: missing, no folder, unreadable, or empty.
    """
    folder = Path(path).expanduser()
    try:
        if not folder.exists():
            raise InputError(f"the data folder {folder} does not exist")
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; --data-dir expects the folder that holds the data")
        empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise InputError(f"the data folder {folder} cannot be read: {error.strerror}") from error
    if empty:
        raise InputError(f"the data folder {folder} is empty; give one that holds the data, or --download to fetch it there")
    return folder
