"""Dropout that does not wait for random numbers on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

from flexseq.functional.programs import constant


class Dropout(nn.Dropout):
    """torch's dropout; on a CPU it draws 16 random bits for each element instead of a double, and keeps a byte for it instead of four.

    The probability is taken to the nearest 1 / 65536 there, and outputs are scaled by that.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        dropped = round(self.p * 2**16)
        if dropped in (0, 2**16) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four numbers of 16 bits in each
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return _Scaled.apply(x, keep, 2**16 / (2**16 - dropped))


class _Scaled(torch.autograd.Function):
    """x * keep * scale, for a mask of bytes: torch's own product of the two is many times slower than with the mask made floating first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, keep: Tensor, scale: float) -> Tensor:
        return torch.addcmul(_zero(x.dtype, x.device), keep.to(x.dtype), x, value=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, keep, ctx.scale = inputs
        ctx.save_for_backward(keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return torch.addcmul(_zero(grad.dtype, grad.device), keep.to(grad.dtype), grad, value=ctx.scale), None, None


@constant
def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)
