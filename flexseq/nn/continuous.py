"""What CKConv and FlexConv share: a kernel network sampled at the taps, then a long convolution."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flexseq.errors import InputError, unknown_name
from flexseq.functional import basis_long_conv
from flexseq.functional.long_conv import METHODS
from flexseq.functional.programs import is_recorded_now, unrecorded
from flexseq.kernels import KernelFactory, make_kernel
from flexseq.nn.layer import ConvLayer, agreed_on, is_readable
from flexseq.nn.mask import GaussianMask
from flexseq.nn.sizes import KernelSize
from flexseq.positions import Keep, tap_positions, tap_weights, taps_around

CHECKPOINTED_FROM = 2048
"""Taps from which the basis is computed again in the backward pass: 30 tensors of 32 functions take 8 MB there."""


class KeptKernel(NamedTuple):
    """A kernel as eval mode keeps it between calls.

    Args:
        values: the parameters that it was made from, as one vector.
        settings: all else that it was made from, the taps among it.
        basis, weight: the kernel as a mix of functions.
        made: what convolutions have made of it; they leave it there.
    """

    values: Tensor
    settings: tuple[Any, ...]
    basis: Tensor
    weight: Tensor
    made: dict[str, Any]


class Crop(NamedTuple):
    """The taps that a layer keeps, and what it knows of the kernel there.

    Args:
        keep: a (start, stop) for each axis.
        kernel: in eval mode without gradients, what an earlier call left, if nothing has changed since.
    """

    keep: Keep
    kernel: KeptKernel | None = None


class ContinuousConv(ConvLayer):
    """A convolution whose kernel is a function of position; base of the layers, which say how that function is made.

    Args:
        in_channels, out_channels: multiples of `groups`.
        kernel_size: taps along each axis; where None, taken from the first training batch and kept: a sequence's length, or for images the
            size, plus one where that is even.
        causal: an output sees only the present and the past (along every axis); else it is centred and zero-padded "same".
        groups: as in torch.nn; in_channels for a depthwise layer.
        bias: whether a learned constant is added to each output channel.
        kernel: a name ("magnet", "gabor", "fourier", "siren", "mlp"), or a factory such as partial(MAGNet, steerable=True).
        spatial_extent: half-width of the region in which the kernel network is to be detailed.
        mask: a Gaussian mask to multiply the kernel with, if any.
        variance_preserving: scale the readout, once the kernel's size is known, so that each output channel has the variance of a
            white input, wherever the kernel does not reach over the input's edge.
        method: how to convolve; see `flexseq.functional.long_conv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None,
        *,
        causal: bool,
        groups: int,
        bias: bool,
        kernel: str | KernelFactory,
        spatial_extent: float,
        mask: GaussianMask | None,
        variance_preserving: bool,
        method: str,
    ):
        super().__init__(in_channels, out_channels, groups)
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        self.causal = causal
        self.method = method
        size = self._checked_kernel_size(kernel_size)
        self.kernel_network = make_kernel(kernel, self.ndim, out_channels * (in_channels // groups), spatial_extent=spatial_extent)
        self.mask = mask
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.variance_preserving = variance_preserving
        self._is_single = self._was_wider = False  # of the mask, in training
        self._drawn: Tensor | bool = False  # the readout's weight while it is still to be scaled: true for whatever it is
        if variance_preserving:
            self._drawn = self._readout_weight()
        if size is not None:
            self._set_size(KernelSize(size, True))
            self._start()

    def forward(self, x: Tensor, crop: Crop | None = None, *, last: int | None = None) -> Tensor:
        """Convolve. In eval mode without gradients the kernel is kept from call to call, until a parameter changes.

        Args:
            x: (batch, in_channels, *grid).
            crop: the taps to use, as `read_crops` gives them for a whole network at once; by default the layer reads its own mask.
            last: give only the last so many outputs of a causal layer over one axis; all by default.

        Returns:
            (batch, out_channels, *grid).

        Raises:
            InputError: another number of axes or channels.
        """
        self._check_input(x, self.kernel_network.readout.bias.dtype)
        if crop is None:
            (crop,) = read_crops([self], x.shape[2:])
            assert crop is not None
        kept = None
        replica = getattr(self, "_is_replica", False)  # of nn.DataParallel: made for one call, without parameters to compare
        if self.training or torch.is_grad_enabled() or is_recorded_now() or replica:
            basis, weight = self._mix(crop.keep)
        else:
            kernel = crop.kernel or self._kernel_to_keep(crop.keep)
            basis, weight, kept = kernel.basis, kernel.weight, kernel.made
        options: dict[str, Any] = {
            "causal": self.causal,
            "groups": self.groups,
            "method": self.method,
            "before": self._taps_before(crop.keep),
        }
        return basis_long_conv(x, basis, weight, self.bias, **options, last=last, kept=kept)

    def sample_kernel(self, *, crop: bool = True) -> Tensor:
        """The kernel as it is applied, masked and cropped: (out_channels, in_channels / groups, *taps).

        Args:
            crop: false for all taps of the masked kernel.

        Raises:
            InputError: the kernel's size is not known yet.
        """
        basis, weight = self.sample_basis(crop=crop)
        return torch.tensordot(weight, basis, 1).to(self.kernel_network.readout.bias.dtype)

    def sample_basis(self, *, crop: bool = True) -> tuple[Tensor, Tensor]:
        """The functions that the kernel is a mix of, and their weights: `sample_kernel` is their product.

        Args:
            crop: false for all taps of the masked functions.

        Returns:
            (H, *taps), and (out_channels, in_channels / groups, H).
        """
        (kept,) = read_crops([self])
        assert kept is not None
        return self._mix(kept.keep if crop else self._all_taps())

    def kernel_norm(self, crop: Crop | None = None) -> Tensor:
        """||sampled kernel||_2, without sampling the kernel: ||W B||^2 = tr(W B B' W') for a basis B and a readout W. A scalar.

        Args:
            crop: the taps, as in `forward`.
        """
        if crop is None:
            (crop,) = read_crops([self])
            assert crop is not None
        with torch.autocast(self._device.type, enabled=False):
            basis, weight = self._mix(crop.keep)
            basis, weight = basis.flatten(1), weight.flatten(0, 1)
            square = ((weight @ (basis @ basis.T)) * weight).sum()
            tiny = torch.finfo(square.dtype).tiny  # the root's slope at 0 is infinite
            return square.clamp_min(tiny).sqrt()

    def _kernel_to_keep(self, keep: Keep) -> KeptKernel:
        # Before the kernel: should anything change meanwhile, it will not be taken for the new one's.
        values, settings = self._kernel_values(), self._kernel_settings(keep)
        self._kept = kept = KeptKernel(values, settings, *self._mix(keep), {})
        return kept

    def _kernel_settings(self, keep: Keep) -> tuple[Any, ...]:
        """What a sampled kernel depends on beside parameters: the taps, the network's own settings; and whose stream of work made it."""
        network = vars(self.kernel_network).items()
        own = [(name, value) for name, value in network if isinstance(value, str | int | float) and name != "training"]
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        return self.kernel_size, self.ratio, tuple(keep), tuple(own), stream

    def _kernel_values(self) -> Tensor:
        """The parameters and buffers that a sampled kernel depends on, copied into one vector."""
        modules = [self.kernel_network] if self.mask is None else [self.kernel_network, self.mask]
        values = [value for module in modules for value in (*module.parameters(), *module.buffers())]
        return torch.cat([value.detach().flatten() for value in values])

    def _unchanged(self, kept: KeptKernel) -> Tensor | None:
        """Whether a kept kernel is still the layer's, as a tensor on its device; None where there is nothing to compare."""
        values = self._kernel_values()
        if (values.shape, values.dtype, values.device) != (kept.values.shape, kept.values.dtype, kept.values.device):
            return None
        return (values == kept.values).all()

    def _mix(self, keep: Keep) -> tuple[Tensor, Tensor]:
        """The kernel as a mix of functions, at least in float32.

        Returns:
            The functions at the kept taps, times the mask, (H, *taps), and their weights, (out_channels, in_channels / groups, H).
        """
        with torch.autocast(self._device.type, enabled=False):  # positions need more digits than half precision has
            taps = math.prod([stop - start for start, stop in keep])
            if torch.is_grad_enabled() and not is_recorded_now() and taps >= CHECKPOINTED_FROM:
                # Cheap to make again in the backward pass, costly to keep: some thirty tensors of this size.
                basis = checkpoint(self._basis, keep, use_reentrant=False, preserve_rng_state=False)
            else:
                basis = self._basis(keep)
            readout = self.kernel_network.readout
            weight = torch.cat([readout.effective_weight(), readout.bias[:, None]], 1).to(basis.dtype)
        return basis, weight.unflatten(0, (self.out_channels, self.in_channels // self.groups))

    def _basis(self, keep: Keep) -> Tensor:
        positions = self._positions(keep)
        basis = self.kernel_network.basis(positions)
        basis = torch.cat([basis, torch.ones_like(basis[:1])])  # the readout's bias is the weight of a constant
        return self._weighted(basis if self.mask is None else basis * self._window(positions, keep), keep)

    def _window(self, positions: Tensor, keep: Keep) -> Tensor:
        """The mask at the taps; zero outside of the crop, where that could not be read and `keep` has all taps."""
        assert self.mask is not None
        window = self.mask(positions)
        if is_readable(self.mask.sigma):
            return window
        return window * self.mask.inside(self.known_size(), causal=self.causal, ratio=self.ratio).to(window.dtype)

    def _weighted(self, basis: Tensor, keep: Keep) -> Tensor:
        """Functions at the taps times what the taps count at the layer's resolution."""
        if self.ratio == 1:
            return basis
        assert self.kernel_size is not None
        options: dict[str, Any] = {"causal": self.causal, "keep": keep, "ratio": self.ratio, "dtype": basis.dtype, "device": basis.device}
        return basis * tap_weights(self.kernel_size, **options)

    def _positions(self, keep: Keep) -> Tensor:
        assert self.kernel_size is not None  # whoever has taps to keep has asked read_crops, which checks it
        parameter = self.kernel_network.readout.bias
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return tap_positions(self.kernel_size, causal=self.causal, keep=keep, ratio=self.ratio, dtype=dtype, device=parameter.device)

    def _taps_before(self, keep: Keep) -> list[int]:
        """Kept taps before the present one, for each axis."""
        assert self.kernel_size is not None
        around = [taps_around(size, causal=self.causal, ratio=self.ratio)[0] for size in self.kernel_size]
        return [before - start for before, (start, _) in zip(around, keep, strict=True)]

    def _all_taps(self) -> list[tuple[int, int]]:
        around = [taps_around(size, causal=self.causal, ratio=self.ratio) for size in self.known_size()]
        return [(0, before + after + 1) for before, after in around]

    @property
    def _device(self) -> torch.device:
        return self.kernel_network.readout.bias.device

    def _size_for(self, grid: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(n) if self.ndim == 1 else int(n) + 1 - int(n) % 2 for n in grid)

    def _start(self) -> None:
        assert self.kernel_size is not None
        if not is_readable(self.kernel_network.readout.bias):
            return  # weights come later, from a state_dict
        if self.variance_preserving:
            self._preserve_variance()
        (crop,) = read_crops([self])
        assert crop is not None
        if max(self.kernel_size) > 1 and all(stop - start == 1 for start, stop in crop.keep):
            warnings.warn(
                f"{type(self).__name__} with a kernel of {'x'.join(map(str, self.kernel_size))} taps starts with a single one: "
                f"its mask is too narrow to learn. Give a mask_sigma above {self._sigma_for_neighbours():.2g}",
                stacklevel=2,
            )

    @torch.no_grad()
    def _preserve_variance(self) -> None:
        """Scale the readout, unless it was trained, loaded or copied since it was drawn: then it has its scale."""
        drawn, weight = self._drawn, self._readout_weight()
        is_drawn = torch.equal(drawn.to(weight), weight) if isinstance(drawn, Tensor) else drawn
        if self.training:  # processes that train together have the first one's weights, which may be another's draw
            (is_drawn,) = map(bool, agreed_on([is_drawn], weight.device))
        if not is_drawn:
            self._drawn = False
            return
        # A white input of variance 1 gives an output of variance sum k^2, over input channels and taps.
        gain = self.sample_kernel().double().square().flatten(1).sum(1).sqrt()  # (out_channels,)
        per_output = self.in_channels // self.groups
        readout = self.kernel_network.readout
        readout.scale_outputs((1 / gain).to(readout.bias.dtype).repeat_interleave(per_output))
        # Until a training batch comes, the size may still change.
        self._drawn = False if self._size.settled else self._readout_weight()

    def _readout_weight(self) -> Tensor:
        return self.kernel_network.readout.effective_weight().detach().clone()

    def _check_reach(self, keep: Keep) -> None:
        """Warn once where a mask shrank to a single tap in training."""
        single = max(self.known_size()) > 1 and all(stop - start == 1 for start, stop in keep)
        if single and not self._is_single and self._was_wider:
            warnings.warn(
                f"{type(self).__name__} with a kernel of {'x'.join(map(str, self.known_size()))} taps has shrunk to a single one: its "
                f"mask has no gradient any more. Start it wider than {self._sigma_for_neighbours():.2g}, or train it more slowly",
                stacklevel=2,
            )
        self._is_single, self._was_wider = single, self._was_wider or not single

    def _sigma_for_neighbours(self) -> float:
        """The width at which the mask reaches the tap beside its peak."""
        assert self.mask is not None
        assert self.kernel_size is not None
        return 2 / (max(self.kernel_size) - 1) / math.sqrt(-2 * math.log(self.mask.threshold))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._drawn = self.variance_preserving and not self._size.settled  # saved before that, the kernel is still to be scaled

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}", f"causal={self.causal}"]
        if self.ratio != 1:
            parts.append(f"ratio={self.ratio:g}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


def read_crops(layers: Sequence[nn.Module], grid: Sequence[int] | None = None) -> list[Crop | None]:
    """The taps that each layer keeps, all that the host must know of them read from the device at once.

    Args:
        layers: any modules; those that are no continuous convolutions get None.
        grid: the size of the input, for layers that have no kernel size yet.

    Returns:
        For each layer its crop, to be given to its `forward`.
    """
    continuous = [layer for layer in layers if isinstance(layer, ContinuousConv)]
    if any(layer.mask is not None and not is_readable(layer.mask.sigma) for layer in continuous):  # as while a program is exported
        return [Crop(layer._all_taps()) if isinstance(layer, ContinuousConv) else None for layer in layers]
    if torch.jit.is_tracing():
        with unrecorded():
            return _read_crops(layers, None if grid is None else [int(n) for n in grid], False)
    return _read_crops(layers, grid, not torch.is_grad_enabled() and not torch.compiler.is_compiling())


@torch.compiler.disable
def _read_crops(layers: Sequence[nn.Module], grid: Sequence[int] | None, kept: bool) -> list[Crop | None]:
    continuous = [layer for layer in layers if isinstance(layer, ContinuousConv)]
    if grid is not None:
        for layer in continuous:
            layer._read_code()
            if layer._needs_size():
                layer._size_from(grid)
    vectors: dict[Any, Tensor] = {}
    entries: dict[ContinuousConv, KeptKernel] = {}
    for layer in continuous:
        if layer.mask is not None:
            vectors[layer.mask] = layer.mask.parameters_in_a_row().detach()
        entry = layer._kept if kept and not layer.training and not getattr(layer, "_is_replica", False) else None
        if entry is not None and (unchanged := layer._unchanged(entry)) is not None:
            vectors[layer], entries[layer] = unchanged[None], entry
    rows: dict[Any, list[float]] = {}
    if vectors:
        values = torch.cat(list(vectors.values())).tolist()  # the one read from the device
        for key, vector in vectors.items():
            rows[key], values = values[: len(vector)], values[len(vector) :]
    crops: dict[nn.Module, Crop] = {}
    for layer in continuous:
        if layer.kernel_size is None:
            raise InputError(f"{type(layer).__name__} has no kernel size yet: give kernel_size, or an input first")
        if layer.mask is None:
            keep = layer._all_taps()
        else:
            keep = layer.mask.kept_taps(layer.kernel_size, rows[layer.mask], causal=layer.causal, ratio=layer.ratio)
            if layer.training and torch.is_grad_enabled():
                layer._check_reach(keep)
        entry = entries.get(layer)
        same = entry is not None and rows[layer] == [1.0] and entry.settings == layer._kernel_settings(keep)
        crops[layer] = Crop(keep, entry if same else None)
    return [crops.get(layer) for layer in layers]
