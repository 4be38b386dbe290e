"""What is done to batches of images, on whatever device they are: random crops and flips, random changes, and resizing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flexseq.errors import InputError


@dataclass(frozen=True)
class CropAndFlip:
    """Pad, crop to the old size at a random place, and mirror half of the images, each image by itself.

    Random numbers are torch's for the images' device, and so follow from the seed of the epoch.

    Args:
        padding: pixels on every side.
        fill: for each channel, what is padded with: black, in the units of the images.
        flip: whether to mirror left and right.
    """

    padding: int
    fill: Tensor
    flip: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        batch, channels, height, width = x.shape
        fill = self.fill.to(x).view(channels, 1, 1)
        padded = F.pad(x - fill, [self.padding] * 4) + fill
        top, left = torch.randint(2 * self.padding + 1, (2, batch, 1), device=x.device)
        columns = torch.arange(width, device=x.device).expand(batch, width)
        if self.flip:
            columns = torch.where(torch.rand(batch, 1, device=x.device) < 0.5, columns.flip(1), columns)
        rows = (top + torch.arange(height, device=x.device))[:, :, None]
        each = torch.arange(batch, device=x.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[each, rows, (left + columns)[:, None, :]].permute(0, 3, 1, 2).contiguous()


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear, antialiased: (batch, channels, height, width) -> (batch, channels, size, size).

    Raises:
        InputError: a size under 4 px.
    """
    if size < 4:
        raise InputError(f"an image size of at least 4 px was expected, got {size}")
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class RandAugment:
    """Up to so many random changes to each image: of brightness, contrast, colour, levels, or by shearing and shifting.

    Each image draws its own operations and their strengths; one of the operations is to do nothing. Random numbers are torch's for the
    images' device, and so follow from the seed of the epoch.

    Args:
        mean, std: of each channel, of values in [0, 1], by which the images are standardised.
        count: operations on each image.
        magnitude: their greatest strength, in [0, 1].

    Source:
        After Cubuk et al. 2020; the operations of KerasCV, but for histogram equalisation.
    """

    mean: Tensor
    std: Tensor
    count: int = 3
    magnitude: float = 0.5

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        with torch.autocast(x.device.type, enabled=False):  # places need more digits than half precision has
            return self._changed(x)

    def _changed(self, x: Tensor) -> Tensor:
        mean, std = (values.to(x).view(-1, 1, 1) for values in (self.mean, self.std))
        images = (x * std + mean).clamp(0, 1)
        for _ in range(self.count):
            operation = torch.randint(len(OPERATIONS) + 1, (len(x),), device=x.device)
            strength = self.magnitude * (2 * torch.rand(len(x), device=x.device) - 1)
            for index, apply in enumerate(OPERATIONS):
                chosen = (operation == index).nonzero()[:, 0]
                if len(chosen):
                    images[chosen] = apply(images[chosen], strength[chosen]).clamp(0, 1)
        return (images - mean) / std


def _column(strength: Tensor) -> Tensor:
    return strength[:, None, None, None]


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return images + _column(strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    grey = images.mean((1, 2, 3), keepdim=True)
    return grey + (1 + 1.8 * _column(strength)) * (images - grey)


def _colour(images: Tensor, strength: Tensor) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return grey + (1 + 1.8 * _column(strength)) * (images - grey)


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def _solarise(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images > 1 - _column(strength).abs(), 1 - images, images)


def _shear_across(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, (0, 1), 0.6 * strength)


def _shear_down(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, (1, 0), 0.6 * strength)


def _shift_across(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, (0, 2), strength)


def _shift_down(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, (1, 2), strength)


def _affine(images: Tensor, entry: tuple[int, int], values: Tensor) -> Tensor:
    matrix = torch.eye(2, 3, device=images.device, dtype=images.dtype).repeat(len(images), 1, 1)
    matrix[:, entry[0], entry[1]] = values.to(images.dtype)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


OPERATIONS = (
    _brightness,
    _contrast,
    _colour,
    _autocontrast,
    _solarise,
    _shear_across,
    _shear_down,
    _shift_across,
    _shift_down,
)
