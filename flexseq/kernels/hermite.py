"""Hermite polynomials: times a Gaussian, they are its derivatives."""

import math

import torch
from torch import Tensor

from flexseq.checks import check_integers
from flexseq.kernels.network import KernelNetwork


class Hermite(KernelNetwork):
    """Products over axes of (-1)^n He_n(u_d), of total order 1 up to `order`, and a readout whose bias is the weight of order 0.

    Times exp(-|u|^2 / 2) with u = x / sigma these are the derivatives of a Gaussian of width sigma, scaled by sigma^order; `NJetConv` puts
    the two together.

    Args:
        ndim, out_channels: see `KernelNetwork`.
        order: highest total order of a derivative, at least 1.
        spatial_extent: accepted as by every kernel network; polynomials have no place.

    Source:
        Pintea et al. 2021, "Resolution learning in deep convolutional networks using scale-space theory".

    Example:
        >>> Hermite(1, 1, order=2).basis(torch.tensor([[0.0, 1.0, 2.0]]))
        tensor([[-0., -1., -2.],
                [-1.,  0.,  3.]])
    """

    unlimited = False

    def __init__(self, ndim: int, out_channels: int, *, order: int = 3, spatial_extent: float = 1.0):
        check_integers("Hermite", order=order)
        orders: list[tuple[int, ...]] = [()]
        for _ in range(ndim):
            orders = [(*before, n) for before in orders for n in range(order + 1 - sum(before))]
        orders = sorted((o for o in orders if sum(o)), key=sum)
        super().__init__(ndim, out_channels, len(orders))
        self.order, self.orders = order, orders

    def basis(self, positions: Tensor) -> Tensor:
        polynomials = [torch.ones_like(positions), positions]
        for n in range(1, self.order):
            polynomials.append(positions * polynomials[n] - n * polynomials[n - 1])
        functions = []
        for orders in self.orders:
            function = torch.full_like(positions[0], (-1.0) ** sum(orders))
            for axis, n in enumerate(orders):
                if n:
                    function = function * polynomials[n][axis]
            functions.append(function)
        return torch.stack(functions)

    def band_limits(self, sigma_cut: float, as_published: bool) -> list[Tensor]:
        # The transform of the n-th derivative is w^n times a Gaussian's: it peaks at sqrt(n) standard deviations.
        return [torch.full((self.ndim,), math.sqrt(self.order) / (2 * math.pi), device=self.readout.bias.device)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, order={self.order}"
