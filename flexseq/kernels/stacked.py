"""Many small networks of the same shape, each asked at its own positions."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flexseq.errors import InputError


class Rows(NamedTuple):
    """Positions in rows of one length, a row for each network.

    Args:
        order: (n,), positions sorted by their network.
        slots: (n,), where each of these stands in the flattened rows.
        length: of a row.
    """

    order: Tensor
    slots: Tensor
    length: int

    @classmethod
    def of(cls, which: Tensor, count: int) -> "Rows":
        """Rows of positions whose networks are `which`, (n,), of `count`."""
        order = which.argsort(stable=True)
        counts = torch.bincount(which, minlength=count)
        length = int(counts.max())
        starts = counts.cumsum(0) - counts
        of_row = which[order]
        return cls(order, of_row * length + torch.arange(len(which), device=which.device) - starts[of_row], length)

    def to(self, device: torch.device) -> "Rows":
        """The same on a device."""
        return Rows(self.order.to(device), self.slots.to(device), self.length)


class StackedMLP(nn.Module):
    """`count` multilayer perceptrons with ReLUs between their linear maps.

    Args:
        count: networks.
        inputs: coordinates of a position.
        widths: after each linear map; the last one has no activation.

    Source:
        CF-Conv, Sec. 6, which names no initialisation: He's uniform distribution for weights and 0 for biases are this project's choice.

    Example:
        >>> networks = StackedMLP(3, 2, (8, 1))
        >>> networks(torch.rand(5, 2), Rows.of(torch.tensor([0, 2, 2, 1, 0]), 3)).shape
        torch.Size([5, 1])
    """

    def __init__(self, count: int, inputs: int, widths: Sequence[int]):
        super().__init__()
        if not widths or not all(isinstance(width, int) and width >= 1 for width in widths):
            raise InputError(f"widths expected one or more numbers of at least 1, got {widths!r}")
        self.count, self.inputs, self.widths = count, inputs, tuple(widths)
        sizes = [inputs, *widths]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(count, a, b)) for a, b in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(count, b)) for b in widths)
        for weight in self.weights:
            nn.init.uniform_(weight, -math.sqrt(6 / weight.shape[1]), math.sqrt(6 / weight.shape[1]))

    def forward(self, positions: Tensor, rows: Rows | None = None) -> Tensor:
        """Each position's own network there.

        Args:
            positions: (n, inputs).
            rows: the network of each; may be None where there is one.

        Returns:
            (n, the last of widths), computed in the positions' dtype.
        """
        maps = [(weight.to(positions.dtype), bias.to(positions.dtype)) for weight, bias in zip(self.weights, self.biases, strict=True)]
        if rows is None:
            h = positions
            for i, (weight, bias) in enumerate(maps):
                h = torch.addmm(bias[0], h.relu_() if i else h, weight[0])
            return h
        h = positions.new_zeros(self.count * rows.length, self.inputs)
        h[rows.slots] = positions[rows.order]
        h = h.view(self.count, -1, self.inputs)
        for i, (weight, bias) in enumerate(maps):
            h = torch.baddbmm(bias[:, None], h.relu_() if i else h, weight)
        values = h.flatten(0, 1)[rows.slots]
        return torch.empty_like(values).index_copy(0, rows.order, values)

    def extra_repr(self) -> str:
        return f"count={self.count}, inputs={self.inputs}, widths={self.widths}"
