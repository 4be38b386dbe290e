"""Spectra of kernels, given as they are or as linear combinations of a basis, and what their gradients make of them."""

import math

import torch
from torch import Tensor

from flexseq.functional.blocks import Axis, padded
from flexseq.functional.programs import constant


class KernelSpectra:
    """Spectra of kernels that are given as they are."""

    def __init__(self, kernel: Tensor, axes: tuple[Axis, ...], groups: int):
        self.axes, self.groups, self.taps = axes, groups, kernel.shape[2:]
        self.out_channels, self.in_per_group = kernel.shape[:2]
        self.is_depthwise = groups == self.out_channels and self.in_per_group == 1
        self.spectrum = transform(_placed(kernel, axes), len(axes))  # (out, in / groups, frequencies)
        self.slope: Tensor | None = None

    def at(self, chunk: slice, *, conj: bool) -> Tensor:
        """K, or conj(K), at some frequencies: (frequencies, groups, out / groups, in / groups)."""
        part = self.spectrum[..., chunk].unflatten(0, (self.groups, -1)).permute(3, 0, 1, 2)
        return laid_out(part.conj() if conj else part)

    def depthwise(self, *, conj: bool) -> Tensor:
        """All of K, or conj(K), of a depthwise convolution: (channels, frequencies)."""
        return self.spectrum[:, 0].conj_physical() if conj else self.spectrum[:, 0]

    def take_slope(self, slope: Tensor, chunk: slice) -> None:
        """Keep conj(dK) at these frequencies, in the shape of `at`."""
        slope = slope.permute(1, 2, 3, 0).flatten(0, 1).conj()
        if slope.shape == self.spectrum.shape:
            self.slope = slope
            return
        if self.slope is None:
            self.slope = torch.empty_like(self.spectrum)
        self.slope[..., chunk] = slope

    def take_depthwise_slope(self, slope: Tensor) -> None:
        """The same of a depthwise convolution: (channels, frequencies)."""
        self.slope = slope[:, None].conj()

    def gradient(self) -> Tensor:
        """(out, in / groups, *taps)."""
        assert self.slope is not None  # there is at least one frequency
        return _taken(inverse(self.slope, self.axes), self.taps)


