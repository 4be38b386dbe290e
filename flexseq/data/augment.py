"""What is done to batches of images, on whatever device they are: random crops and flips, and resizing."""

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
