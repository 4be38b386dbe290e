"""A plain causal convolution, for the networks that continuous kernels are compared with."""

import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv1d(nn.Conv1d):
    """torch's Conv1d with zeros on the left alone: as long as its input, and blind to the future.

    Args:
        in_channels, out_channels, kernel_size, dilation: as in torch.nn.Conv1d.
        weight_norm: learn each output channel's direction and length apart, kernel = weight_g * weight / |weight|.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, dilation: int = 1, weight_norm: bool = False):
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation)
        self.weight_g = nn.Parameter(self.weight.detach().norm(dim=(1, 2), keepdim=True)) if weight_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, length) -> (batch, out_channels, length)."""
        left = (self.kernel_size[0] - 1) * self.dilation[0]
        return F.conv1d(F.pad(x, (left, 0)), self.kernel(), self.bias, dilation=self.dilation)

    def kernel(self) -> Tensor:
        """The kernel as it is applied, its last tap the present one: (out_channels, in_channels, kernel_size)."""
        if self.weight_g is None:
            return self.weight
        return self.weight * (self.weight_g / self.weight.norm(dim=(1, 2), keepdim=True))
