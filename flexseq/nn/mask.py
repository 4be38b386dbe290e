"""The learnable Gaussian window that gives a kernel its size."""

import math

import torch
from torch import Tensor, nn

from flexseq.functional import gaussian_mask
from flexseq.functional.band_limits import gaussian_band_limit
from flexseq.positions import kept_taps, taps_inside


class GaussianMask(nn.Module):
    """A Gaussian over positions with learnable mean and sigma for each axis.

    Training gives the parameters of every module of this type a learning rate of their own (`flexseq.param_groups`).

    Args:
        ndim: number of axes.
        mean: where it starts, on every axis; in units of position.
        sigma: how wide it starts, on every axis; in units of position.
        threshold: the kernel is cropped where the mask falls below this value; 0 never crops.
        rotated: learn an angle too; two axes only.
        learn_mean: whether the mean is a parameter.

    Source:
        FlexConv, Eq. 1, and appendix D.3 for the rotation.
    """

    def __init__(self, ndim: int, *, mean: float, sigma: float, threshold: float = 0.1, rotated: bool = False, learn_mean: bool = True):
        super().__init__()
        start = torch.full((ndim,), float(mean))
        if learn_mean:
            self.mean: Tensor = nn.Parameter(start)
        else:
            self.register_buffer("mean", start)
        self.sigma = nn.Parameter(torch.full((ndim,), float(sigma)))
        self.angle = nn.Parameter(torch.zeros(())) if rotated else None
        self.threshold = threshold

    def forward(self, positions: Tensor) -> Tensor:
        """(ndim, *taps) -> (*taps), in [0, 1]."""
        return gaussian_mask(positions, self.mean, self.sigma, self.angle)

    def band_limits(self, sigma_cut: float) -> Tensor:
        """The highest frequency along each axis, (ndim,), in cycles per unit; see `flexseq.max_frequency`."""
        return gaussian_band_limit(1 / self.sigma, self.angle, sigma_cut=sigma_cut)

    def in_a_row(self) -> list[Tensor]:
        """All parameters, in the order in which `kept_taps` takes their numbers."""
        return [self.mean, self.sigma] + ([] if self.angle is None else [self.angle[None]])

    def kept_taps(self, kernel_size: tuple[int, ...], row: list[float], *, causal: bool, ratio: float = 1.0) -> list[tuple[int, int]]:
        """The taps above the threshold, a (start, stop) for each axis.

        Args:
            kernel_size: taps along each axis, before cropping.
            row: the numbers of `in_a_row`.
            causal: whether the last tap is the present.
            ratio: how many times as densely as in training inputs are sampled.
        """
        ndim = len(kernel_size)
        mean, sigma = row[:ndim], row[ndim : 2 * ndim]
        if self.angle is not None:  # half-widths of the box round the turned ellipse
            cos, sin = math.cos(row[-1]), math.sin(row[-1])
            sigma = [math.hypot(cos * sigma[0], sin * sigma[1]), math.hypot(sin * sigma[0], cos * sigma[1])]
        return kept_taps(kernel_size, mean, sigma, threshold=self.threshold, causal=causal, ratio=ratio)

    def inside(self, kernel_size: tuple[int, ...], *, causal: bool, ratio: float = 1.0) -> Tensor:
        """Which taps `kept_taps` keeps, as a tensor made of tensors, for programs that cannot read values: (*taps), of bools."""
        ndim = len(kernel_size)
        row = torch.cat(self.in_a_row()).to(torch.float64)
        mean, sigma = row[:ndim], row[ndim : 2 * ndim].abs()
        if self.angle is not None:
            cos, sin = row[-1].cos(), row[-1].sin()
            sigma = torch.stack([torch.hypot(cos * sigma[0], sin * sigma[1]), torch.hypot(sin * sigma[0], cos * sigma[1])])
        return taps_inside(kernel_size, mean, sigma, threshold=self.threshold, causal=causal, ratio=ratio)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, rotated={self.angle is not None}"
