"""Which of several processes this is, and what it has for itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from flexseq.errors import InputError

_BY_ITSELF: ContextVar[bool] = ContextVar("by_itself", default=False)
_HELD: set[IO[str]] = set()
"""Open files that are locked."""


@contextmanager
def by_itself(alone: bool) -> Iterator[None]:
    """Within the block this process trains by itself where `alone`, whatever numbers a scheduler has given it.

    Raises:
        InputError: torchrun started it as one of several.
    """
    if not alone:
        yield
        return
    if int(_number_in("WORLD_SIZE", 1)) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, and --devices and --num-nodes ask for one: give --devices "
            f"{os.environ['WORLD_SIZE']}, or start one without torchrun"
        )
    token = _BY_ITSELF.set(True)
    try:
        yield
    finally:
        _BY_ITSELF.reset(token)


def _forget_locks() -> None:
    """In a forked process, as a loader's worker is: a lock is held until all its copies are closed, and workers outlive a kill."""
    for lock in _HELD:
        lock.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def is_first_process() -> bool:
    """Whether this process is the one that writes files and prints; before torch.distributed runs, too.

    Raises:
        InputError: a variable of the environment that is no number.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    if _BY_ITSELF.get():
        return True
    if _number_in("WORLD_SIZE", 1) > 1 and "RANK" in os.environ:  # torchrun; a rank alone says nothing
        return _number_in("RANK", 0) == 0
    if "SLURM_PROCID" in os.environ and "LOCAL_RANK" not in os.environ:  # srun starts all processes by itself
        return _number_in("SLURM_PROCID", 0) == 0
    return _number_in("LOCAL_RANK", 0) == 0 and _number_in("NODE_RANK", 0) == 0


def _number_in(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"the environment's {variable} expected an integer, got {text!r}: unset it, or start as torchrun does") from error


def say(*words: object) -> None:
    """Print, in the first process alone."""
    if is_first_process():
        print(*words, flush=True)


def wait_for_all() -> None:
    """Go on when all processes have come here, if there are several by now."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def share() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def check_devices(kind: str, devices: int, num_nodes: int) -> None:
    """Raise InputError unless there are so many devices of a kind ("cpu", "cuda", "mps") on this machine."""
    if devices < 1 or num_nodes < 1:
        raise InputError(f"--devices and --num-nodes expected at least 1, got {devices} and {num_nodes}")
    if num_nodes > 1 and "MASTER_ADDR" not in os.environ and "SLURM_JOB_ID" not in os.environ:
        raise InputError(
            f"--num-nodes {num_nodes} needs the first machine's address: start the same command on every machine with MASTER_ADDR, "
            "MASTER_PORT and NODE_RANK (0, 1, ...) set, or by torchrun or srun"
        )
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, os.cpu_count() or 1)
    if devices > there:
        raise InputError(f"--devices expected at most {there}, which is what this machine has of {kind}, got {devices}")


@contextmanager
def alone(place: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other process on this machine holds a place; none can take it while the block runs.

    Args:
        place: a file or folder, there or not; the lock is a hidden file beside it.
        wait: until it is free.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        path = place.with_name(f".{place.name[:100]}.lock")
        lock = open(path, "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"cannot write into {place.parent}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            if _is_at(lock.fileno(), path):
                break
            lock.close()  # whoever had it removed the file: it locks nothing any more
            lock = open(path, "w")  # noqa: SIM115
        _HELD.add(lock)
        try:
            yield True
        finally:
            _HELD.discard(lock)
            path.unlink(missing_ok=True)
    finally:
        lock.close()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
