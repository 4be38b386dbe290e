"""NIFF: kernels as functions of frequency."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.errors import InputError, unknown_name
from flexseq.functional.circular_conv import as_correlation, checked_grid, circular_conv, half_grid, mirrored
from flexseq.functional.dtypes import at_least_float32
from flexseq.functional.long_conv import long_conv
from flexseq.functional.programs import as_integers
from flexseq.kernels import KERNELS, MLP, KernelFactory, make_kernel
from flexseq.nn.forward_pass import kept_spectra
from flexseq.nn.kernel_cache import Snapshot
from flexseq.nn.layer import ConvLayer, is_readable
from flexseq.nn.sizes import KernelSize
from flexseq.positions import bin_frequencies, in_band

SIZES: dict[str, tuple[tuple[int, ...], str]] = {
    "tiny": ((8,), "silu"),
    "small": ((8, 4), "silu"),
    "big": ((16, 128, 32), "silu"),
    "cifar": ((32,), "relu"),
}
"""The paper's networks: widths between the frequencies and the kernels, and the activation."""

PADDINGS = {"zero": "constant", "reflect": "reflect", "circular": "circular"}


class NIFFConv(ConvLayer):
    """Circular convolution with kernels as large as the input, given by two small networks of frequency: real and imaginary part.

    The network's input is the frequency of each bin of the input's Fourier transform, in whole cycles per image. Only what belongs to a
    real kernel counts, W(f) and conj W(-f) averaged; so one half spectrum does, and the last bias of the imaginary network changes nothing
    (it is there because published counts of parameters include it).

    Inputs of another size than the first are taken for more or less signal at the same sampling rate: frequencies stay what they were per
    pixel, kernels are as large in pixels, and a warning says so. `flexseq.set_resolution` is for inputs that are sampled more finely: with
    the ratio of the two sizes frequencies stay what they were per image, and nothing passes above training's Nyquist frequency.

    Args:
        in_channels, out_channels: multiples of `groups`.
        kernel_size: samples along each axis of the inputs that it is trained on; where None, taken from the first training batch and kept,
            in the state_dict too.
        groups: as in torch.nn; in_channels for a depthwise layer, which is the paper's usual one.
        bias: whether a learned constant is added to each output channel; the paper has none.
        kernel: the networks: "tiny", "small", "big" or "cifar", the paper's; a list of widths, as (8, 4), with SiLUs between; or another
            name or factory of `flexseq.kernels`, whose positions are then frequencies in units of training's Nyquist frequency.
            (`flexseq.to_niff` calls this `size`, and has "big" by default.)
        linear: zero-pad the input and the kernel, so that the image's edges are not joined; kernels reach half an image each way.
        padding: "zero", "reflect" or "circular": surround the input by half its size on each side, and cut that off again; the kernel is
            then as large as the padded input.
        as_published: on odd sizes the frequencies of the authors' code, half a bin lower.

    Raises:
        InputError: arguments out of range.

    Source:
        Grabinski et al. 2024, "As large as it gets - Studying Infinitely Large Convolutions via Neural Implicit Frequency Filters".

    Example:
        >>> layer = NIFFConv2d(8, 8, groups=8)
        >>> layer(torch.randn(2, 8, 14, 14)).shape, layer.sample_kernel().shape
        (torch.Size([2, 8, 14, 14]), torch.Size([8, 1, 14, 14]))
        >>> sum(p.numel() for p in layer.parameters())  # 2-8-4-8, twice
        200
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None = None,
        *,
        groups: int = 1,
        bias: bool = False,
        kernel: str | Sequence[int] | KernelFactory = "small",
        linear: bool = False,
        padding: str | None = None,
        as_published: bool = False,
    ):
        super().__init__(in_channels, out_channels, groups)
        self._asked: tuple[Any, Tensor, Tensor | None] | None = None
        self._said: set[tuple[int, ...]] = set()
        name = type(self).__name__
        if padding is not None and padding not in PADDINGS:
            raise unknown_name("padding", padding, PADDINGS)
        if padding is not None and linear:
            raise InputError(f"{name} expected padding=None with linear=True, which pads with zeros itself, got {padding!r}")
        self.linear, self.padding, self.as_published = linear, padding, as_published
        size = self._checked_kernel_size(kernel_size)
        if size is not None:
            self._set_size(KernelSize(size, True))
        factory, self.in_cycles = _factory(kernel)
        channels = out_channels * (in_channels // groups)
        self.real = make_kernel(factory, self.ndim, channels)
        self.imaginary = make_kernel(factory, self.ndim, channels)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve. In eval mode without gradients the spectrum (the kernel, where `linear`) is kept from call to call, until a parameter
        changes; a network finds that out for all of its layers in one read from the device.

        Args:
            x: (batch, in_channels, *grid).

        Returns:
            (batch, out_channels, *grid).

        Raises:
            InputError: another number of axes or channels, or another dtype than the parameters'.
        """
        self._check_input(x, self.real.readout.bias.dtype)
        if 0 in x.shape[2:]:
            raise InputError(f"{type(self).__name__} expected at least one sample, got shape {tuple(x.shape)}")
        grid = as_integers(x.shape[2:])
        x = self._padded(x)
        if not torch.compiler.is_compiling():
            self._read_code()
        if self.needs_size():
            self._size_from(grid)
        if not torch.compiler.is_compiling():
            self._say_size(grid)
        if self.linear:
            return long_conv(x, self._kept_or_made(self._own_grid()).to(x.dtype), self.bias, groups=self.groups)
        padded = as_integers(x.shape[2:])
        y = circular_conv(x, self._kept_or_made(padded), self.bias, groups=self.groups)
        for axis, (size, whole) in enumerate(zip(grid, padded, strict=True), start=2):
            y = y.narrow(axis, (whole - size) // 2, size)
        return y

    def sample_spectrum(self, grid: Sequence[int] | None = None) -> Tensor:
        """The kernel's Fourier transform: (out_channels, in_channels / groups, *half), as torch.fft.rfftn orders it.

        Args:
            grid: of the signals that it is for; by default training's size times the resolution's ratio.

        Raises:
            InputError: the kernel's size is not known yet.
        """
        self.known_size()
        grid = self._own_grid() if grid is None else checked_grid(grid, self.ndim)
        dtype = at_least_float32(self.real.readout.bias.dtype)
        options: dict[str, Any] = {"dtype": dtype, "device": self.real.readout.bias.device}
        with torch.autocast(self.real.readout.bias.device.type, enabled=False):
            positions, heard = self._positions(grid, **options)
            parts = []
            for network, is_real in ((self.real, True), (self.imaginary, False)):
                there, opposite = network.basis(positions).chunk(2, 1)  # at the half spectrum's frequencies, and at minus them
                readout = network.readout
                weight, bias = readout.effective_weight().to(dtype), readout.bias.to(dtype)[:, None]
                # W(f) and conj W(-f) averaged; a constant has no odd part, but its parameter stays in the graph.
                basis = (there + opposite if is_real else there - opposite) / 2
                part = torch.addmm(bias, weight, basis, beta=1 if is_real else 0)
                parts.append((part if heard is None else part * heard).unflatten(1, half_grid(grid)))
        return torch.complex(*parts).unflatten(0, (self.out_channels, self.in_channels // self.groups))

    def _positions(self, grid: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """What the networks are asked at, (ndim, 2 * frequencies): the half spectrum's bins, then the bins of minus their frequencies.

        And at another resolution, which of the frequencies pass: (frequencies,).
        """
        key = grid, self._whole(), self.ratio, self.as_published, self.in_cycles, dtype, device
        if torch.jit.is_tracing():
            return self._make_positions(grid, dtype, device)
        if self._asked is None or self._asked[0] != key:
            with torch.inference_mode(False):  # it is kept for later calls, which may need gradients
                self._asked = key, *self._make_positions(grid, dtype, device)
        return self._asked[1], self._asked[2]

    def _make_positions(self, grid: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
        whole = self._whole()
        frequencies = bin_frequencies(grid, whole, ratio=self.ratio, as_published=self.as_published, dtype=dtype, device=device)
        heard = in_band(frequencies, whole).to(dtype) if self.ratio > 1 else None
        if not self.in_cycles:
            nyquist = torch.tensor([max(size, 2) / 2 for size in whole], dtype=dtype, device=device)
            frequencies = frequencies / nyquist.view(-1, *[1] * self.ndim)
        last = grid[-1] // 2 + 1
        both = [part[..., :last].flatten(1) for part in (frequencies, mirrored(frequencies, self.ndim))]
        return torch.cat(both, 1), None if heard is None else heard[..., :last].flatten()

    def sample_kernel(self, grid: Sequence[int] | None = None) -> Tensor:
        """The kernel in space, as a cross-correlation applies it: (out_channels, in_channels / groups, *grid).

        Tap (n - 1) // 2 along each axis is the present one, as in `flexseq.functional.long_conv`; unless `linear`, taps beyond the image's
        edge are those at the other edge.

        Args:
            grid: see `sample_spectrum`.
        """
        spectrum = self.sample_spectrum(grid)
        return as_correlation(spectrum, self._own_grid() if grid is None else checked_grid(grid, self.ndim)).to(
            self.real.readout.bias.dtype
        )

    def _whole(self) -> tuple[int, ...]:
        """Samples along each axis that training transforms."""
        return tuple(size if self.padding is None else size + 2 * (size // 2) for size in self.known_size())

    def _own_grid(self) -> tuple[int, ...]:
        return self._at_ratio(self._whole())

    def _made(self, grid: Sequence[int]) -> Tensor:
        """What convolutions take: the spectrum, or the kernel in space where `linear`."""
        spectrum = self.sample_spectrum(grid)
        return as_correlation(spectrum, grid) if self.linear else spectrum

    def _kept_or_made(self, grid: Sequence[int]) -> Tensor:
        kept = kept_spectra(self)
        if kept is None:
            return self._made(grid)
        key = tuple(grid)
        if key not in kept:
            kept[key] = self._made(grid)
        return kept[key]

    def snapshot(self) -> Snapshot | None:
        """Everything that the kernels of all grids are functions of; None where it cannot be compared."""
        stream = torch.cuda.current_stream(self.device).stream_id if self.device.type == "cuda" else None
        own = self.linear, self.padding, self.as_published, self.in_cycles
        return Snapshot.of(type(self), *self.size, own, stream, *self.kernel_modules())

    def kernel_modules(self) -> tuple[nn.Module | None, ...]:
        """Of whose parameters the kernel is made."""
        return self.real, self.imaginary

    def is_readable(self) -> bool:
        """Whether the host can read what the kernel is made from."""
        return is_readable(self.real.readout.bias)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.real.readout.bias.device

    def _padded(self, x: Tensor) -> Tensor:
        if self.padding is None:
            return x
        # As much of the image as in training: half its samples there, rounded down.
        amounts = [round(self.ratio * (round(size / self.ratio) // 2)) for size in reversed(as_integers(x.shape[2:])) for _ in range(2)]
        return F.pad(x, amounts, mode=PADDINGS[self.padding])

    def _say_size(self, grid: Sequence[int]) -> None:
        size = tuple(int(n) for n in grid)
        own = self._at_ratio(self.known_size())
        if size in self._said or self._fits(size, own):
            return
        self._said.add(size)
        sizes = ["x".join(map(str, one)) for one in (own, size)]
        warnings.warn(
            f"{type(self).__name__} is for inputs of {sizes[0]} samples and runs on {sizes[1]}: its frequencies stay what they are per "
            "sample; for inputs that are sampled more or less finely, use set_resolution",
            stacklevel=3,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_asked": None}

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += [f"ratio={self.ratio:g}"] if self.ratio != 1 else []
        parts += ["bias=False"] if self.bias is None else []
        parts += ["linear=True"] if self.linear else []
        parts += [f"padding={self.padding!r}"] if self.padding is not None else []
        return ", ".join(parts)


@records_arguments
class NIFFConv1d(NIFFConv):
    __doc__ = NIFFConv.__doc__
    ndim = 1


@records_arguments
class NIFFConv2d(NIFFConv):
    __doc__ = NIFFConv.__doc__
    ndim = 2


def _factory(kernel: str | Sequence[int] | KernelFactory) -> tuple[str | KernelFactory, bool]:
    """How to make the networks, and whether they take frequencies in cycles per image."""
    if isinstance(kernel, str):
        if kernel in SIZES:
            widths, activation = SIZES[kernel]
            return partial(MLP, widths=widths, activation=activation), True
        if kernel not in KERNELS:
            raise unknown_name("kernel", kernel, [*SIZES, *KERNELS])
        return kernel, False
    if callable(kernel):
        return kernel, False
    if not isinstance(kernel, Sequence):
        raise InputError(f"kernel expected a size ({', '.join(SIZES)}), widths, or a network of flexseq.kernels, got {kernel!r}")
    listed: Any = tuple(kernel)
    return partial(MLP, widths=listed, activation="silu"), True
