"""What the command lines share: how they fail, and how they read options."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from flexseq.errors import InputError


@contextmanager
def failing_in_one_sentence(how_to_go_on: str) -> Iterator[None]:
    """Exit status 2 and the error's sentence on bad input, 130 on Ctrl-C.

    Args:
        how_to_go_on: said after an interruption.
    """
    try:
        yield
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        print(f"interrupted; {how_to_go_on}", file=sys.stderr)
        raise typer.Exit(130) from error


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def absolute(folder: str | None) -> str | None:
    """A folder's full path, which means the same wherever a run is continued from."""
    return None if folder is None else os.path.abspath(os.path.expanduser(folder))
