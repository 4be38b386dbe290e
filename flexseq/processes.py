"""Which of several processes this is, and what it has for itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from flexseq.errors import InputError


def is_first_process() -> bool:
    """Whether this process is the one that writes files and prints; before torch.distributed runs, too."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    if "RANK" in os.environ:  # torchrun
        return int(os.environ["RANK"]) == 0
    if "SLURM_PROCID" in os.environ and "LOCAL_RANK" not in os.environ:  # srun starts all processes by itself
        return int(os.environ["SLURM_PROCID"]) == 0
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


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
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
