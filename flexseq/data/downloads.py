"""Fetching archives and unpacking them: whole or not at all, checked where a checksum is known."""

import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from flexseq.errors import InputError


def fetch(urls: Sequence[str], sha256: str | None, folder: Path) -> Path:
    """Download one file, from the first address that gives it, unless it is there already.

    Args:
        urls: complete addresses of the same file.
        sha256: its checksum; None where none is known, which is said.
        folder: where to; made where missing. The file has a temporary name there until it is complete and checked.

    Returns:
        The file's path.

    Raises:
        InputError: none of the addresses gave it, or what came has another checksum. Says what was wanted, from where, and where to put it.
    """
    import pooch
    import requests

    name = urls[0].rpartition("/")[2]
    if sha256 is None:
        print(f"{name}: no checksum is known, the download is not verified", flush=True)
    reasons = []
    for url in urls:
        try:
            pooch.get_logger().setLevel("WARNING")
            known = None if sha256 is None else f"sha256:{sha256}"
            print(f"fetching {url} into {folder}", flush=True)
            downloader = pooch.HTTPDownloader(progressbar=True, timeout=30)
            return Path(pooch.retrieve(url, known, fname=name, path=folder, downloader=downloader))
        except (requests.RequestException, OSError, ValueError) as error:  # ValueError: pooch's word for another checksum
            reasons.append(f"{url} ({_reason(error)})")
    raise InputError(
        f"could not fetch {name} from {' nor '.join(reasons)}. Fetch it by hand, put it into {folder} and run again; "
        "or run the task `digits`, which needs no download"
    )


def checksum_of(path: Path) -> str | None:
    """The SHA-256 of a file; None where there is none."""
    import pooch

    return pooch.file_hash(str(path)) if path.is_file() else None


def set_aside_if_altered(path: Path, sha256: str) -> bool:
    """Whether a file is there, as it should be; one with another checksum is kept under another name, and said to be."""
    found = checksum_of(path)
    if found is not None and found != sha256:
        set_aside(path, "its SHA-256 is not the known one")
    return found == sha256


def set_aside(path: Path, why: str) -> None:
    """Keep a file that is truncated or altered under another name, and say so.

    Raises:
        InputError: a folder that cannot be written to.
    """
    aside = path.with_name(f"{path.name}.altered")
    try:
        path.replace(aside)
    except OSError as error:
        raise InputError(f"{path} is truncated or altered ({why}), and cannot be put aside: {error.strerror}") from error
    print(f"{path} is truncated or altered: {why}; kept as {aside}, not used", flush=True)


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):
        return "its SHA-256 is not the known one"
    text = str(error)
    return text if len(text) < 120 else type(error).__name__


def unpack_tar(archive: Path, target: Path) -> None:
    """Unpack a tar archive into the folder `target`, which appears when all of it is there.

    Raises:
        InputError: not an archive, a truncated one, or one with a member that leads outside, a link or a device.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part"))
    except OSError as error:
        raise InputError(f"{archive} could not be unpacked into {target}: {error.strerror}") from error
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise InputError(f"{archive} holds {member.name!r}, which is no plain file inside the archive; nothing was unpacked")
                destination = part.joinpath(*path.parts)
                if member.isdir():
                    destination.mkdir(parents=True, exist_ok=True)
                    continue
                destination.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None  # a plain file has contents
                with source, open(destination, "wb") as out:
                    shutil.copyfileobj(source, out, 2**20)
        part.chmod(0o755)
        part.rename(target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive} could not be unpacked into {target}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
