"""NIFF done straightforwardly, `niff.py`'s opponent: whole complex transforms, networks run at each call, transforms for each 1x1."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexseq.nn.niff import NIFFConv2d


class PlainNIFF(nn.Module):
    """A depthwise NIFF layer, with the weights of one of flexseq's."""

    def __init__(self, layer: NIFFConv2d):
        super().__init__()
        self.real, self.imaginary = (
            nn.Sequential(*[part for linear in network.linears for part in (_conv(linear), nn.SiLU())], _conv(network.readout))
            for network in (layer.real, layer.imaginary)
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) - n // 2 for n in (height, width))
        frequencies = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
        weight = torch.complex(self.real(frequencies), self.imaginary(frequencies))
        spectrum = torch.fft.fftshift(torch.fft.fft2(x), (2, 3)) * weight
        return torch.fft.ifft2(torch.fft.ifftshift(spectrum, (2, 3))).real


class PlainPointwise(nn.Module):
    """A 1x1 convolution between two transforms."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x)
        parts = F.conv2d(torch.cat([spectrum.real, spectrum.imag]), self.weight)
        return torch.fft.ifft2(torch.complex(*parts.chunk(2))).real


def plain_niff(model: nn.Module) -> nn.Module:
    """A copy of a model, its NIFF layers and the 1x1 convolutions behind them done plainly, with the same weights."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NIFFConv2d):
                setattr(module, name, PlainNIFF(child))
            elif isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and child.stride == (1, 1) and child.bias is None:
                setattr(module, name, PlainPointwise(child))
    return model


def _conv(linear: nn.Module) -> nn.Conv2d:
    weight = linear.weight.detach()
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    with torch.no_grad():
        conv.weight.copy_(weight[..., None, None])
        conv.bias.copy_(linear.bias)
    return conv
