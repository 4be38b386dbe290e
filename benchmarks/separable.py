"""Networks of depthwise convolutions, as most long-convolution networks are: separable FlexConvs, and S4D to compare them with."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flexseq as fs


class S4D(nn.Module):
    """Diagonal state space layer, one system of `states` / 2 pairs of complex states for each channel.

    y = k * x + d x with k[t] = 2 Re sum_n c_n (exp(dt a_n) - 1) / a_n exp(t dt a_n), convolved causally through FFTs; then GELU and a gated
    linear map over channels.

    Source:
        Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models": zero-order hold, S4D-Lin.
    """

    def __init__(self, channels: int, states: int = 64, dt_min: float = 1e-3, dt_max: float = 0.1):
        super().__init__()
        pairs = states // 2
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(dt_min), math.log(dt_max)))
        self.log_decay = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.frequency = nn.Parameter((math.pi * torch.arange(pairs)).repeat(channels, 1))
        self.c = nn.Parameter(torch.randn(channels, pairs, 2) / math.sqrt(2))
        self.d = nn.Parameter(torch.randn(channels))
        self.gate = nn.Conv1d(channels, 2 * channels, 1)

    def kernel(self, length: int) -> Tensor:
        """(channels, length)."""
        a = torch.complex(-self.log_decay.exp(), self.frequency)
        exponent = a * self.log_dt.exp()[:, None]
        c = torch.view_as_complex(self.c) * (exponent.exp() - 1) / a
        powers = (exponent[..., None] * torch.arange(length, device=a.device)).exp()
        return 2 * torch.einsum("hn,hnl->hl", c, powers).real

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, length) -> the same."""
        length = x.shape[-1]
        spectrum = torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * spectrum, n=2 * length)[..., :length]
        return F.glu(self.gate(F.gelu(y + x * self.d[:, None])), dim=1)


class SeparableConv(nn.Module):
    """A depthwise FlexConv, then a linear map over channels."""

    def __init__(self, channels: int, mask_sigma: float):
        super().__init__()
        self.depthwise = fs.FlexConv1d(channels, channels, causal=True, groups=channels, mask_sigma=mask_sigma)
        self.mixer = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, length) -> the same."""
        return self.mixer(self.depthwise(x))


class SeparableBlock(nn.Module):
    """[norm, GELU, separable FlexConv, GELU, linear map, GELU] plus the input, as in CCNN."""

    def __init__(self, channels: int, mask_sigma: float):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.conv = SeparableConv(channels, mask_sigma)
        self.linear = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, length) -> the same."""
        h = F.gelu(self.conv(self.norm(x)))
        return x + F.gelu(self.linear(h))


class S4DBlock(nn.Module):
    """[norm, S4D] plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.layer = S4D(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, length) -> the same."""
        return x + self.layer(self.norm(x))


def network(blocks: list[nn.Module], channels: int, num_classes: int = 10) -> nn.Sequential:
    """A linear map to so many channels, the blocks, the mean over time, logits: (batch, 1, length) -> (batch, num_classes)."""
    return nn.Sequential(nn.Conv1d(1, channels, 1), *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def separable_network(depth: int, channels: int, mask_sigma: float) -> nn.Sequential:
    """Of separable FlexConvs."""
    return network([SeparableBlock(channels, mask_sigma) for _ in range(depth)], channels)


def s4d_network(depth: int, channels: int) -> nn.Sequential:
    """Of S4D layers."""
    return network([S4DBlock(channels) for _ in range(depth)], channels)
