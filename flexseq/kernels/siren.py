"""SIREN: sines of linear maps of sines."""

import itertools
import math

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers
from flexseq.kernels.linear import PointwiseLinear
from flexseq.kernels.network import MOST_LAYERS, KernelNetwork


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
