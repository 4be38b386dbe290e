"""What stands beside NIFF layers in networks that stay in the frequency domain.

A spectrum is a complex (batch, channels, *half), torch.fft.rfftn(x, dim=grid axes, norm="forward"): its first bin is the mean. A depthwise
NIFF layer applies to it as `spectrum * layer.sample_spectrum()[:, 0]`.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.errors import InputError
from flexseq.functional.circular_conv import checked_grid, half_grid, resample, resize_spectrum


class FLCPool(nn.Module):
    """Downsample by two without aliasing: the low half of the spectrum is kept, (batch, channels, *grid) -> half the grid, rounded up.

    From space to space; `FrequencyFLCPool` is the same on spectra.

    Source:
        Grabinski et al. 2022, "FrequencyLowCut Pooling".

    Example:
        >>> FLCPool2d()(torch.ones(1, 3, 8, 7)).shape
        torch.Size([1, 3, 4, 4])
    """

    ndim: ClassVar[int]

    def __init__(self) -> None:  # whose arguments, none, are recorded
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.ndim + 2:
            raise InputError(f"{type(self).__name__} expected shape (batch, channels, and {self.ndim} more), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputError(f"{type(self).__name__} expected real samples, got {x.dtype}; FrequencyFLCPool takes spectra")
        return resample(x, [(size + 1) // 2 for size in x.shape[2:]])


@records_arguments
class FLCPool1d(FLCPool):
    __doc__ = FLCPool.__doc__
    ndim = 1


@records_arguments
class FLCPool2d(FLCPool):
    __doc__ = FLCPool.__doc__
    ndim = 2


@records_arguments
class FrequencyFLCPool(nn.Module):
    """Downsample by two without aliasing, on spectra: (batch, channels, *half of grid) -> that of half the grid, rounded up.

    Args:
        grid: of the signals whose spectra come, which a half spectrum alone does not tell.

    Source:
        Grabinski et al. 2022, "FrequencyLowCut Pooling".

    Example:
        >>> x = torch.randn(2, 3, 8, 9)
        >>> spectrum = FrequencyFLCPool((8, 9))(torch.fft.rfftn(x, dim=(2, 3), norm="forward"))
        >>> torch.allclose(torch.fft.irfftn(spectrum, s=(4, 5), dim=(2, 3), norm="forward"), FLCPool2d()(x), atol=1e-6)
        True
    """

    def __init__(self, grid: Sequence[int]):
        super().__init__()
        self.grid = checked_grid(grid, len(grid))
        self.pooled_grid = tuple((size + 1) // 2 for size in self.grid)

    def forward(self, spectrum: Tensor) -> Tensor:
        _check(self, spectrum)
        if tuple(spectrum.shape[2:]) != half_grid(self.grid):
            raise InputError(f"FrequencyFLCPool expected half spectra of shape {half_grid(self.grid)}, got {tuple(spectrum.shape[2:])}")
        return resize_spectrum(spectrum, self.grid, self.pooled_grid)


@records_arguments
class FrequencyAvgPool(nn.Module):
    """The mean over the grid, from a spectrum: (batch, channels, *half) -> (batch, channels), real.

    Example:
        >>> x = torch.randn(2, 3, 8, 8)
        >>> spectrum = torch.fft.rfftn(x, dim=(2, 3), norm="forward")
        >>> torch.allclose(FrequencyAvgPool()(spectrum), x.mean((2, 3)), atol=1e-6)
        True
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, spectrum: Tensor) -> Tensor:
        _check(self, spectrum)
        return spectrum.flatten(2)[..., 0].real


