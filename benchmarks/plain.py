"""The opponent: continuous convolutions done straightforwardly, as research code does them.

Every forward pass evaluates the kernel network and makes every kernel; long causal kernels are transformed one by one, padded to the
signal's length, at whatever FFT length results, and contracted with a complex einsum; short ones, and all images, go through torch's direct
convolution. Same parameters, same numbers: `PlainConv` wraps a flexseq layer, `plain_network` a network.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexseq.nn.continuous import ContinuousConv
from flexseq.positions import tap_positions

FFT_FROM = 50
"""Taps from which a 1-D kernel goes through FFTs."""


class PlainConv(nn.Module):
    """A continuous convolution's parameters, applied plainly."""

    def __init__(self, layer: ContinuousConv):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if layer.kernel_size is None:
            layer.kernel_size = layer._size_for(x.shape[2:])
        keep = [(0, size) for size in layer.kernel_size]
        if layer.mask is not None:
            row = torch.cat(layer.mask.in_a_row()).tolist()
            keep = layer.mask.kept_taps(layer.kernel_size, row, causal=layer.causal)
        positions = tap_positions(layer.kernel_size, causal=layer.causal, keep=keep, device=x.device)
        kernel = layer.kernel_network(positions)
        if layer.mask is not None:
            kernel = kernel * layer.mask(positions)
        kernel = kernel.view(layer.out_channels, layer.in_channels // layer.groups, *kernel.shape[1:])
        if layer.ndim == 1 and layer.causal and kernel.shape[-1] >= FFT_FROM:
            return causal_fft_conv(x, kernel, layer.bias)
        padding = []
        for taps in reversed(kernel.shape[2:]):
            first = taps - 1 if layer.causal else (taps - 1) // 2
            padding += [first, taps - 1 - first]
        conv = (F.conv1d, F.conv2d, F.conv3d)[layer.ndim - 1]
        return conv(F.pad(x, padding), kernel, layer.bias, groups=layer.groups)


def causal_fft_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """y[t] = sum_j kernel[j] x[t - (k - 1) + j], with one transform for each signal and each of the out * in kernels.

    Depthwise, where kernel is (channels, 1, taps), the spectra are multiplied.
    """
    taps, length = kernel.shape[-1], x.shape[-1]
    x = F.pad(x, (taps - 1, 0))
    if x.shape[-1] % 2:
        x = F.pad(x, (0, 1))
    kernel = F.pad(kernel, (0, x.shape[-1] - taps))
    signals, kernels = torch.fft.rfft(x), torch.fft.rfft(kernel).conj()
    depthwise = kernel.shape[1] == 1 and x.shape[1] == kernel.shape[0]
    spectrum = signals * kernels[:, 0] if depthwise else torch.einsum("bif,oif->bof", signals, kernels)
    return torch.fft.irfft(spectrum, n=x.shape[-1])[..., :length] + bias[:, None]


def plain_network(model: nn.Module) -> nn.Module:
    """A copy of a network with plain convolutions, and torch's dropout, in the place of its own."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, ContinuousConv):
                setattr(module, name, PlainConv(child))
            elif isinstance(child, nn.Dropout):
                setattr(module, name, nn.Dropout(child.p).train(child.training))
    return model
