"""What a dataset is to the rest of flexseq: three splits of (inputs, targets), and what to call them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""The target of a step that counts neither in the loss nor in the accuracy."""


@dataclass
class Split:
    """Inputs and targets of one split, fetched in batches.

    Args:
        inputs: (samples, channels, *grid), numpy, also memory-mapped; of more samples than the split has.
        targets: of all `inputs`: (samples,), classes as integers or numbers in floating point; (samples, length), a class at each step.
        indices: which samples the split has.
        transform: what is done to a batch of inputs, (batch, channels, *grid) in float32; where there are lengths, of any number of steps.
        lengths: of each series of `inputs` without its padding, (samples,); None where all are whole.
    """

    inputs: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    transform: Callable[[Tensor], Tensor]
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, positions: Sequence[int] | np.ndarray) -> tuple[Any, Tensor]:
        """The samples at these positions within the split.

        Returns:
            Inputs, (batch, channels, *grid), with their lengths as a tuple where there are any, and then only as long as the longest of
            the batch; targets, (batch,) or (batch, length).
        """
        chosen = self.indices[np.asarray(positions, dtype=np.int64)]  # also of no positions
        values = self.inputs[chosen]
        if self.lengths is not None and self.targets.ndim == 1:  # targets of steps are as long as all inputs, and so are outputs
            values = values[:, :, : self.lengths[chosen].max(initial=1)]
        inputs = torch.from_numpy(as_float(values))
        dtype = np.float32 if np.issubdtype(self.targets.dtype, np.floating) else np.int64
        inputs = self.transform(inputs)
        targets = torch.from_numpy(self.targets[chosen].astype(dtype))
        if self.lengths is None:
            return inputs, targets
        return (inputs, torch.from_numpy(self.lengths[chosen].astype(np.int64))), targets

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is started afresh maps the file again; pickled as it is, the whole array would travel.
        state = dict(self.__dict__)
        if isinstance(self.inputs, np.memmap) and self.inputs.flags.c_contiguous:
            state["inputs"] = (self.inputs.filename, self.inputs.dtype, self.inputs.offset, self.inputs.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["inputs"], tuple):
            filename, dtype, offset, shape = state["inputs"]
            state["inputs"] = np.memmap(filename, dtype, "r", offset, shape)
        self.__dict__.update(state)


@dataclass
class Then:
    """One function of a batch, then another."""

    first: Callable[[Tensor], Tensor]
    second: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def as_it_is(x: Tensor) -> Tensor:
    """A transform that leaves batches alone."""
    return x


def as_float(values: np.ndarray) -> np.ndarray:
    """Values in float32; 16-bit integers are audio, and become [-1, 1)."""
    return values.astype(np.float32) / (32768 if values.dtype == np.int16 else 1)


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
        options: how it was made, defaults included.
        augment: what is done to training batches, on the device they are on; None for nothing.
        kind: "classification", "labelling" (a class at each step), or "regression" (one number, and no classes).
    """

    name: str
    source: str
    train: Split
    validation: Split
    test: Split
    classes: list[str]
    shape: tuple[int, ...]
    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    augment: Callable[[Tensor], Tensor] | None = None
    kind: str = "classification"

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for each sample or step."""
        return 1 if self.kind == "regression" else len(self.classes)

    @property
    def sizes(self) -> dict[str, int]:
        """Samples in each split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}
