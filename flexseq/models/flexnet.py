"""FlexNet: a residual network of continuous convolutions, for images."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers, check_tensor
from flexseq.errors import InputError, unknown_name
from flexseq.kernels import KernelFactory
from flexseq.models.arguments import MASK_SIGMA, MOST_DEPTH, check_used
from flexseq.models.dropout import Dropout
from flexseq.nn import CKConv2d, FlexConv2d, NJetConv2d
from flexseq.nn.forward_pass import follow, hand_over, plan

CONVS = ("flex", "ck", "njet", "conv")


class ImageBlock(nn.Module):
    """[conv, norm, ReLU, dropout, conv, norm], plus the input (through a 1x1 convolution where the width changes), then ReLU.

    Args:
        in_channels, width: channels before and after.
        make_conv: (in_channels, out_channels) -> a convolution that keeps the image's size.
        dropout: probability, in [0, 1).
    """

    def __init__(self, in_channels: int, width: int, make_conv: Callable[[int, int], nn.Module], dropout: float):
        super().__init__()
        self.conv1 = make_conv(in_channels, width)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = make_conv(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == width else nn.Conv2d(in_channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, width, height, width)."""
        h = self.dropout(torch.relu_(self.norm1(self.conv1(x))))
        h = self.norm2(self.conv2(h))
        return torch.relu_(h + self.shortcut(x))


@records_arguments
class FlexNet(nn.Module):
    """A stem, residual blocks of continuous convolutions without pooling or strides, global average pooling, a linear classifier.

    Args:
        in_channels: channels of the images.
        num_classes: logits.
        depth: blocks of two convolutions each.
        width: channels of the stem; a block has int(width * factor).
        conv: "flex" (FlexConv2d), "ck" (CKConv2d), "njet" (NJetConv2d, which takes no `kernel`), or "conv" (plain, with `kernel_size`).
        kernel: the kernel network: "magnet" | "gabor" | "fourier" | "siren" | "mlp", or a factory such as partial(MAGNet, steerable=True).
        image_size: pixels along an edge of the images to train on.
        kernel_size: taps along an edge of each kernel, before cropping; by default the images', plus one where that is even.
        width_factors: of each block; by default 1 for the first two of seven blocks, 2 for the last two, 1.5 between, and so in proportion.
        mask_sigma: where the masks of "flex", or the widths of "njet", start, in units of position; by default 0.075 for masks, and a pixel
            for the widths, as in the papers of each.
        dropout: probability, in [0, 1).
        method: how to convolve; see `flexseq.functional.long_conv`.

    Raises:
        InputError: arguments out of range.

    Source:
        FlexConv, Sec. 4.3. FlexNet-7 ("FlexNet-16" counts layers) at 3 -> 10 has 671,650 parameters. ImageNet-k: depth 5, width 22.

    Example:
        >>> model = FlexNet(in_channels=3, num_classes=10, depth=1, image_size=16)
        >>> model(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 7,
        width: int = 24,
        *,
        conv: str = "flex",
        kernel: str | KernelFactory = "magnet",
        image_size: int = 32,
        kernel_size: int | None = None,
        width_factors: Sequence[float] | None = None,
        mask_sigma: float | None = None,
        dropout: float = 0.2,
        method: str = "auto",
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "depth": depth, "width": width, "image_size": image_size}
        check_integers("FlexNet", **sizes)
        check_integers("FlexNet", most=MOST_DEPTH, depth=depth)
        check_numbers("FlexNet", least=0, below=1, dropout=dropout)
        if kernel_size is not None:
            check_integers("FlexNet", kernel_size=kernel_size)
        if conv not in CONVS:
            raise unknown_name("conv", conv, CONVS)
        check_used("FlexNet", conv, kernel=kernel, mask_sigma=mask_sigma, method=method)
        if conv == "conv" and kernel_size is None:
            raise InputError("FlexNet expected a kernel_size of at least 1 with conv='conv', got None")
        if width_factors is not None and not isinstance(width_factors, Sequence):
            raise InputError(f"FlexNet expected width_factors for {depth} blocks, got {width_factors!r}")
        factors = default_factors(depth) if width_factors is None else list(width_factors)
        check_numbers("FlexNet", above=0, **{f"width_factors[{i}]": factor for i, factor in enumerate(factors)})
        if len(factors) != depth or min(factors) * width < 1:
            raise InputError(f"FlexNet expected width_factors for {depth} blocks, each giving at least one channel, got {factors}")
        if kernel_size is None:
            kernel_size = image_size + 1 - image_size % 2
        if mask_sigma is None:
            mask_sigma = 2 / max(1, kernel_size - 1) if conv == "njet" else MASK_SIGMA
        continuous: dict[str, Any] = {"kernel_size": kernel_size, "method": method}
        makers: dict[str, Callable[[int, int], nn.Module]] = {
            "flex": functools.partial(FlexConv2d, kernel=kernel, mask_sigma=mask_sigma, **continuous),
            "ck": functools.partial(CKConv2d, kernel=kernel, **continuous),
            "njet": functools.partial(NJetConv2d, sigma=mask_sigma, **continuous),
            "conv": functools.partial(nn.Conv2d, kernel_size=kernel_size, padding="same"),
        }
        make_conv = makers[conv]
        self.in_channels = in_channels
        self.conv = make_conv(in_channels, width)
        self.norm = nn.BatchNorm2d(width)
        widths = [width, *[int(width * factor) for factor in factors]]
        self.blocks = nn.ModuleList(ImageBlock(a, b, make_conv, dropout) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], num_classes)
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        follow(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images.

        Args:
            x: (batch, in_channels, height, width); a larger image is more signal, its pixels as close as before.

        Returns:
            (batch, num_classes).

        Raises:
            InputError: another number of axes or channels.
        """
        check_tensor("FlexNet", "its input", x)
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputError(f"FlexNet expected images of shape (batch, {self.in_channels}, height, width), got shape {tuple(x.shape)}")
        convs: list[Any] = [self.conv, *[conv for block in self.blocks for conv in (block.conv1, block.conv2)]]
        keeps = plan(convs, x.shape[2:])
        hand_over(convs, keeps)
        x = torch.relu_(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def default_factors(depth: int) -> list[float]:
    """The papers' widths, relative to the stem's: 1, 1, 1.5, 1.5, 1.5, 2, 2 for 7 blocks, 1, 1.5, 1.5, 2, 2 for 5."""
    first = max(1, depth * 2 // 7)
    last = min(-(-depth * 2 // 7), depth - first)
    return [1.0] * first + [1.5] * (depth - first - last) + [2.0] * last
