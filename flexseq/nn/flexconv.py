"""FlexConv: a continuous kernel that learns its own size."""

from collections.abc import Sequence

from flexseq.arguments import records_arguments
from flexseq.checks import check_numbers
from flexseq.errors import InputError
from flexseq.kernels import KernelFactory
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.mask import GaussianMask


class FlexConv(ContinuousConv):
    """Convolution with a kernel network's values times a learned Gaussian mask, cropped where the mask is small.

    The kernel network spans [-1, 1] over `kernel_size` taps; the mask says how much of that is used, and the crop follows it as it trains.

    Args:
        in_channels, out_channels: multiples of `groups`.
        kernel_size: taps along each axis before cropping; where None, taken from the first training batch and kept (in the state_dict
            too): a sequence's length, or for images the size, plus one where that is even.
        causal: an output sees only the present and the past, and the mask starts at the present, +1; else the layer is centred and
            zero-padded "same", and the mask starts at 0.
        groups: as in torch.nn; in_channels for a depthwise layer.
        bias: whether a learned constant is added to each output channel; it starts at 0.
        kernel: a name ("magnet", "gabor", "fourier", "siren", "mlp"), or a factory such as partial(MAGNet, steerable=True).
        mask_sigma: standard deviation at which the mask starts, in units of position ([-1, 1] is the whole kernel); above 0.
        mask_threshold: taps at which the mask is below this are left out; in [0, 1), 0 keeps all.
        rotated_mask: learn an angle of the mask too; two axes, not causal.
        variance_preserving: scale the readout so that a white input and the output have the same variance at any kernel length,
            wherever the kernel does not reach over the input's edge.
        method: "auto", "direct", "fft" or "overlap"; see `flexseq.functional.long_conv`.

    Raises:
        InputError: arguments out of range.

    Source:
        Romero et al. 2022, "FlexConv: Continuous Kernel Convolutions with Differentiable Kernel Sizes".

    Example:
        >>> import torch
        >>> layer = FlexConv1d(3, 8, causal=True)
        >>> layer(torch.randn(2, 3, 100)).shape, layer.sample_kernel().shape
        (torch.Size([2, 8, 100]), torch.Size([8, 3, 8]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None = None,
        *,
        causal: bool = False,
        groups: int = 1,
        bias: bool = True,
        kernel: str | KernelFactory = "magnet",
        mask_sigma: float = 0.075,
        mask_threshold: float = 0.1,
        rotated_mask: bool = False,
        variance_preserving: bool = False,
        method: str = "auto",
    ):
        name = type(self).__name__
        check_numbers(name, above=0, mask_sigma=mask_sigma)
        check_numbers(name, least=0, below=1, mask_threshold=mask_threshold)
        if rotated_mask and (self.ndim != 2 or causal):
            raise InputError(f"{name} expected two axes and causal=False with rotated_mask=True, got {self.ndim} and causal={causal}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            causal=causal,
            groups=groups,
            bias=bias,
            kernel=kernel,
            # The authors' code: the functions start within the mask's reach, around 0 (in 1-D too, where the mask sits at 1).
            spatial_extent=min(1.0, 1.667 * mask_sigma),
            mask=GaussianMask(self.ndim, mean=float(causal), sigma=mask_sigma, threshold=mask_threshold, rotated=rotated_mask),
            variance_preserving=variance_preserving,
            method=method,
        )


@records_arguments
class FlexConv1d(FlexConv):
    __doc__ = FlexConv.__doc__
    ndim = 1


@records_arguments
class FlexConv2d(FlexConv):
    __doc__ = FlexConv.__doc__
    ndim = 2


@records_arguments
class FlexConv3d(FlexConv):
    __doc__ = FlexConv.__doc__
    ndim = 3
