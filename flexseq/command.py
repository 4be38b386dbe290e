"""What the command lines share: how they fail, and how they read options."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from flexseq.errors import InputError


@contextmanager
def failing_in_one_sentence(how_to_go_on: str) -> Iterator[None]:
    """Exit status 2 and the error's sentence on bad input, 130 on Ctrl-C.

    Args:
        how_to_go_on: said after an interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone is no reason to fail
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _say_and_exit(str(error), error)
    except BrokenPipeError as error:  # of `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except OSError as error:
        if error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _say_and_exit(f"{place}{error.strerror}", error)
    except KeyboardInterrupt as error:
        print(f"interrupted; {how_to_go_on}", file=sys.stderr)
        raise typer.Exit(130) from error


def _say_and_exit(sentence: str, error: BaseException) -> NoReturn:
    try:
        print(f"Error: {sentence}", file=sys.stderr)
        sys.stdout.flush()
    except OSError:  # what was printed cannot be written either, as on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(2) from error


def folder_of_results(out: Path | None, default: Path) -> Path:
    """Where results go: what --out says, with "~" for the home folder.

    Raises:
        InputError: an empty name.
    """
    if out is None:
        return default
    if str(out) in ("", "."):
        raise InputError("--out expected the name of a folder, got none: results are not put among what is here")
    return out.expanduser()


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def absolute(folder: str | None) -> str | None:
    """A folder's full path, which means the same wherever a run is continued from."""
    return None if folder is None else os.path.abspath(os.path.expanduser(folder))
