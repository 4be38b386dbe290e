"""Band limits of kernels and of whole networks, and the penalty on exceeding Nyquist."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexseq.errors import InputError, unknown_name
from flexseq.functional.band_limits import nyquist_frequency
from flexseq.kernels.multiplicative import FourierFilter, GaborFilter
from flexseq.kernels.network import KernelNetwork
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.mask import GaussianMask
from flexseq.nn.njet import NJetConv

METHODS = ("together", "summed")


def max_frequency(
    module: nn.Module,
    *,
    sigma_cut: float = 2.0,
    include_mask: bool = True,
    per_axis: bool = False,
    of_nyquist: bool = False,
    kernel_size: int | Sequence[int] | None = None,
    as_published: bool = False,
) -> Tensor:
    """The highest frequency of a filter, a kernel network, a mask or a whole continuous convolution.

    A product of functions has at most the sum of their highest frequencies. Above it lies at most 5 % of a kernel's energy for sigma_cut 2,
    at most 1e-3 for 4.

    Args:
        module: a filter or a whole network of flexseq.kernels, a GaussianMask, or a layer.
        sigma_cut: how many standard deviations of a Gaussian's spectrum count.
        include_mask: whether a layer's mask counts.
        per_axis: one number for each axis, instead of the largest.
        of_nyquist: as a fraction of Nyquist's frequency, instead of cycles per unit of position: of the layer's kernel at the resolution
            that it is set to.
        kernel_size: taps over [-1, 1] along each axis, for the Nyquist frequency of filters, networks and masks, which know none.
        as_published: the authors' code's bound of a Gabor filter, (max |w| + sigma_cut max gamma) / 2 pi with the two maxima taken apart,
            over channels and axes. The default takes the maximum of the sum, up to 7 % lower. (The paper's Eqs. 14 and 15 take the
            smaller gamma of the axes, which is no bound.)

    Returns:
        A scalar, or (ndim,). inf where no bound is known: SIREN and MLP networks. Gradients reach the parameters.

    Raises:
        InputError: something that has no frequency; of_nyquist without a kernel's size; a kernel_size for a layer, or without of_nyquist.

    Source:
        FlexConv, Sec. 3.3 and appendix A.

    Example:
        >>> import flexseq as fs
        >>> bool(max_frequency(fs.CKConv1d(1, 1, kernel="siren")).isinf())
        True
    """
    if (kernel_size is not None) != (of_nyquist and not isinstance(module, ContinuousConv)):
        wanted = "no kernel_size" if kernel_size is not None else "the kernel_size whose Nyquist frequency counts"
        raise InputError(f"max_frequency expected {wanted} for {type(module).__name__} with of_nyquist={of_nyquist}")
    if isinstance(module, ContinuousConv):
        filters, mask = _layer_limits(module, sigma_cut, include_mask, as_published)
        limits = torch.stack(filters).sum(0) + mask
        if of_nyquist:
            limits = limits / _nyquist(module).to(limits)  # 0 on an axis of one tap
    elif isinstance(module, KernelNetwork):
        limits = torch.stack(module.band_limits(sigma_cut, as_published)).sum(0)
    elif isinstance(module, GaussianMask):
        limits = module.band_limits(sigma_cut)
    elif isinstance(module, FourierFilter | GaborFilter):
        limits = module.band_limit(sigma_cut, as_published)
    else:
        raise InputError(f"max_frequency expected a filter, kernel network, mask or layer of flexseq, got {type(module).__name__}")
    if kernel_size is not None:
        sizes = [kernel_size] * len(limits) if isinstance(kernel_size, int) else list(kernel_size)
        if len(sizes) != len(limits) or min(sizes) < 1:
            raise InputError(f"max_frequency expected a kernel_size of at least 1 for {len(limits)} axes, got {kernel_size}")
        limits = limits / _nyquist_of(sizes).to(limits)
    return limits if per_axis else limits.max()


def alias_penalty(
    model: nn.Module,
    *,
    include_mask: bool = False,
    method: str = "together",
    sigma_cut: float = 2.0,
    as_published: bool = False,
) -> Tensor:
    """What the continuous convolutions of a model pay for frequencies above Nyquist, at the resolution that it is set to.

    With f_l the limit of the l-th of L filters, f_mask the mask's, N the kernel's Nyquist frequency before cropping:
        "together":  sum_l max(0, f_l + f_mask / L - N / L)^2
        "summed":    max(0, sum_l f_l + f_mask - N)^2
    summed over layers; with several axes each term takes the axis that exceeds most.

    Args:
        model: any module, or a single layer.
        include_mask: whether f_mask counts; left out by default, as in the paper.
        method: "together" | "summed".
        sigma_cut, as_published: as in `max_frequency`.

    Returns:
        A scalar, to be added to the loss (the papers' weight is 0.1); 0 for a model without continuous convolutions.

    Raises:
        InputError: an unknown method; a layer whose kernel has no known bound, by name.

    Source:
        FlexConv, Eqs. 8 and 9.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    total = next((parameter.new_zeros(()) for parameter in model.parameters()), torch.zeros(()))
    for name, layer in model.named_modules():
        if not isinstance(layer, ContinuousConv):
            continue
        limits, mask = _layer_limits(layer, sigma_cut, include_mask, as_published)
        if layer.kernel_network.unlimited:
            kind = type(layer.kernel_network).__name__
            raise InputError(f"alias_penalty expected kernels with a known highest frequency, got {kind} in {name or 'the layer'}")
        nyquist = _nyquist(layer).to(limits[0])
        if method == "together":
            excesses = [limit + (mask - nyquist) / len(limits) for limit in limits]
        else:
            excesses = [torch.stack(limits).sum(0) + mask - nyquist]
        for excess in excesses:
            total = total + excess.max().clamp_min(0).square()
    return total


@torch.no_grad()
def limit_frequencies(model: nn.Module, *, sigma_cut: float = 2.0) -> nn.Module:
    """Scale the filters of every kernel, in place, so that the kernel without its mask stays at or below Nyquist.

    For the start of training. Kernels are drawn with frequencies many times Nyquist at image sizes, and `alias_penalty` takes thousands of
    steps to bring them down: its gradient reaches one filter function a step. Started here, it has only to keep them.
    Each of the L filters of a kernel gets at most 1 / L of the kernel's Nyquist frequency, at the resolution that the model is set to.

    Args:
        model: a module with continuous convolutions, or a single one.
        sigma_cut: as in `max_frequency`.

    Returns:
        The model.

    Raises:
        InputError: a layer whose kernel has no known bound, or filters of no scale of their own (N-Jet), by name; one without a size yet;
            no such layer at all. Nothing is changed then.

    Example:
        >>> import flexseq as fs
        >>> layer = fs.FlexConv2d(3, 8, 17)
        >>> float(max_frequency(layer, include_mask=False, of_nyquist=True)) > 5
        True
        >>> float(max_frequency(limit_frequencies(layer), include_mask=False, of_nyquist=True)) <= 1.001
        True
    """
    scales: list[tuple[FourierFilter | GaborFilter, Tensor]] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, ContinuousConv):
            continue
        filters = getattr(layer.kernel_network, "filters", None)
        if layer.kernel_network.unlimited or filters is None:
            kind = type(layer.kernel_network).__name__
            raise InputError(
                f"limit_frequencies expected kernels whose filters have a known highest frequency, got {kind} in {name or 'the layer'}"
            )
        nyquist = _nyquist(layer)
        for one in filters:
            limit = one.band_limit(sigma_cut, False)
            scales.append((one, (nyquist.to(limit) / len(filters) / limit).min().clamp_max(1)))
    if not scales:
        raise InputError(f"limit_frequencies expected a model with continuous convolutions, got {type(model).__name__}")
    for one, scale in scales:
        one.linear.weight.mul_(scale)
        if isinstance(one, GaborFilter):
            one.gamma.mul_(scale)
    return model


def _layer_limits(layer: ContinuousConv, sigma_cut: float, include_mask: bool, as_published: bool) -> tuple[list[Tensor], Tensor]:
    """Of each filter, and of the mask, 0 where it does not count: (ndim,) each."""
    filters = layer.kernel_network.band_limits(sigma_cut, as_published)
    if isinstance(layer, NJetConv):  # polynomials of position / sigma, and a window without which they have no limit
        return [filters[0] / layer.mask.sigma.abs()], layer.mask.band_limits(sigma_cut)
    if layer.mask is None or not include_mask:
        return filters, torch.zeros_like(filters[0])
    return filters, layer.mask.band_limits(sigma_cut)


def _nyquist(layer: ContinuousConv) -> Tensor:
    if layer.kernel_size is None:
        raise InputError(f"{type(layer).__name__} has no kernel size yet: give kernel_size, or an input first")
    return _nyquist_of(layer.kernel_size) * layer.ratio


def _nyquist_of(sizes: Sequence[int]) -> Tensor:
    """Of kernels of so many taps along each axis; on one of a single tap a kernel is a constant, which has no frequency to alias."""
    return torch.tensor([nyquist_frequency(size) if size > 1 else math.inf for size in sizes])
