"""Normalisation that leaves padding out, and whose statistics can be those of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flexseq.functional.dtypes import at_least_float32


class StepNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each time step: (batch, channels, length)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation by the statistics of all processes of torch.distributed, on a CPU as on a GPU, for any number of axes.

    Where there is one process it is torch's own. `synchronise_batch_norm` puts it into a model.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected an input of at least two axes, got shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        return batch_norm(self, input) if self._needs_others() else super().forward(input)

    def _needs_others(self) -> bool:
        return self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Let every batch normalisation of a model, in place, use the statistics of all processes.

    torch's own `SyncBatchNorm.convert_sync_batchnorm` does the same for GPUs alone. Parameters and state_dict stay what they were.

    Returns:
        The model.
    """
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SynchronisedBatchNorm
    return model


def normalise(norm: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """Normalise series of unequal lengths: padded steps count in no statistics, and become 0.

    Args:
        norm: nn.BatchNorm1d, StepNorm, or an nn.GroupNorm of one group.
        x: (batch, channels, length).
        valid: (batch, 1, length), true where a step is one of the series; None where all are.
    """
    in_training = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    if valid is None and not (in_training and x.shape[0] * x.shape[2] == 1):  # torch's own refuses a single step
        return norm(x)
    if in_training:
        y = batch_norm(norm, x, valid)
    elif isinstance(norm, nn.GroupNorm) and valid is not None:
        y = _series_norm(norm, x, valid)
    else:
        y = norm(x)
    return y if valid is None else y.masked_fill(~valid, 0)


def batch_norm(norm: Any, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Batch normalisation in training, with statistics of valid steps alone and, if it is a synchronised one, of all processes.

    Args:
        norm: nn.BatchNorm1d, 2d, 3d or SynchronisedBatchNorm; its running statistics are updated.
        x: (batch, channels, *grid).
        valid: (batch, 1, *grid); all where None.
    """
    axes = [0, *range(2, x.ndim)]
    column = (1, -1, *[1] * (x.ndim - 2))
    wide = x.to(at_least_float32(x.dtype))
    together = isinstance(norm, SynchronisedBatchNorm) and norm._needs_others()
    exact = wide.dtype if valid is None else dtype_of_sums(wide)
    if valid is None:
        count, kept = wide.new_tensor(x.numel() / x.shape[1]), wide
    else:
        count, kept = valid.sum().to(exact), wide.masked_fill(~valid, 0)
    total = torch.cat([kept.sum(axes, dtype=exact), count[None]])
    if together:
        total = _sum_over_processes(total)
    count = total[-1].detach().clamp_min(1)
    mean = total[:-1] / count
    centred = wide - mean.to(wide.dtype).view(column)
    if valid is not None:
        centred = centred.masked_fill(~valid, 0)
    squares = centred.square().sum(axes, dtype=exact)
    if together:
        squares = _sum_over_processes(squares)
    variance = squares / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
            unbiased = variance * count / (count - 1).clamp_min(1)
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
    y = centred * torch.rsqrt(variance + norm.eps).to(wide.dtype).view(column)
    if norm.affine:
        y = y * norm.weight.view(column) + norm.bias.view(column)
    return y.to(x.dtype)


def _series_norm(norm: nn.GroupNorm, x: Tensor, valid: Tensor) -> Tensor:
    """Normalisation over the channels and the valid steps of each series."""
    assert norm.num_groups == 1
    count = valid.sum((1, 2), keepdim=True).clamp_min(1) * x.shape[1]
    exact = dtype_of_sums(x)
    mean = x.masked_fill(~valid, 0).sum((1, 2), keepdim=True, dtype=exact) / count
    centred = (x - mean.to(x.dtype)).masked_fill(~valid, 0)
    variance = centred.square().sum((1, 2), keepdim=True, dtype=exact) / count
    y = centred * torch.rsqrt(variance + norm.eps).to(x.dtype)
    return y if norm.weight is None else y * norm.weight[:, None] + norm.bias[:, None]


def dtype_of_sums(x: Tensor) -> torch.dtype:
    """Wide enough that sums do not depend on how much padding they run over."""
    return torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _sum_over_processes(values: Tensor) -> Tensor:
    return _AllReduce.apply(values)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; a gradient at one of them reaches the terms of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad
