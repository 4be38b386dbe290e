"""The one exception that flexseq raises for what a user can put right."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, said in one sentence: which argument, the value it had, and what was expected.

    The command line prints it without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a list, with the nearest names that are.

    Example:
        >>> str(unknown_name("kernel", "magnett", ["magnet", "siren"]))
        "unknown kernel 'magnett': did you mean 'magnet'? Known: magnet, siren"
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f" did you mean {' or '.join(map(repr, near))}?" if near else ""
    return InputError(f"unknown {kind} {name!r}:{hint} Known: {', '.join(known)}")
