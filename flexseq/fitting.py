"""Give a layer the kernel that another one has: least squares on the readout, which is linear, then on the rest of the network."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.errors import InputError
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.forward_pass import read_crops
from flexseq.nn.kernel_making import make_kernels, taps_before
from flexseq.nn.niff import NIFFConv

STEPS, LR = 300, 0.01
"""Of the optimiser, for kernels given by their frequencies: their networks have few functions to combine."""
RIDGE = 1e-10
"""What a unit of squared weight costs, relative to the functions' largest: near-equal functions are not to get huge opposite weights."""


def fit_kernel(layer: nn.Module, kernel: Tensor) -> float:
    """Make a layer's kernel as near as can be to a given one, in place.

    A mask is first given the size of the kernel.

    Args:
        layer: a FlexConv, CKConv, N-Jet or NIFFConv whose kernel size is known.
        kernel: (out_channels, in_channels / groups, *taps), odd, with its middle at the present sample; larger than the layer's it is cut.

    Returns:
        The relative error, ||fitted - kernel|| / ||kernel||; 0 for a kernel of zeros.

    Raises:
        InputError: another kind of layer, an unknown kernel size, another shape.
    """
    if not isinstance(layer, ContinuousConv | NIFFConv):
        raise InputError(f"fit_kernel expected a layer of flexseq whose kernel is a network's, got {type(layer).__name__}")
    size = layer.known_size()
    expected = (layer.out_channels, layer.in_channels // layer.groups)
    if tuple(kernel.shape[:2]) != expected or kernel.ndim != 2 + layer.ndim or any(taps % 2 == 0 for taps in kernel.shape[2:]):
        raise InputError(
            f"fit_kernel expected a kernel of shape {expected} and odd taps along {layer.ndim} axes, got {tuple(kernel.shape)}"
        )
    with torch.enable_grad(), torch.autocast(kernel.device.type, enabled=False):
        target = kernel.detach().double()
        if isinstance(layer, ContinuousConv):
            fitted, target = _fit_taps(layer, target, size)
        else:
            fitted, target = _fit_frequencies(layer, target)
        norm = torch.linalg.vector_norm(kernel.detach().double())
        return float(torch.linalg.vector_norm(fitted - target) / norm) if norm else 0.0


def _fit_taps(layer: ContinuousConv, kernel: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        if layer.mask is not None and layer.mask.threshold:
            reach = torch.tensor([taps / max(1, n - 1) for taps, n in zip(kernel.shape[2:], size, strict=True)])  # half the taps, in units
            sigma = reach / (-2 * torch.tensor(layer.mask.threshold).log()).sqrt()
            layer.mask.sigma.copy_(sigma.clamp_max(1.0))
        (keep,) = read_crops([layer])
        assert keep is not None
        (made,) = make_kernels([layer], [keep])
        basis, before = made.basis, taps_before(layer, keep)
        target = placed(kernel, basis.shape[1:], before)
        weight = _least_squares(basis.double().flatten(1), target.flatten(2).flatten(0, 1))
        _set_readout(layer.kernel_network.readout, weight)
        return layer.sample_kernel().double(), target


def _fit_frequencies(layer: NIFFConv, kernel: Tensor) -> tuple[Tensor, Tensor]:
    grid = layer._own_grid()
    target = placed(kernel, grid, [(n - 1) // 2 for n in grid])
    axes = list(range(-layer.ndim, 0))
    # Tap (n - 1) // 2 is the present one of a correlation; a convolution's kernel runs the other way, its present tap first.
    there = torch.flip(torch.roll(target, [n // 2 for n in grid], axes), axes)
    spectrum = torch.fft.rfftn(there, dim=axes).flatten(2).flatten(0, 1)
    parts = (spectrum.real, spectrum.imag)
    options: dict[str, Any] = {"dtype": torch.float64, "device": kernel.device}
    positions, _ = layer._positions(grid, **options)
    positions = positions.to(layer.real.readout.bias.dtype)
    for network, values, sign in ((layer.real, parts[0], 1), (layer.imaginary, parts[1], -1)):
        inner = [parameter for name, parameter in network.named_parameters() if not name.startswith("readout")]
        optimizer = torch.optim.Adam(inner, LR)
        for _ in range(STEPS):
            functions = _with_constant(network, positions, sign)
            with torch.no_grad():
                weight = _least_squares(functions.double(), values)
            optimizer.zero_grad()
            (weight.to(functions) @ functions - values.to(functions)).square().mean().backward(inputs=inner)
            optimizer.step()
        with torch.no_grad():
            _set_readout(network.readout, _least_squares(_with_constant(network, positions, sign).double(), values))
    with torch.no_grad():
        return layer.sample_kernel().double(), target


def _with_constant(network: Any, positions: Tensor, sign: int) -> Tensor:
    """The even or odd part of a network's functions at the half spectrum, and a constant, which has no odd part."""
    there, opposite = network.basis(positions).chunk(2, 1)
    functions = (there + sign * opposite) / 2
    return torch.cat([functions, torch.full_like(functions[:1], 1.0 if sign > 0 else 0.0)])


def placed(kernel: Tensor, grid: Sequence[int], before: Sequence[int]) -> Tensor:
    """A kernel amid zeros, or cut, on a grid with `before` taps before the present one along each axis."""
    target = kernel.new_zeros(*kernel.shape[:2], *grid)
    inside, outside = [slice(None)] * 2, [slice(None)] * 2
    for taps, size, first in zip(kernel.shape[2:], grid, before, strict=True):
        shift = first - taps // 2
        low, high = max(0, shift), min(size, shift + taps)
        inside.append(slice(low, high))
        outside.append(slice(low - shift, high - shift))
    target[tuple(inside)] = kernel[tuple(outside)]
    return target


def _least_squares(functions: Tensor, values: Tensor) -> Tensor:
    """Weights, (kernels, H), for which weights @ functions is nearest to values: functions (H, n), values (kernels, n)."""
    gram = functions @ functions.T
    gram = gram + RIDGE * gram.diagonal().max() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, functions @ values.T).T


def _set_readout(readout: Any, weight: Tensor) -> None:
    if readout.weight_norm:
        readout.weight_v.copy_(weight[:, :-1])
        readout.weight_g.copy_(weight[:, :-1].norm(dim=1, keepdim=True))
    else:
        readout.weight.copy_(weight[:, :-1])
    readout.bias.copy_(weight[:, -1])
