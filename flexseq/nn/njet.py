"""N-Jet: kernels as learned mixes of a Gaussian's derivatives, of a learned width."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flexseq.arguments import records_arguments
from flexseq.checks import check_numbers, is_integer
from flexseq.errors import InputError
from flexseq.kernels.hermite import Hermite
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.layer import is_readable
from flexseq.nn.mask import GaussianMask
from flexseq.positions import Keep, tap_positions

MOST_ORDER = 16
"""Of a derivative: the polynomials of higher ones leave what float32 can tell apart."""
NARROWEST = 0.25
"""Of a Gaussian, in taps: narrower ones are a single tap, and of an even kernel, which has none in its middle, nothing."""


class NJetConv(ContinuousConv):
    """Convolution with mixes of a Gaussian's derivatives, sigma^n d^n G up to an order, whose width sigma is learned.

    G sums to 1 over the taps at training's resolution (a causal one to that with its mirror image), so that order 0 alone is a Gaussian
    blur whatever its width and the kernel's size.

    Args:
        in_channels, out_channels: multiples of `groups`.
        kernel_size: taps along each axis before cropping; where None, taken from the first training batch and kept (in the state_dict
            too): a sequence's length, or for images the size, plus one where that is even.
        causal: an output sees only the present and the past: half of each function; else the layer is centred and zero-padded "same".
        groups: as in torch.nn; in_channels for a depthwise layer.
        bias: whether a learned constant is added to each output channel; it starts at 0.
        order: highest total order of a derivative, at least 1.
        sigma: where the width starts, for each axis, in units of position ([-1, 1] is the whole kernel); above 0.
        extent: the kernel is cropped at so many sigma; above 0.
        variance_preserving: scale the readout so that a white input and the output have the same variance.
        method: "auto", "direct", "fft" or "overlap"; see `flexseq.functional.long_conv`.

    Raises:
        InputError: arguments out of range.

    Source:
        Pintea et al. 2021, "Resolution learning in deep convolutional networks using scale-space theory"; a baseline of FlexConv, Table 4.

    Example:
        >>> import torch
        >>> layer = NJetConv1d(3, 8, 101, sigma=0.1)
        >>> layer(torch.randn(2, 3, 200)).shape, layer.sample_kernel().shape
        (torch.Size([2, 8, 200]), torch.Size([8, 3, 41]))
    """

    mask: GaussianMask

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None = None,
        *,
        causal: bool = False,
        groups: int = 1,
        bias: bool = True,
        order: int = 3,
        sigma: float = 0.075,
        extent: float = 4.0,
        variance_preserving: bool = False,
        method: str = "auto",
    ):
        name = type(self).__name__
        check_numbers(name, above=0, sigma=sigma, extent=extent)
        if not is_integer(order) or not 1 <= order <= MOST_ORDER:
            raise InputError(f"{name} expected an order of at least 1 and at most {MOST_ORDER}, got {order!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            causal=causal,
            groups=groups,
            bias=bias,
            kernel=functools.partial(Hermite, order=order),
            spatial_extent=1.0,
            mask=GaussianMask(self.ndim, mean=float(causal), sigma=sigma, threshold=math.exp(-0.5 * extent**2), learn_mean=False),
            variance_preserving=variance_preserving,
            method=method,
        )

    def basis(self, keep: Keep, *, rounded: bool = False) -> Tensor:
        positions = self._positions(keep)
        column = (self.ndim, *[1] * self.ndim)
        assert self.kernel_size is not None
        narrowest = torch.tensor([NARROWEST * 2 / max(1, size - 1) for size in self.kernel_size], dtype=positions.dtype)
        sigma = self.mask.sigma.to(positions.dtype).abs()
        sigma = sigma + (narrowest.to(sigma.device) - sigma).clamp_min(0).detach()  # the gradient reaches narrower ones, too
        offsets = (positions - self.mask.mean.to(positions.dtype).view(column)) / sigma.view(column)
        basis = self.kernel_network.basis(offsets)
        power = -0.5 * offsets.square().sum(0)
        for size, width in zip(self.kernel_size, sigma, strict=True):
            power = power - self._log_sum_over_taps(size, width)
        window = power.exp()
        if rounded or not is_readable(self.mask.sigma):  # `keep` has more taps than the mask leaves then
            window = window * self.inside(keep).to(window.dtype)
        return self._weighted(torch.cat([basis, torch.ones_like(basis[:1])]) * window, keep)

    def _log_sum_over_taps(self, size: int, width: Tensor) -> Tensor:
        """The logarithm of the sum of exp(-1/2 (x / width)^2) along an axis, at ratio 1 and without a crop."""
        places = tap_positions((size,), causal=self.causal, dtype=width.dtype, device=width.device)[0] - float(self.causal)
        powers = -0.5 * (places / width).square()
        return (2 * powers.exp().sum() - 1).log() if self.causal else powers.logsumexp(0)  # of causal ones the present tap has a 1


@records_arguments
class NJetConv1d(NJetConv):
    __doc__ = NJetConv.__doc__
    ndim = 1


@records_arguments
class NJetConv2d(NJetConv):
    __doc__ = NJetConv.__doc__
    ndim = 2
