"""What has to be done differently while torch makes a program of what is computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def as_integers(grid: Sequence[Any]) -> tuple[int, ...]:
    """A shape as Python's numbers, also under torch.jit.trace, which hands out tensors; under torch.compile as it comes."""
    return tuple(int(n) for n in grid) if torch.jit.is_tracing() else tuple(grid)


def is_exporting() -> bool:
    """Whether torch.export makes a program for other machines of what is computed."""
    return bool(getattr(torch.compiler, "is_exporting", lambda: False)())


def is_recorded_now() -> bool:
    """Whether what is computed becomes a program, in which nothing that was computed before may stand as a constant."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Within the block torch.jit.trace records nothing: what is done once is not to be done again by the program."""
    internal: Any = torch._C
    state = internal._get_tracing_state()
    internal._set_tracing_state(None)
    try:
        yield
    finally:
        internal._set_tracing_state(state)
