"""Multiplicative filter networks: products of sines (Fourier), of Gabor functions (Gabor), of anisotropic ones (MAGNet)."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers
from flexseq.errors import InputError
from flexseq.functional.band_limits import gaussian_band_limit, sine_band_limit
from flexseq.functional.gaussian import rotate
from flexseq.kernels import fused
from flexseq.kernels.linear import PointwiseLinear, default_bound, stacked_pointwise
from flexseq.kernels.network import MOST_LAYERS, KernelNetwork, is_as_built

TOGETHER = 2**20
"""Numbers up to which all filters are computed at once: few operators instead of many, but tensors that must fit the cache."""

GAMMA_ALPHA, GAMMA_BETA = 6.0, 1.0
"""Shape and rate of the Gamma distribution from which the envelopes' inverse widths are drawn."""


class MultiplicativeFilterNetwork(KernelNetwork):
    """h = g_0(x); h = g_i(x) * (W_i h + b_i) for i = 1 .. layers; then a linear readout.

    Args:
        ndim, out_channels, hidden: see `KernelNetwork`.
        layers: hidden linear maps; there is one filter more.
        make_filter: index of a filter -> the filter, a module from (ndim, *taps) to (hidden, *taps).

    Source:
        Fathony et al. 2021; FlexConv, Eqs. 2 to 4. W_i ~ U(+-sqrt(1 / hidden)); biases and readout as torch draws them.
    """

    def __init__(self, ndim: int, out_channels: int, hidden: int, layers: int, make_filter: Callable[[int], nn.Module]):
        super().__init__(ndim, out_channels, hidden)
        linears = [PointwiseLinear(hidden, hidden) for _ in range(layers)]
        for linear in linears:
            linear.init_uniform(math.sqrt(1 / hidden))
        self.linears = nn.ModuleList(linears)
        self.filters = nn.ModuleList(make_filter(index) for index in range(layers + 1))

    def basis(self, positions: Tensor) -> Tensor:
        first, *others = self.filters
        h = first(positions)
        for linear, g in zip(self.linears, others, strict=True):
            h = g(positions) * linear(h)
        return h

    def stacking_key(self) -> Hashable | None:
        filters: list[Any] = list(self.filters)
        linears: list[Any] = [*self.linears, *[g.linear for g in filters]]
        kind = GaborFilter if isinstance(filters[0], GaborFilter) else FourierFilter
        if type(self) not in (Fourier, Gabor, MAGNet) or not all(is_as_built(g, kind) for g in filters):
            return None
        if not all(is_as_built(linear, PointwiseLinear) for linear in linears):
            return None
        return kind, self.ndim, self.hidden, len(filters), filters[0].values()[-1].shape, len(filters[0].values())

    def basis_parts(self) -> list[list[Tensor]]:
        filters: list[Any] = list(self.filters)
        of_filters = [list(values) for values in zip(*[g.values() for g in filters], strict=True)]
        return [*of_filters, [linear.weight for linear in self.linears], [linear.bias for linear in self.linears]]

    def stacked_basis(self, parts: Sequence[Tensor], positions: Tensor) -> Tensor:
        if len(parts) == 6 and fused.applies(self.hidden, len(self.filters), positions):  # Gabor functions without angles
            return fused.gabor_basis(parts, positions, self.stacked_reference)
        return self.stacked_reference(parts, positions)

    def stacked_reference(self, parts: Sequence[Tensor], positions: Tensor) -> Tensor:
        """`stacked_basis` in torch's operators."""
        *values, weights, biases = parts
        first: Any = self.filters[0]
        count = values[0].shape[1]
        if self.hidden * count * positions.shape[0] * positions.shape[-1] > TOGETHER:
            h, *others = [first.formula(positions, *one) for one in zip(*[value.unbind(1) for value in values], strict=True)]
        else:  # as one wide filter, none depending on another
            h, *others = first.formula(positions, *[value.flatten(1, 2) for value in values]).chunk(count, 1)
        for g, weight, bias in zip(others, weights.unbind(1), biases.unbind(1), strict=True):
            h = g * stacked_pointwise(h, weight, bias)
        return h

    unlimited = False

    def band_limits(self, sigma_cut: float, as_published: bool) -> list[Tensor]:
        filters: list[Any] = list(self.filters)
        return [g.band_limit(sigma_cut, as_published) for g in filters]


