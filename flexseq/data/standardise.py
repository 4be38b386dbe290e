"""Mean 0 and standard deviation 1, by the training split's statistics."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexseq.data.dataset import as_float

EPSILON = 1e-5
CHUNK = 256


@dataclass(frozen=True)
class Standardise:
    """x -> (x - mean) * scale."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


def standardiser(inputs: np.ndarray, indices: np.ndarray, *, per: str) -> Standardise:
    """A transform that standardises batches like `inputs`, with statistics of the samples at `indices`.

    Args:
        inputs: (samples, channels, *grid), also memory-mapped: read in chunks.
        indices: the training split.
        per: "step": each position of the grid by itself, samples and channels pooled, as the papers' recipe has it;
            "channel": each channel by itself, samples and positions pooled; "all": one mean and deviation.

    Returns:
        x -> (x - mean) / (std + 1e-5).
    """
    axes = {"step": (0, 1), "channel": (0, *range(2, inputs.ndim)), "all": tuple(range(inputs.ndim))}[per]
    total, total_square, count = 0.0, 0.0, 0
    for start in range(0, len(indices), CHUNK):
        chunk = as_float(inputs[np.sort(indices[start : start + CHUNK])]).astype(np.float64)
        total = total + chunk.sum(axes, keepdims=True)
        total_square = total_square + np.square(chunk).sum(axes, keepdims=True)
        count += chunk.size // np.asarray(total).size
    mean = np.asarray(total / count)[0]
    std = np.sqrt(np.maximum(np.asarray(total_square / count)[0] - mean**2, 0))
    return Standardise(*(torch.from_numpy(a.astype(np.float32)) for a in (mean, 1 / (std + EPSILON))))
