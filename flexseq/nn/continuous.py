"""What CKConv and FlexConv share: a kernel network sampled at the taps, then a long convolution."""

import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.errors import unknown_name
from flexseq.functional import basis_long_conv
from flexseq.functional.dtypes import at_least_float32
from flexseq.functional.long_conv import METHODS
from flexseq.functional.programs import is_recorded_now
from flexseq.kernels import KernelFactory, make_kernel
from flexseq.kernels.network import is_as_built
from flexseq.nn.forward_pass import kernel_of, kernels_for_penalty, read_crops
from flexseq.nn.kernel_cache import Snapshot
from flexseq.nn.kernel_making import make_kernels, mask_inside, norm_of, taps_before
from flexseq.nn.layer import ConvLayer, agreed_on, is_readable
from flexseq.nn.mask import GaussianMask
from flexseq.nn.sizes import KernelSize
from flexseq.positions import Keep, tap_positions, tap_weights, taps_around

NOT_OF_THE_KERNEL = frozenset({"training", "cache", "last_made", "is_idle", "planned_taps", "method"})
"""A layer's own attributes that its kernel does not depend on."""


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
        self.planned_taps: Keep | None = None  # while a program is recorded, those that the network read for all of its layers
        self._is_single = self._was_wider = False  # of the mask, in training
        self._drawn: Tensor | bool = False  # the readout's weight while it is still to be scaled: true for whatever it is
        if variance_preserving:
            self._drawn = self._readout_weight()
        if size is not None:
            self._set_size(KernelSize(size, True))
            self._start()

    def forward(self, x: Tensor, *, last: int | None = None) -> Tensor:
        """Convolve. In eval mode without gradients the kernel is kept from call to call, until a parameter changes.

        Args:
            x: (batch, in_channels, *grid).
            last: give only the last so many outputs of a causal layer over one axis; all by default.

        Returns:
            (batch, out_channels, *grid).

        Raises:
            InputError: another number of axes or channels.
        """
        self._check_input(x, self.kernel_network.readout.bias.dtype)
        kernel = kernel_of(self, x.shape[2:])
        options: dict[str, Any] = {
            "causal": self.causal,
            "groups": self.groups,
            "method": self.method,
            "before": taps_before(self, kernel.keep),
        }
        return basis_long_conv(x, kernel.basis, kernel.weight, self.bias, **options, last=last, kept=kernel.kept)

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
        (keep,) = read_crops([self])
        assert keep is not None
        (kernel,) = make_kernels([self], [keep if crop else self._all_taps()])
        return kernel.basis, kernel.weight

    def kernel_norm(self) -> Tensor:
        """||sampled kernel||_2, without sampling the kernel: ||W B||^2 = tr(W B B' W') for a basis B and a readout W. A scalar.

        Of the kernel of the forward pass before, where nothing changed since.
        """
        (kernel,) = kernels_for_penalty([self])
        return norm_of(kernel)

    def basis(self, keep: Keep, *, rounded: bool = False) -> Tensor:
        """The functions that the kernel is a linear combination of, at some taps: (H, *taps), at least in float32.

        The last of them is a constant, whose weights are the readout's biases; all are times the mask. `flexseq.nn.kernel_making` makes
        those of many layers at once.

        Args:
            keep: the taps.
            rounded: there are more than the mask leaves: the functions are zero where it is below its threshold.
        """
        positions = self._positions(keep)
        basis = self.kernel_network.basis(positions)
        basis = torch.cat([basis, torch.ones_like(basis[:1])])
        return self._weighted(basis if self.mask is None else basis * self._window(positions, keep, rounded), keep)

    def stacking_key(self) -> Hashable | None:
        """What layers must have in common to have their kernel networks evaluated as one; None for one that is evaluated by itself."""
        own_way = type(self).basis is not ContinuousConv.basis or "basis" in self.__dict__
        network_key = self.kernel_network.stacking_key()
        if network_key is None or own_way or is_recorded_now() or not self.is_readable():
            return None
        mask_key: Hashable = None
        if self.mask is not None:
            if not is_as_built(self.mask, GaussianMask):
                return None
            mask_key = self.mask.angle is not None
        readout = self.kernel_network.readout
        return network_key, self.ndim, mask_key, readout.bias.dtype

    def snapshot(self) -> Snapshot | None:
        """Everything that the kernel is a function of; None where it cannot be compared."""
        own = [(name, value) for name, value in vars(self).items() if not name.startswith("_") and name not in NOT_OF_THE_KERNEL]
        stream = torch.cuda.current_stream(self.device).stream_id if self.device.type == "cuda" else None
        return Snapshot.of(type(self), *self.size, own, stream, *self.kernel_modules())

    def kernel_modules(self) -> tuple[nn.Module | None, ...]:
        """Of whose parameters the kernel is made."""
        return self.kernel_network, self.mask

    def inside(self, keep: Keep) -> Tensor:
        """Which of some taps the mask leaves, found out on the device: (*taps), of bools."""
        return mask_inside(self.mask, self.known_size(), keep, self.causal, self.ratio)

    def is_readable(self) -> bool:
        """Whether the host can read what the kernel is made from."""
        return is_readable(self.kernel_network.readout.bias) and (self.mask is None or is_readable(self.mask.sigma))

    def _window(self, positions: Tensor, keep: Keep, rounded: bool) -> Tensor:
        """The mask at the taps; zero outside of the crop, where `keep` has more taps: all, if the crop could not be read."""
        assert self.mask is not None
        window = self.mask(positions)
        return window * self.inside(keep).to(window.dtype) if rounded or not is_readable(self.mask.sigma) else window

    def _weighted(self, basis: Tensor, keep: Keep) -> Tensor:
        """Functions at the taps times what the taps count at the layer's resolution."""
        if self.ratio == 1:
            return basis
        options: dict[str, Any] = {"causal": self.causal, "keep": keep, "ratio": self.ratio, "dtype": basis.dtype, "device": basis.device}
        return basis * tap_weights(self.known_size(), **options)

    def _positions(self, keep: Keep) -> Tensor:
        dtype = at_least_float32(self.kernel_network.readout.bias.dtype)
        return tap_positions(self.known_size(), causal=self.causal, keep=keep, ratio=self.ratio, dtype=dtype, device=self.device)

    def _all_taps(self) -> list[tuple[int, int]]:
        around = [taps_around(size, causal=self.causal, ratio=self.ratio) for size in self.known_size()]
        return [(0, before + after + 1) for before, after in around]

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.kernel_network.readout.bias.device

    def _size_for(self, grid: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(n) if self.ndim == 1 else int(n) + 1 - int(n) % 2 for n in grid)

    def _start(self) -> None:
        assert self.kernel_size is not None
        if not is_readable(self.kernel_network.readout.bias):
            return  # weights come later, from a state_dict
        if self.variance_preserving:
            self._preserve_variance()
        (keep,) = read_crops([self])
        assert keep is not None
        if max(self.kernel_size) > 1 and all(stop - start == 1 for start, stop in keep):
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
