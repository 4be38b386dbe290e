"""A plain multilayer perceptron, optionally on random Fourier features."""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers, is_integer
from flexseq.errors import InputError, unknown_name
from flexseq.kernels.linear import PointwiseLinear, stacked_pointwise
from flexseq.kernels.network import MOST_LAYERS, KernelNetwork, is_as_built

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@records_arguments
class MLP(KernelNetwork):
    """Linear maps with an activation between them.

    Args:
        ndim, out_channels, hidden: see `KernelNetwork`.
        layers: linear maps in all, the readout included; at least 2.
        widths: functions after each linear map but the readout, in place of `hidden` and `layers`; one or more.
        activation: "relu", "gelu" or "silu".
        fourier_features: where given, positions x enter as sin(2 pi B x) and cos(2 pi B x) of that many random rows of B, which stay fixed.
        fourier_scale: standard deviation of B, in cycles per unit of position.
        spatial_extent: accepted as by every kernel network; not used.

    Source:
        Random Fourier features: Tancik et al. 2020.

    Example:
        >>> MLP(1, 5, activation="gelu", fourier_features=8)(torch.zeros(1, 7)).shape
        torch.Size([5, 7])
    """

    def __init__(
        self,
        ndim: int,
        out_channels: int,
        *,
        hidden: int = 32,
        layers: int = 3,
        widths: Sequence[int] | None = None,
        activation: str = "relu",
        fourier_features: int | None = None,
        fourier_scale: float = 4.0,
        spatial_extent: float = 1.0,
    ):
        check_integers("MLP", least=2, most=MOST_LAYERS, layers=layers)
        check_integers("MLP", hidden=hidden)
        check_numbers("MLP", above=0, fourier_scale=fourier_scale)
        if fourier_features is not None:
            check_integers("MLP", fourier_features=fourier_features)
        if widths is not None and (not isinstance(widths, Sequence) or not widths or not all(is_integer(n) and n >= 1 for n in widths)):
            raise InputError(f"MLP expected widths of at least 1, one or more of them, got {widths!r}")
        widths = [hidden] * (layers - 1) if widths is None else list(widths)
        super().__init__(ndim, out_channels, widths[-1])
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        self.activation = activation
        directions = None if fourier_features is None else torch.randn(fourier_features, ndim) * fourier_scale
        self.register_buffer("directions", directions)
        sizes = [ndim if fourier_features is None else 2 * fourier_features, *widths]
        self.linears = nn.ModuleList(PointwiseLinear(a, b) for a, b in itertools.pairwise(sizes))

    def basis(self, positions: Tensor) -> Tensor:
        h = positions
        if self.directions is not None:
            phase = 2 * math.pi * torch.tensordot(self.directions.to(h.dtype), h, 1)
            h = torch.cat([phase.sin(), phase.cos()])
        for linear in self.linears:
            h = ACTIVATIONS[self.activation](linear(h))
        return h

    def stacking_key(self) -> Hashable | None:
        linears: list[Any] = list(self.linears)
        if type(self) is not MLP or not all(is_as_built(linear, PointwiseLinear) for linear in linears):
            return None
        return MLP, self.activation, self.directions is None, *[linear.weight.shape for linear in linears]

    def basis_parts(self) -> list[list[Tensor]]:
        linears: list[Any] = list(self.linears)
        directions = [] if self.directions is None else [[self.directions]]
        return [*directions, *[[value] for linear in linears for value in (linear.weight, linear.bias)]]

    def stacked_basis(self, parts: Sequence[Tensor], positions: Tensor) -> Tensor:
        h, values = positions, [part[:, 0] for part in parts]
        if self.directions is not None:
            phase = 2 * math.pi * torch.bmm(values.pop(0).to(h.dtype), h)
            h = torch.cat([phase.sin(), phase.cos()], 1)
        for weight, bias in zip(values[::2], values[1::2], strict=True):
            h = ACTIVATIONS[self.activation](stacked_pointwise(h, weight, bias))
        return h
