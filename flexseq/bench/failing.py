"""How the command line fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
