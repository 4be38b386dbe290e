"""What every kernel network is: positions -> basis -> linear readout."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexseq.checks import check_integers
from flexseq.kernels.linear import PointwiseLinear

MOST_LAYERS = 1000
"""Of a network; deeper ones are a slip, or a file made to fill the memory."""


class KernelNetwork(nn.Module, ABC):
    """A function from positions to kernel values, linear in its last layer.

    A subclass is called with (ndim, out_channels, *, hidden, layers, spatial_extent, ...) and gives `basis`; the `readout` mixes the basis
    functions into output channels. The two are apart because much can be computed from the `hidden` (about 32) basis functions
    where out_channels (often 900) would be costly.

    Args:
        ndim: number of position coordinates.
        out_channels: kernel values at each position.
        hidden: number of basis functions.
        readout: the linear map; one with torch's default initialisation by default.
    """

    def __init__(self, ndim: int, out_channels: int, hidden: int, *, readout: PointwiseLinear | None = None):
        super().__init__()
        check_integers(type(self).__name__, ndim=ndim, out_channels=out_channels, hidden=hidden)
        self.ndim = ndim
        self.out_channels = out_channels
        self.hidden = hidden
        self.readout = PointwiseLinear(hidden, out_channels) if readout is None else readout

    @abstractmethod
    def basis(self, positions: Tensor) -> Tensor:
        """(ndim, *taps) -> (hidden, *taps)."""

    def forward(self, positions: Tensor) -> Tensor:
        """(ndim, *taps) -> (out_channels, *taps)."""
        return self.readout(self.basis(positions))

    def stacking_key(self) -> Hashable | None:
        """What networks must have in common to be evaluated as one; None for one that is evaluated by itself, through `basis`."""
        return None

    def basis_parts(self) -> list[list[Tensor]]:
        """Parameters and buffers of the basis, those of one kind and shape in a list of their own; for networks with a `stacking_key`."""
        raise NotImplementedError(f"{type(self).__name__} has a stacking_key, but no basis_parts")

    def stacked_basis(self, parts: Sequence[Tensor], positions: Tensor) -> Tensor:
        """`basis` of many networks with the same `stacking_key`, each at its own positions.

        Args:
            parts: each list of `basis_parts` stacked: (networks, members of the list, *shape).
            positions: (networks, ndim, taps).

        Returns:
            (networks, hidden, taps).
        """
        raise NotImplementedError(f"{type(self).__name__} has a stacking_key, but no stacked_basis")

    unlimited: ClassVar[bool] = True
    """Whether no highest frequency is known."""

    def band_limits(self, sigma_cut: float, as_published: bool) -> list[Tensor]:
        """The highest frequency of each of the functions whose product the basis is, along each axis: (ndim,) each.

        In cycles per unit; see `flexseq.max_frequency`. A single infinite one where none is known.
        """
        return [torch.full((self.ndim,), math.inf, device=self.readout.bias.device)]

    def extra_repr(self) -> str:
        return f"ndim={self.ndim}, out_channels={self.out_channels}, hidden={self.hidden}"


def is_as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what its class says: of exactly that class, and without hooks."""
    state: Any = module
    hooks = state._forward_pre_hooks or state._forward_hooks or state._backward_hooks or state._backward_pre_hooks
    return type(module) is kind and not hooks
