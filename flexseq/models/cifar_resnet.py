"""CIFARResNet: the residual networks for small images of He et al., a baseline."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_tensor, is_integer
from flexseq.errors import InputError
from flexseq.models.arguments import MOST_DEPTH


class BasicBlock(nn.Module):
    """conv, norm, ReLU, conv, norm, plus the input (every second pixel, amid channels of zeros, where the width changes), then ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - in_channels

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        x = x[..., :: self.stride, :: self.stride]
        front = self.added // 2
        return torch.relu_(h + F.pad(x, (0, 0, 0, 0, front, self.added - front)))


@records_arguments
class CIFARResNet(nn.Module):
    """A 3x3 stem, three stages of residual blocks at 16, 32 and 64 channels and falling size, average pooling, a linear classifier.

    Args:
        in_channels: channels of the images.
        num_classes: logits.
        depth: layers with weights, 6 n + 2: 20, 32, 44, 56, 110.

    Raises:
        InputError: another depth.

    Source:
        He et al. 2016, Sec. 4.2, with shortcuts without parameters (option A). Weights are drawn as there (Kaiming normal).

    Example:
        >>> sum(p.numel() for p in CIFARResNet(depth=44).parameters())
        658586
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, depth: int = 44):
        super().__init__()
        if not is_integer(depth) or depth < 8 or (depth - 2) % 6 or depth > 6 * MOST_DEPTH:
            raise InputError(f"CIFARResNet expected a depth of 6 n + 2, such as 32 or 44, got {depth!r}")
        check_integers("CIFARResNet", in_channels=in_channels, num_classes=num_classes)
        self.in_channels = in_channels
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        blocks, before = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(before, width, stride if index == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, num_classes).

        Raises:
            InputError: another number of axes or channels.
        """
        check_tensor("CIFARResNet", "its input", x)
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputError(f"CIFARResNet expected images of shape (batch, {self.in_channels}, height, width), got shape {tuple(x.shape)}")
        x = self.blocks(torch.relu_(self.norm(self.conv(x))))
        return self.head(x.mean((2, 3)))
