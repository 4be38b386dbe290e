"""What has to be done differently while torch makes a program of what is computed."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
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


CONSTANTS = 64
"""Results of each function that `constant` caches."""
CAPTURED: dict[int, Any] = {}
"""Constants in CUDA graphs, which hold their addresses: nobody tells when a graph is gone."""


def constant(make: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a function that makes tensors from its arguments alone, the last of which is their device: they are cached.

    For each stream by itself, since on another one they may not be there yet. While a CUDA graph is captured nothing is added, whose memory
    would be the graph's; what trying out the step before has left is taken.
    """
    cache: dict[Any, Any] = {}
    lock = threading.RLock()

    @functools.wraps(make)
    def get(*arguments: Any) -> Any:
        device: torch.device = arguments[-1]
        if is_recorded_now():
            return make(*arguments)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            with lock:
                found = next((value for (same, _), value in cache.items() if same == arguments), None)
            if found is None:
                return make(*arguments)
            CAPTURED[id(found)] = found
            return found
        key = arguments, torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0
        with lock:
            value = cache.get(key)
            if value is None:
                with torch.inference_mode(False), torch.no_grad():  # for later calls, which may need gradients
                    value = make(*arguments)
                while len(cache) >= CONSTANTS:
                    del cache[next(iter(cache))]
                cache[key] = value
        return value

    return get
