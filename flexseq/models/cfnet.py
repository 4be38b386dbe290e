"""CFNet: the network of the CF-Conv papers, and its 3x3 baseline."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_tensor
from flexseq.errors import InputError, unknown_name
from flexseq.models.arguments import MOST_DEPTH
from flexseq.nn.cfconv import CFConv2d

CONVS = ("cf", "conv")
HEAD = (128, 64)


@records_arguments
class CFNet(nn.Module):
    """Convolutions with a ReLU after each, the mean over the image, and three linear maps.

    Args:
        in_channels: channels of the images.
        num_classes: logits; where it is 2, the network has a single output z, as the papers' sigmoid, and gives the logits (0, z).
        depth: convolutions.
        width: channels of each.
        conv: "cf", or "conv" for a plain one.
        image_size: pixels along an edge; the kernels are as large.
        kernel_size: of plain convolutions.
        positions: drawn in a step, by each layer; one that has fewer takes all, and says so.
        parameterisation, widths, update, rate, gradient, half, refresh_every: see `flexseq.CFConv2d`.

    Raises:
        InputError: arguments out of range.

    Source:
        Harper et al. 2024, Fig. 3. It has 59,681 parameters with 3x3 convolutions, 56,333 with "hwio".

    Example:
        >>> networks = CFNet(conv="conv"), CFNet(image_size=8, positions=0.1)
        >>> [sum(p.numel() for p in network.parameters()) for network in networks]
        [59681, 56333]
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        depth: int = 6,
        width: int = 32,
        *,
        conv: str = "cf",
        image_size: int = 150,
        kernel_size: int = 3,
        positions: int | float = 2**15,
        parameterisation: str = "hwio",
        widths: Sequence[int] | None = None,
        update: str = "replace",
        rate: float | None = None,
        gradient: str = "sparse",
        half: bool = True,
        refresh_every: int | None = None,
    ):
        super().__init__()
        if conv not in CONVS:
            raise unknown_name("conv", conv, CONVS)
        check_integers("CFNet", in_channels=in_channels, num_classes=num_classes, width=width, kernel_size=kernel_size)
        check_integers("CFNet", most=MOST_DEPTH, depth=depth)
        self.in_channels, self.num_classes = in_channels, num_classes
        options: dict[str, Any] = {
            "positions": positions,
            "parameterisation": parameterisation,
            "widths": widths,
            "update": update,
            "rate": rate,
            "gradient": gradient,
            "half": half,
            "refresh_every": refresh_every,
            "at_most": True,
        }
        layers: list[nn.Module] = []
        for i in range(depth):
            before = in_channels if i == 0 else width
            if conv == "cf":
                layers.append(CFConv2d(before, width, image_size, **options))
            else:
                layers.append(nn.Conv2d(before, width, kernel_size, padding="same"))
        self.convs = nn.ModuleList(layers)
        sizes = [width, *HEAD, 1 if num_classes == 2 else num_classes]
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, num_classes).

        Raises:
            InputError: another number of axes or channels; another size than the kernels'.
        """
        check_tensor("CFNet", "its input", x)
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputError(f"CFNet expected images of shape (batch, {self.in_channels}, height, width), got shape {tuple(x.shape)}")
        for conv in self.convs:
            x = torch.relu_(conv(x))
        h = x.mean((2, 3))
        *hidden, last = self.head
        for linear in hidden:
            h = torch.relu_(linear(h))
        logits = last(h)
        return torch.cat([torch.zeros_like(logits), logits], 1) if self.num_classes == 2 else logits
