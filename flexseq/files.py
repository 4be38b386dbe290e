"""Write a file whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexseq.errors import InputError

UNFINISHED = ".part"
"""In the hidden names of files that are being written."""
WRITERS = ("PytorchStreamWriter", "iostream", "I/O error", "file write failed")
"""What torch and safetensors say, in errors of their own types, of a file that they could not write."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, sync that file and rename it to `path`.

    A process killed inside the block leaves what stood at `path` as it was. On an error the temporary file is removed. A link stays, and
    what it leads to is replaced.

    Raises:
        InputError: a place that holds no plain file; torch or safetensors could not write, as on a full disk.
        OSError: no permission, a full disk.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(target) as part:
        ...     _ = part.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    given, path = Path(path), Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {given}: it is {'a folder' if path.is_dir() else 'no plain file'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: numpy and matplotlib choose the format by it. A name may have 255 bytes.
    part = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}{UNFINISHED}{path.suffix[:20]}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the system takes the umask off
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:
        if isinstance(error, OSError) or not any(word in str(error) for word in WRITERS):
            raise
        raise InputError(f"cannot write {given}: {_free(path)}") from error
    finally:
        part.unlink(missing_ok=True)


def _free(path: Path) -> str:
    left = os.statvfs(path.parent)
    return "the disk is full" if left.f_bavail * left.f_frsize < 2**22 else "the disk gave an error"


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left in a folder; nobody else may be writing there."""
    for part in folder.rglob(f".*{UNFINISHED}*"):
        if part.is_file() and not part.is_symlink():
            part.unlink(missing_ok=True)


def as_readable_as_new(path: Path) -> None:
    """Give a file the permissions that a new one gets here; temporary files are often their owner's alone."""
    probe = path.with_name(f".{secrets.token_hex(6)}{UNFINISHED}")
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        path.chmod(stat.S_IMODE(probe.stat().st_mode))
    finally:
        probe.unlink(missing_ok=True)