class FourierFilter(nn.Module):
    """sin(w.x + b), with w = (torch's default) * scale and b ~ U(-pi, pi).

    Args:
        ndim, hidden: position coordinates, and sines.
        scale: how much faster than torch's default weights the sines vary.
    """

    def __init__(self, ndim: int, hidden: int, scale: float):
        super().__init__()
        self.linear = PointwiseLinear(ndim, hidden)
        self.linear.init_uniform(default_bound(ndim) * scale, bias_bound=math.pi)

    def values(self) -> tuple[Tensor, ...]:
        """What `formula` takes beside positions, filters along the first axis."""
        return self.linear.weight, self.linear.bias

    def band_limit(self, sigma_cut: float, as_published: bool) -> Tensor:
        """The highest frequency of all sines along each axis, (ndim,), in cycles per unit."""
        limits = sine_band_limit(self.linear.weight)
        return limits.max().expand(limits.shape[1]) if as_published else limits.amax(0)

    @staticmethod
    def formula(positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """sin(weight . x + bias) of many networks: (networks, ndim, taps) -> (networks, filters, taps)."""
        return torch.sin(stacked_pointwise(positions, weight, bias))

    def forward(self, positions: Tensor) -> Tensor:
        """(ndim, *taps) -> (hidden, *taps)."""
        return _of_one_network(self.formula, positions, self.values())


class GaborFilter(nn.Module):
    """exp(-1/2 sum_d (gamma_d (x_d - mu_d))^2) sin(w.x + b).

    Args:
        ndim, hidden: position coordinates, and Gabor functions.
        gamma: (hidden, ndim), or (hidden, 1) for one inverse width for all axes; in 1 / unit of position.
        scale: w = (torch's default) * scale * gamma.
        spatial_extent: centres mu ~ U(+-spatial_extent).
        steerable: turn each envelope by 2 pi theta, theta ~ U(0, 1), before gamma scales it; two axes only. The sine is not turned.

    Source:
        FlexConv, Eqs. 5 and 7; steerable: appendix.
    """

    def __init__(self, ndim: int, hidden: int, gamma: Tensor, scale: float, spatial_extent: float, *, steerable: bool = False):
        super().__init__()
        self.mu = nn.Parameter(torch.empty(hidden, ndim).uniform_(-spatial_extent, spatial_extent))
        self.gamma = nn.Parameter(gamma)
        self.theta = nn.Parameter(torch.rand(hidden)) if steerable else None
        self.linear = PointwiseLinear(ndim, hidden)
        self.linear.init_uniform(default_bound(ndim) * scale, bias_bound=math.pi)
        with torch.no_grad():
            self.linear.weight.mul_(gamma)

    def values(self) -> tuple[Tensor, ...]:
        """What `formula` takes beside positions, filters along the first axis."""
        theta = () if self.theta is None else (self.theta,)
        return self.linear.weight, self.linear.bias, self.mu, self.gamma, *theta

    def band_limit(self, sigma_cut: float, as_published: bool) -> Tensor:
        """The highest frequency of all functions along each axis, (ndim,), in cycles per unit; see `flexseq.max_frequency`."""
        sine = sine_band_limit(self.linear.weight)
        if as_published:  # the authors' code knows no turned envelopes
            return (sine.max() + gaussian_band_limit(self.gamma, sigma_cut=sigma_cut).max()).expand(sine.shape[1])
        angle = None if self.theta is None else 2 * math.pi * self.theta
        return (sine + gaussian_band_limit(self.gamma, angle, sigma_cut=sigma_cut)).amax(0)

    @staticmethod
    def formula(positions: Tensor, weight: Tensor, bias: Tensor, mu: Tensor, gamma: Tensor, theta: Tensor | None = None) -> Tensor:
        """The formula above of many networks: (networks, ndim, taps) -> (networks, filters, taps)."""
        ndim = positions.shape[1]
        x, mu, gamma = positions[:, :, None], mu.to(positions.dtype).mT[..., None], gamma.to(positions.dtype).mT[..., None]
        offset = x - mu  # (networks, ndim, filters, taps)
        if theta is not None:
            offset = rotate(offset.transpose(0, 1), (2 * math.pi * theta.to(offset.dtype))[..., None]).transpose(0, 1)
        scaled = offset * gamma
        power = scaled.square().sum(1) if ndim > 1 else scaled[:, 0].square()
        return torch.exp(-0.5 * power) * torch.sin(stacked_pointwise(positions, weight, bias))

    def forward(self, positions: Tensor) -> Tensor:
        """(ndim, *taps) -> (hidden, *taps)."""
        return _of_one_network(self.formula, positions, self.values())


@records_arguments
class Fourier(MultiplicativeFilterNetwork):
    """Multiplicative network of sines.

    Args:
        ndim, out_channels, hidden: see `KernelNetwork`.
        layers: hidden linear maps.
        input_scale: sines start with frequencies up to about input_scale / sqrt(layers + 1) radians per unit of position.
        spatial_extent: accepted as by every kernel network; sines have no place.

    Source:
        Fathony et al. 2021.

    Example:
        >>> Fourier(1, 5)(torch.zeros(1, 7)).shape
        torch.Size([5, 7])
    """

    def __init__(
        self,
        ndim: int,
        out_channels: int,
        *,
        hidden: int = 32,
        layers: int = 3,
        input_scale: float = 256.0,
        spatial_extent: float = 1.0,
    ):
        scale = _scale(type(self).__name__, hidden, layers, input_scale)
        super().__init__(ndim, out_channels, hidden, layers, lambda index: FourierFilter(ndim, hidden, scale))


@records_arguments
class Gabor(MultiplicativeFilterNetwork):
    """Multiplicative network of isotropic Gabor functions: one inverse width for all axes, gamma ~ Gamma(6 / (layers + 1), 1).

    Args:
        ndim, out_channels, hidden: see `KernelNetwork`.
        layers: hidden linear maps.
        input_scale: see `GaborFilter`: scale = input_scale / sqrt(layers + 1).
        spatial_extent: half-width of the region around 0 in which the functions start.

    Source:
        Fathony et al. 2021; FlexConv, Eq. 5.

    Example:
        >>> Gabor(2, 5)(torch.zeros(2, 3, 4)).shape
        torch.Size([5, 3, 4])
    """

    def __init__(
        self,
        ndim: int,
        out_channels: int,
        *,
        hidden: int = 32,
        layers: int = 3,
        input_scale: float = 25.6,
        spatial_extent: float = 1.0,
    ):
        scale = _scale(type(self).__name__, hidden, layers, input_scale)

        def make_filter(index: int) -> GaborFilter:
            gamma = _draw_gamma((hidden, 1), GAMMA_ALPHA / (layers + 1))
            return GaborFilter(ndim, hidden, gamma, scale, spatial_extent)

        super().__init__(ndim, out_channels, hidden, layers, make_filter)


@records_arguments
class MAGNet(MultiplicativeFilterNetwork):
    """Multiplicative anisotropic Gabor network: an inverse width for each axis, gamma ~ Gamma(6 / l, 1) in the l-th filter.

    Args:
        ndim, out_channels, hidden: see `KernelNetwork`.
        layers: hidden linear maps ("3-layer MAGNet" has 3, and 4 Gabor filters).
        input_scale: see `GaborFilter`: scale = input_scale / sqrt(layers + 1).
        steerable: turn the envelopes by learned angles; two axes only.
        spatial_extent: half-width of the region around 0 in which the functions start.

    Raises:
        InputError: steerable in other than two dimensions.

    Source:
        FlexConv, Sec. 3.2, Eq. 7.

    Example:
        >>> MAGNet(2, 5, steerable=True)(torch.zeros(2, 3, 4)).shape
        torch.Size([5, 3, 4])
    """

    def __init__(
        self,
        ndim: int,
        out_channels: int,
        *,
        hidden: int = 32,
        layers: int = 3,
        input_scale: float = 25.6,
        steerable: bool = False,
        spatial_extent: float = 1.0,
    ):
        if steerable and ndim != 2:
            raise InputError(f"MAGNet expected ndim=2 with steerable=True, got ndim={ndim}")
        scale = _scale(type(self).__name__, hidden, layers, input_scale)

        def make_filter(index: int) -> GaborFilter:
            gamma = _draw_gamma((hidden, ndim), GAMMA_ALPHA / (index + 1))
            return GaborFilter(ndim, hidden, gamma, scale, spatial_extent, steerable=steerable)

        super().__init__(ndim, out_channels, hidden, layers, make_filter)


def _of_one_network(formula: Callable[..., Tensor], positions: Tensor, values: Sequence[Tensor]) -> Tensor:
    """(ndim, *taps) -> (filters, *taps)."""
    result = formula(positions.flatten(1)[None], *[value[None] for value in values])
    return result[0].view(-1, *positions.shape[1:])


def _scale(name: str, hidden: int, layers: int, input_scale: float) -> float:
    check_integers(name, most=MOST_LAYERS, layers=layers)
    check_integers(name, hidden=hidden)
    check_numbers(name, above=0, input_scale=input_scale)
    return input_scale / math.sqrt(layers + 1)


def _draw_gamma(shape: tuple[int, int], alpha: float) -> Tensor:
    return torch.distributions.Gamma(alpha, GAMMA_BETA, validate_args=False).sample(shape)  # also on the meta device
