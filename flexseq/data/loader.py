"""Batches whose order follows from the seed and the epoch alone, so that a resumed run repeats what an uninterrupted one does."""

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flexseq.data.dataset import Split
from flexseq.processes import share


class EpochOrder:
    """The order of the samples in each epoch: Lightning tells the epoch through `set_epoch`, as it does to any sampler.

    Args:
        samples: in the split.
        batch_size: of all processes together.
        seed: of the shuffling; None for the split's own order.
        shared: whether each process of torch.distributed gets its share of every batch.
    """

    def __init__(self, samples: int, batch_size: int, seed: int | None, shared: bool = False):
        self.samples, self.batch_size, self.seed, self.shared = samples, batch_size, seed, shared
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def batches(self) -> list[list[int]]:
        """Positions in the split, batch by batch; shuffled by (seed, epoch) unless the seed is None. A process's share may be empty."""
        if self.seed is None:
            order = torch.arange(self.samples)
        else:
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
            order = torch.randperm(self.samples, generator=generator)
        rank, processes = share() if self.shared else (0, 1)
        return [batch[rank::processes].tolist() for batch in order.split(self.batch_size)]


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed for each (seed, epoch)."""
    return (seed * 1_000_003 + epoch) % 2**63


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C in a terminal reaches all processes; the one that trains ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Batches(Dataset):
    def __init__(self, split: Split):
        self.split = split

    def __getitem__(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        return self.split.batch(positions)


class EpochLoader:
    """Iterates over a split in batches, in workers where there are any.

    The epoch is asked for when the first batch is, not when the iterator is made: Lightning makes the iterator of a resumed run before
    it knows at which epoch that goes on, and torch's DataLoader would draw its first batches there and then.

    Args:
        split: what to iterate over.
        batch_size: samples in each batch; the last one may have fewer.
        seed: of the shuffling; None for the split's own order.
        workers: processes that prepare batches; 0 for none.
        pin_memory: for a faster copy to a GPU.
        shared: see `EpochOrder`.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int | None = None,
        workers: int = 0,
        pin_memory: bool = False,
        shared: bool = False,
    ):
        self.split = split
        self.sampler = EpochOrder(len(split), batch_size, seed, shared)
        self.batch_sampler = None  # where there is a sampler, Lightning looks for this too
        self.workers = workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator: nothing below runs before the first batch is asked for.
        yield from DataLoader(
            _Batches(self.split),
            batch_size=None,
            sampler=self.sampler.batches(),
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts if self.workers else None,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # workers' seeds are not to be drawn from the generator that dropout uses
        )
