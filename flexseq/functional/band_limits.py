"""The highest frequencies of the functions that kernels are made of, in cycles per unit of position."""

import math

import torch
from torch import Tensor

from flexseq.checks import check_integers


def gaussian_band_limit(inverse_width: Tensor, angle: Tensor | None = None, *, sigma_cut: float = 2.0) -> Tensor:
    """Where the spectrum of a Gaussian envelope has fallen off.

    The transform of exp(-1/2 sum_d (gamma_d x_d)^2) is a Gaussian of standard deviation gamma_d / (2 pi) along axis d.

    Args:
        inverse_width: gamma, (..., ndim), in 1 / unit; for a Gaussian mask 1 / sigma.
        angle: (...,) in radians, by which the envelope is turned (two axes), as `flexseq.functional.gaussian.rotate` does.
        sigma_cut: how many standard deviations count.

    Returns:
        (..., ndim), in cycles per unit, along each axis.

    Source:
        FlexConv, Eqs. 14 and 21, there with the smaller gamma of the axes.
    """
    if angle is not None:
        # Turned by R, the squared widths are the diagonal of R' diag(gamma^2) R.
        squares = inverse_width.expand(*angle.shape, 2).square()
        cos, sin = torch.cos(angle).square(), torch.sin(angle).square()
        inverse_width = torch.stack(
            [cos * squares[..., 0] + sin * squares[..., 1], sin * squares[..., 0] + cos * squares[..., 1]], -1
        ).sqrt()
    return sigma_cut * inverse_width.abs() / (2 * math.pi)


def sine_band_limit(weight: Tensor) -> Tensor:
    """The frequency of sin(weight . x + b) along each axis: (..., ndim) -> (..., ndim), in cycles per unit."""
    return weight.abs() / (2 * math.pi)


def nyquist_frequency(kernel_size: int) -> float:
    """The highest frequency that a kernel of so many taps over [-1, 1] can hold, in cycles per unit: (k - 1) / 4.

    Raises:
        InputError: less than one tap.

    Example:
        >>> nyquist_frequency(33)
        8.0
    """
    check_integers("nyquist_frequency", kernel_size=kernel_size)
    return (kernel_size - 1) / 4
