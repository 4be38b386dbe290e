"""SIREN: sines of linear maps of sines."""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers
from flexseq.kernels import fused
from flexseq.kernels.linear import PointwiseLinear, effective_weight, stacked_pointwise
from flexseq.kernels.network import MOST_LAYERS, KernelNetwork, is_as_built


@records_arguments
class SIREN(KernelNetwork):
    """sin(omega_0 (W x + b)), layer upon layer, then a linear map.

    Args:
        ndim, out_channels, hidden: see `KernelNetwork`.
        layers: linear maps in all, at least 2; the last has neither sine nor omega_0.
        omega_0: in radians per unit of position: how fast the network varies.
        omega_0_scales_bias: sin(omega_0 (W x + b)) where true, sin(omega_0 W x + b) where false.
        bias_bound: biases start in U(-bias_bound, bias_bound), CKConv's code has 1; torch's default where None, as in FlexConv's.
        weight_norm: weight normalisation of every linear map, as in CKConv's networks.
        spatial_extent: accepted as by every kernel network; sines have no place.

    Source:
        Sitzmann et al. 2020; CKConv, Sec. 4.1. Initialisation: first W ~ U(+-1 / fan_in), others U(+-sqrt(6 / fan_in) / omega_0).

    Example:
        >>> SIREN(2, 5)(torch.zeros(2, 3, 4)).shape
        torch.Size([5, 3, 4])
    """

    def __init__(
        self,
        ndim: int,
        out_channels: int,
        *,
        hidden: int = 32,
        layers: int = 3,
        omega_0: float = 30.0,
        omega_0_scales_bias: bool = True,
        bias_bound: float | None = None,
        weight_norm: bool = False,
        spatial_extent: float = 1.0,
    ):
        check_integers("SIREN", ndim=ndim, out_channels=out_channels, hidden=hidden)
        check_integers("SIREN", least=2, most=MOST_LAYERS, layers=layers)
        check_numbers("SIREN", above=0, omega_0=omega_0)
        if bias_bound is not None:
            check_numbers("SIREN", least=0, bias_bound=bias_bound)
        super().__init__(ndim, out_channels, hidden, readout=PointwiseLinear(hidden, out_channels, weight_norm=weight_norm))
        self.omega_0 = omega_0
        self.omega_0_scales_bias = omega_0_scales_bias
        sizes = [ndim] + [hidden] * (layers - 1)
        self.linears = nn.ModuleList(PointwiseLinear(a, b, weight_norm=weight_norm) for a, b in itertools.pairwise(sizes))
        bound = 1 / ndim
        for linear in [*self.linears, self.readout]:
            linear.init_uniform(bound, bias_bound=bias_bound)
            bound = math.sqrt(6 / hidden) / omega_0

    def basis(self, positions: Tensor) -> Tensor:
        h = positions
        for linear in self.linears:
            if self.omega_0_scales_bias:
                h = torch.sin(self.omega_0 * linear(h))
            else:
                h = torch.sin(linear(h, weight_scale=self.omega_0))
        return h

    def stacking_key(self) -> Hashable | None:
        linears: list[Any] = list(self.linears)
        if type(self) is not SIREN or not all(is_as_built(linear, PointwiseLinear) for linear in linears):
            return None
        return SIREN, self.ndim, self.hidden, len(linears), linears[0].weight_norm, self.omega_0, self.omega_0_scales_bias

    def basis_parts(self) -> list[list[Tensor]]:
        linears: list[Any] = list(self.linears)
        first, *others = [[linear.bias, *linear.weight_parts()] for linear in linears]
        return [*[[value] for value in first], *[list(same) for same in zip(*others, strict=True)]]

    def stacked_basis(self, parts: Sequence[Tensor], positions: Tensor) -> Tensor:
        kinds = 3 if self.linears[0].weight_norm else 2
        maps = [effective_weight(*parts[1:kinds])[:, 0], parts[0][:, 0]]
        if len(parts) > kinds:
            maps += [effective_weight(*parts[kinds + 1 :]), parts[kinds]]
        if len(maps) == 4 and fused.applies(self.hidden, len(self.linears), positions):
            return fused.siren_basis(maps, positions, self.omega_0, self._bias_scale, self.stacked_reference)
        return self.stacked_reference(maps, positions)

    def stacked_reference(self, maps: Sequence[Tensor], positions: Tensor) -> Tensor:
        """`stacked_basis` in torch's operators.

        Args:
            maps: the first map's weight (networks, hidden, ndim) and bias (networks, hidden), the others' (networks, maps, hidden, hidden)
                and (networks, maps, hidden).
        """
        scales = {"weight_scale": self.omega_0, "bias_scale": self._bias_scale}
        weight, bias, *others = maps
        h = torch.sin(stacked_pointwise(positions, weight, bias, **scales))
        if others:
            for weight, bias in zip(others[0].unbind(1), others[1].unbind(1), strict=True):
                h = torch.sin(stacked_pointwise(h, weight, bias, **scales))
        return h

    @property
    def _bias_scale(self) -> float:
        return self.omega_0 if self.omega_0_scales_bias else 1.0
