"""What a dataset is to the rest of flexseq: three splits of (inputs, targets), and what to call them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Split:
    """Inputs and targets of one split, fetched in batches.

    Args:
        inputs: (samples, channels, *grid), numpy, also memory-mapped; of more samples than the split has.
        targets: (samples,), classes as integers, of all `inputs`.
        indices: which samples the split has.
        transform: what is done to a batch of inputs, (batch, channels, *grid) in float32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    transform: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, positions: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """The samples at these positions within the split: inputs (batch, channels, *grid), targets (batch,)."""
        chosen = self.indices[np.asarray(positions)]
        inputs = torch.from_numpy(self.inputs[chosen].astype(np.float32))
        return self.transform(inputs), torch.from_numpy(self.targets[chosen].astype(np.int64))


@dataclass
class Dataset:
    """A dataset ready for training.

    Args:
        name: of the task.
        source: where it came from, a folder or a package.
        train, validation, test: the splits.
        classes: names, in the order of the targets.
        shape: (channels, *grid) of one input.
        notes: what a reader of results should know: files left out, for instance.
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    classes: list[str]
    shape: tuple[int, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """Samples in each split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}
