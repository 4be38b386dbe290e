"""Dropout that does not wait for random numbers on a CPU."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """torch's dropout; on a CPU it draws 16 random bits for each element instead of a double, and keeps a byte for it instead of four.

    The probability is taken to the nearest 1 / 65536 there, and outputs are scaled by that.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * 2**16)
        if not self.training or dropped in (0, 2**16) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four numbers of 16 bits in each
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return (x * keep).mul_(2**16 / (2**16 - dropped))