@records_arguments
class FrequencyLinear(nn.Module):
    """A linear map over channels, on spectra: the 1x1 convolution, whose bias is a constant and so belongs to the first bin alone.

    It gives what the map gives in space; no transform is needed for it, in either domain.

    Args:
        in_channels, out_channels: of the spectra.
        bias: whether a constant is added to each output channel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        super().__init__()
        linear = nn.Linear(in_channels, out_channels, bias=bias)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, spectrum: Tensor) -> Tensor:
        """(batch, in_channels, *half) -> (batch, out_channels, *half)."""
        _check(self, spectrum)
        if spectrum.shape[1] != self.weight.shape[1]:
            raise InputError(f"FrequencyLinear expected {self.weight.shape[1]} channels, got shape {tuple(spectrum.shape)}")
        flat = self.weight.to(spectrum.dtype) @ spectrum.flatten(2)
        if self.bias is not None:
            first = torch.zeros_like(flat[:1])
            first[..., 0] = self.bias.to(flat.dtype)
            flat = flat + first
        return flat.unflatten(2, spectrum.shape[2:])


@records_arguments
class ComplexBatchNorm(nn.Module):
    """Batch normalisation of complex numbers: real and imaginary part whitened together, then mixed by a learned 2 x 2 matrix.

    Args:
        num_features: channels.
        eps: added to both variances.
        momentum: of the running mean and covariance, which eval mode takes.

    Source:
        Trabelsi et al. 2018, "Deep Complex Networks", Sec. 3.5.

    Example:
        >>> y = ComplexBatchNorm(3)(torch.randn(64, 3, 9, dtype=torch.complex64) * 5 + 2)
        >>> abs(y.abs().square().mean().item() - 1) < 1e-3
        True
    """

    running_mean: Tensor
    running_covariance: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.tensor([0.5**0.5, 0.5**0.5, 0.0])[:, None].repeat(1, num_features))
        self.bias = nn.Parameter(torch.zeros(2, num_features))
        self.register_buffer("running_mean", torch.zeros(2, num_features))
        self.register_buffer("running_covariance", torch.tensor([0.5, 0.5, 0.0])[:, None].repeat(1, num_features))

    def forward(self, spectrum: Tensor) -> Tensor:
        """(batch, num_features, *grid), complex, to the same shape."""
        _check(self, spectrum)
        if spectrum.shape[1] != self.bias.shape[1]:
            raise InputError(f"ComplexBatchNorm expected {self.bias.shape[1]} channels, got shape {tuple(spectrum.shape)}")
        flat = spectrum.flatten(2)
        real, imaginary = flat.real, flat.imag
        if self.training:
            mean = torch.stack([real.mean((0, 2)), imaginary.mean((0, 2))])
        else:
            mean = self.running_mean
        real, imaginary = real - mean[0, :, None], imaginary - mean[1, :, None]
        if self.training:
            covariance = torch.stack([real.square().mean((0, 2)), imaginary.square().mean((0, 2)), (real * imaginary).mean((0, 2))])
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_covariance.lerp_(covariance.to(self.running_covariance), self.momentum)
        else:
            covariance = self.running_covariance
        a, c, b = covariance[0] + self.eps, covariance[1] + self.eps, covariance[2]
        # The inverse square root of [[a, b], [b, c]].
        s = (a * c - b * b).clamp_min(self.eps**2 or torch.finfo(a.dtype).tiny).sqrt()  # rounding may leave less than nothing
        scale = 1 / (s * (a + c + 2 * s).sqrt())
        rr, ii, ri = [(part * scale)[:, None] for part in (c + s, a + s, -b)]
        real, imaginary = rr * real + ri * imaginary, ri * real + ii * imaginary
        rr, ii, ri = self.weight[:, :, None]
        real, imaginary = rr * real + ri * imaginary + self.bias[0, :, None], ri * real + ii * imaginary + self.bias[1, :, None]
        return torch.complex(real, imaginary).unflatten(2, spectrum.shape[2:])


def _check(module: nn.Module, spectrum: Tensor) -> None:
    if not spectrum.is_complex() or spectrum.ndim < 3:
        raise InputError(
            f"{type(module).__name__} expected a complex spectrum of shape (batch, channels, *half), got {spectrum.dtype} of shape "
            f"{tuple(spectrum.shape)}"
        )