class BasisSpectra:
    """Spectra of kernels that are linear combinations of a basis."""

    def __init__(self, basis: Tensor, weight: Tensor, axes: tuple[Axis, ...], groups: int):
        self.axes, self.groups, self.taps, self.shape = axes, groups, basis.shape[1:], weight.shape
        self.out_channels, self.in_per_group = weight.shape[:2]
        self.is_depthwise = groups == self.out_channels and self.in_per_group == 1
        self.spectrum = transform(_placed(basis, axes), len(axes))  # (H, frequencies)
        self.weight = weight.flatten(0, 1)  # (out * in / groups, H)
        self.parts: dict[bool, Tensor] = {}
        self.basis_slope: Tensor | None = None
        self.weight_slope: Tensor | None = None
        self.all: Tensor | None = None

    def make_all(self) -> None:
        """Make the spectra of all kernels now, rather than when they are asked for; for the forward pass."""
        self.all = self.depthwise(conj=True) if self.is_depthwise else self.at(slice(None), conj=True)

    def at(self, chunk: slice, *, conj: bool) -> Tensor:
        """K, or conj(K), at some frequencies: (frequencies, groups, out / groups, in / groups)."""
        if self.all is not None:
            return self.all[chunk]
        parts = torch.matmul(self._real_parts(conj=conj)[:, chunk], self.weight.T)
        return torch.complex(parts[0], parts[1]).view(-1, self.groups, self.out_channels // self.groups, self.in_per_group)

    def _real_parts(self, *, conj: bool) -> Tensor:
        """The basis's spectrum, or the conjugated one: (2, frequencies, H), real and imaginary parts."""
        if conj not in self.parts:
            moved = torch.view_as_real(self.spectrum).permute(2, 1, 0)
            parts = torch.empty(moved.shape, dtype=moved.dtype, device=moved.device)
            self.parts[conj] = torch.mul(moved, _signs(moved.dtype, moved.device), out=parts) if conj else parts.copy_(moved)
        return self.parts[conj]

    def depthwise(self, *, conj: bool) -> Tensor:
        """All of K, or conj(K), of a depthwise convolution: (channels, frequencies)."""
        if self.all is not None:
            return self.all
        flat = torch.view_as_real(self.spectrum).flatten(1)
        spectrum = torch.view_as_complex(torch.mm(self.weight, flat).unflatten(1, (-1, 2)))
        return spectrum.conj_physical_() if conj else spectrum

    def take_slope(self, slope: Tensor, chunk: slice) -> None:
        """Add up what conj(dK) at these frequencies, in the shape of `at`, makes of the gradients."""
        parts = laid_out(torch.view_as_real(slope).permute(4, 0, 1, 2, 3).flatten(2))  # (2, frequencies, out * in / groups)
        slope = torch.matmul(parts, self.weight)
        basis = self._real_parts(conj=False)
        share = _share(
            tuple(axis.points for axis in self.axes), basis.dtype, basis.device
        )  # Parseval: a sum over taps is one over frequencies
        if len(slope[0]) == basis.shape[1]:
            self.basis_slope = slope
            self.weight_slope = torch.mm(parts.flatten(0, 1).T, (basis * share).flatten(0, 1))
            return
        if self.basis_slope is None:
            self.basis_slope = torch.empty_like(basis)
            self.weight_slope = torch.zeros_like(self.weight)
        assert self.weight_slope is not None
        self.basis_slope[:, chunk] = slope
        self.weight_slope.addmm_(parts.flatten(0, 1).T, (basis[:, chunk] * share[:, chunk]).flatten(0, 1))

    def take_depthwise_slope(self, slope: Tensor) -> None:
        """The same of a depthwise convolution: (channels, frequencies)."""
        slope = torch.view_as_real(slope)  # (channels, frequencies, 2)
        share = _share(tuple(axis.points for axis in self.axes), slope.dtype, slope.device).permute(2, 1, 0)
        self.basis_slope = torch.mm(self.weight.T, slope.flatten(1)).unflatten(1, (-1, 2)).permute(2, 1, 0)
        self.weight_slope = torch.mm(slope.flatten(1), (torch.view_as_real(self.spectrum) * share).flatten(1).T)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """(H, *taps) and (out, in / groups, H)."""
        assert self.basis_slope is not None  # there is at least one frequency
        assert self.weight_slope is not None
        moved = self.basis_slope.permute(2, 1, 0)
        spectrum = torch.empty(moved.shape, dtype=moved.dtype, device=moved.device)
        torch.mul(moved, _signs(moved.dtype, moved.device).permute(2, 1, 0), out=spectrum)
        return _taken(inverse(torch.view_as_complex(spectrum), self.axes), self.taps), self.weight_slope.view(self.shape)


def transform(signal: Tensor, ndim: int) -> Tensor:
    """(..., *points) -> (..., frequencies)."""
    return torch.fft.rfftn(signal, dim=list(range(-ndim, 0))).flatten(-ndim)


def inverse(spectrum: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(..., frequencies) -> (..., *points)."""
    points = [axis.points for axis in axes]
    return torch.fft.irfftn(spectrum.unflatten(-1, [*points[:-1], points[-1] // 2 + 1]), s=points, dim=list(range(-len(axes), 0)))


def _placed(kernel: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """(..., *taps) -> (..., *points)."""
    return padded(kernel, [(0, axis.points - axis.taps) for axis in axes])


def _taken(signal: Tensor, taps: torch.Size) -> Tensor:
    """The adjoint of `_placed`."""
    for i, count in enumerate(taps):
        signal = signal.narrow(i - len(taps), 0, count)
    return signal.contiguous()


def laid_out(view: Tensor) -> Tensor:
    """A copy without gaps, in the order of its axes, with nothing conjugated lazily."""
    return torch.empty(view.shape, dtype=view.dtype, device=view.device).copy_(view)


@constant
def _share(points: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """How much each kept frequency stands for in a mean over all of them, minus that for imaginary parts: (2, frequencies, 1)."""
    *others, last = points
    half = torch.full((last // 2 + 1,), 2.0, dtype=torch.float64)
    half[0] = half[-1] = 1  # points are even
    share = half.repeat(math.prod(others)) / (last * math.prod(others))
    return torch.stack([share, -share])[..., None].to(dtype=dtype, device=device)


@constant
def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the real and the imaginary part of a conjugated number: (2, 1, 1)."""
    return torch.tensor([1.0, -1.0]).view(2, 1, 1).to(dtype=dtype, device=device)
