"""Gaussian windows."""

import torch
from torch import Tensor

SMALLEST_SIGMA = 1e-6
"""Widths are held above this, so that a mask that shrank to nothing keeps its peak and has no 0 / 0."""


def gaussian_mask(positions: Tensor, mean: Tensor, sigma: Tensor, angle: Tensor | None = None) -> Tensor:
    """Anisotropic Gaussian of height 1: the product over axes of exp(-1/2 ((x_d - mean_d) / sigma_d)^2).

    Args:
        positions: (ndim, *taps).
        mean: (ndim,), in units of position.
        sigma: (ndim,), in units of position; its sign does not matter.
        angle: () in radians, for two axes: turns the offsets, (d0, d1) -> (cos d0 + sin d1, -sin d0 + cos d1), before sigma
            scales them.

    Returns:
        (*taps), in [0, 1].

    Source:
        FlexConv, Eq. 1; rotation: appendix D.3.

    Example:
        >>> import torch
        >>> gaussian_mask(torch.tensor([[0.0, 0.5]]), torch.tensor([0.0]), torch.tensor([0.5]))
        tensor([1.0000, 0.6065])
    """
    angles = None if angle is None else angle.reshape(1)
    return gaussian_masks(positions.flatten(1)[None], mean[None], sigma[None], angles)[0].view(positions.shape[1:])


def gaussian_masks(positions: Tensor, mean: Tensor, sigma: Tensor, angle: Tensor | None = None) -> Tensor:
    """Many Gaussians, each at its own positions.

    Args:
        positions: (masks, ndim, taps).
        mean, sigma: (masks, ndim).
        angle: (masks,).

    Returns:
        (masks, taps).
    """
    dtype = positions.dtype
    offset = positions - mean.to(dtype)[..., None]
    if angle is not None:
        offset = rotate(offset.transpose(0, 1), angle.to(dtype)[:, None]).transpose(0, 1)
    scaled = offset / sigma.to(dtype).abs().clamp_min(SMALLEST_SIGMA)[..., None]
    square = scaled.square()
    return (-0.5 * (square[:, 0] if positions.shape[1] == 1 else square.sum(1))).exp()


def rotate(offset: Tensor, angle: Tensor) -> Tensor:
    """Turn offsets of two axes: (d0, d1) -> (cos d0 + sin d1, -sin d0 + cos d1).

    Args:
        offset: (2, *taps), or (2, channels, *taps) with `angle` of shape (channels, 1, ...).
        angle: in radians, broadcast against offset[0].
    """
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([offset[0] * cos + offset[1] * sin, offset[1] * cos - offset[0] * sin])
