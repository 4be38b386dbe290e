"""From features over time to logits."""

import torch
from torch import Tensor, nn

from flexseq.checks import check_tensor
from flexseq.errors import InputError, unknown_name
from flexseq.models.norms import dtype_of_sums

HEADS = ("last", "mean", "sequence")


class SequenceHead(nn.Linear):
    """A linear map of the last time step, of the mean over time, or of every step. Weights N(0, std 0.01), bias 0.

    Args:
        width, num_classes: channels before and after.
        mode: "last" | "mean" | "sequence".
    """

    def __init__(self, width: int, num_classes: int, mode: str):
        super().__init__(width, num_classes)
        if mode not in HEADS:
            raise unknown_name("head", mode, HEADS)
        self.mode = mode
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, width, length) -> (batch, num_classes), or (batch, num_classes, length) for "sequence".

        Args:
            features: 0 at padded steps.
            lengths: (batch,), of the series without padding; all are whole where None.
        """
        if self.mode == "sequence":
            return super().forward(features.mT).mT
        if lengths is None:
            return super().forward(features[..., -1] if self.mode == "last" else features.mean(-1))
        if self.mode == "mean":
            total = features.sum(-1, dtype=dtype_of_sums(features))
            return super().forward((total / lengths[:, None]).to(features.dtype))
        last = (lengths - 1).view(-1, 1, 1).expand(-1, features.shape[1], 1)
        return super().forward(features.gather(2, last)[..., 0])


def check_sequences(model: nn.Module, x: Tensor, in_channels: int) -> None:
    """Raise InputError unless x is (batch, in_channels, length) with at least one step."""
    check_tensor(type(model).__name__, "its input", x)
    if x.ndim != 3 or x.shape[1] != in_channels or x.shape[2] == 0:
        raise InputError(
            f"{type(model).__name__} expected sequences of shape (batch, {in_channels}, length), at least one step long, "
            f"got shape {tuple(x.shape)}"
        )


def valid_steps(model: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths on the device of x, and which steps are no padding: (batch,) and (batch, 1, length).

    Raises:
        InputError: lengths that are no integers, or not one for each series; on a CPU also ones below 1 or above the batch's.
        RuntimeError: such ones on another device, or in a compiled program, which does not wait to find out.
    """
    check_tensor(type(model).__name__, "lengths", lengths)
    if lengths.shape != x.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise InputError(
            f"{type(model).__name__} expected {len(x)} integers as lengths, got {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    good = (lengths >= 1) & (lengths <= x.shape[2])
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(good.all(), f"lengths expected 1 to {x.shape[2]}")
    elif not good.all():
        wrong = int(lengths[~good][0])
        raise InputError(f"{type(model).__name__} expected lengths of 1 to {x.shape[2]}, the steps of its input, got {wrong}")
    lengths = lengths.to(x.device, torch.int64)
    return lengths, torch.arange(x.shape[2], device=x.device) < lengths[:, None, None]
