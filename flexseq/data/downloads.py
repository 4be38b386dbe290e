"""Fetching archives and unpacking them: whole or not at all, checked where a checksum is known."""

import lzma
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from flexseq.errors import InputError
from flexseq.files import as_readable_as_new
from flexseq.processes import alone

TIMEOUT = 30.0
"""Seconds that a server may say nothing at all."""
SLOWEST, WINDOW = 500, 30.0
"""Bytes a second that it has to give on average, over so many seconds."""
MAGIC = {".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK", ".xz": b"\xfd7zXZ", ".bz2": b"BZh", ".npz": b"PK", ".npy": b"\x93NUMPY"}
"""What files begin with, by the ends of their names."""


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
    with alone(folder / name, wait=True):  # of several processes one fetches, and the others find it
        if sha256 is None and not (folder / name).is_file():
            print(f"{name}: no checksum is known, the download is not verified", flush=True)
        reasons = []
        for url in urls:
            try:
                pooch.get_logger().setLevel("WARNING")
                known = None if sha256 is None else f"sha256:{sha256}"
                is_there = (folder / name).is_file()
                if not is_there:
                    print(f"fetching {url} into {folder}", flush=True)
                path = Path(pooch.retrieve(url, known, fname=name, path=folder, downloader=_download))
                if not is_there:
                    as_readable_as_new(path)
                return path
            except (requests.RequestException, OSError, ValueError) as error:  # ValueError: pooch's word for another checksum
                reasons.append(f"{url} ({_reason(error)})")
    raise InputError(
        f"could not fetch {name} from {' nor '.join(reasons)}. Fetch it by hand, put it into {folder} and run again; "
        "or run the task `digits`, which needs no download"
    )


def _download(url: str, output_file: str, _: Any) -> None:
    """Write what an address gives to a file, as pooch's own downloader does, and look whether it can be what was asked for.

    Raises:
        requests.RequestException: no answer; one that is not all that it says to be, a page in place of a file, or hardly any bytes for
        long.
    """
    import requests
    import urllib3

    try:
        received, expected = _receive(url, output_file)
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(f"cut off: {str(error)[:200]}") from error
    if not received:
        raise requests.RequestException("an empty answer")
    if expected is not None and received != expected:
        raise requests.RequestException(f"cut off after {received:,} of {expected:,} bytes")
    with open(output_file, "rb") as file:
        head = file.read(512)
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise requests.RequestException("a web page, not the file")
    magic = next((magic for suffix, magic in MAGIC.items() if urlsplit(url).path.endswith(suffix)), None)
    if magic is not None and not head.startswith(magic):
        raise requests.RequestException(f"not the kind of file that its name says, it begins with {head[:8]!r}")


def _receive(url: str, output_file: str) -> tuple[int, int | None]:
    """Bytes received, and how many the server said there are."""
    import requests
    from tqdm import tqdm

    with requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        encoded = "Content-Encoding" in response.headers
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdigit() and not encoded else None
        received, began, in_window = 0, time.monotonic(), 0
        with open(output_file, "wb") as file, tqdm(total=expected, unit="B", unit_scale=True, leave=False) as bar:
            while chunk := response.raw.read1(2**16, decode_content=True):
                file.write(chunk)
                received, in_window = received + len(chunk), in_window + len(chunk)
                bar.update(len(chunk))
                now = time.monotonic()
                if now - began > WINDOW:
                    if in_window < SLOWEST * (now - began):
                        raise requests.Timeout(f"fewer than {SLOWEST:,} bytes a second for {WINDOW:.0f} s")
                    began, in_window = now, 0
    return received, expected


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
    import requests

    text = str(error)
    if isinstance(error, ValueError) and not isinstance(error, requests.RequestException):
        return "its SHA-256 is not the known one" if "hash" in text.lower() else text
    return text if len(text) < 300 else f"{text[:300]} ..."


def unpack_tar(archive: Path, target: Path) -> None:
    """Unpack a tar archive into the folder `target`, which appears when all of it is there; nothing where it is there already.

    Raises:
        InputError: not an archive; a truncated or altered one, by its own checksums and its end; one with a member that leads outside, a
            link or a device.
    """
    with alone(target, wait=True):  # of several processes one unpacks, and the others find it
        if not target.exists():
            _unpack_tar(archive, target)


def _unpack_tar(archive: Path, target: Path) -> None:
    try:
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
            _check_end(tar)
        part.chmod(0o755)
        part.rename(target)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{archive} could not be unpacked into {target}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError unless an archive ends where its marker says; reading on compares the checksum of compressed ones.

    tarfile takes a member's broken head, and a file that stops between two members, for the end.
    """
    stream: Any = tar.fileobj
    stream.seek(tar.offset)
    marker = stream.read(512)
    if len(marker) < 512 or marker.strip(b"\0"):
        raise tarfile.ReadError("it is truncated or altered: there is no mark of its end")
    while stream.read(2**20):
        pass
