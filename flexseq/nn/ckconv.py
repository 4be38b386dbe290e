"""CKConv: a continuous kernel as long as the signal."""

from collections.abc import Sequence
from functools import partial

from flexseq.arguments import records_arguments
from flexseq.kernels import SIREN, KernelFactory
from flexseq.nn.continuous import ContinuousConv


class CKConv(ContinuousConv):
    """Convolution with a kernel network's values over the whole of [-1, 1]: as long as the signal, at a fixed parameter cost.

    Args:
        in_channels, out_channels: multiples of `groups`.
        kernel_size: taps along each axis; where None, taken from the first training batch and kept (in the state_dict too): a sequence's
            length, or for images the size, plus one where that is even.
        causal: an output sees only the present and the past; else it is centred and zero-padded "same".
        groups: as in torch.nn; in_channels for a depthwise layer.
        bias: whether a learned constant is added to each output channel; it starts at 0.
        kernel: a name ("magnet", "gabor", "fourier", "siren", "mlp"), or a factory such as partial(SIREN, omega_0=31.09).
            "siren" starts with biases in U(-1, 1), as in CKConv's code.
        variance_preserving: scale the readout so that a white input and the output have the same variance at any kernel length,
            wherever the kernel does not reach over the input's edge.
        method: "auto", "direct", "fft" or "overlap"; see `flexseq.functional.long_conv`.

    Raises:
        InputError: arguments out of range.

    Source:
        Romero et al. 2022, "CKConv: Continuous Kernel Convolution For Sequential Data".

    Example:
        >>> import torch
        >>> layer = CKConv1d(3, 8, causal=True)
        >>> layer(torch.randn(2, 3, 100)).shape, layer.sample_kernel().shape
        (torch.Size([2, 8, 100]), torch.Size([8, 3, 100]))
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
        kernel: str | KernelFactory = "siren",
        variance_preserving: bool = False,
        method: str = "auto",
    ):
        if kernel == "siren":
            kernel = partial(SIREN, bias_bound=1.0)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            causal=causal,
            groups=groups,
            bias=bias,
            kernel=kernel,
            spatial_extent=1.0,
            mask=None,
            variance_preserving=variance_preserving,
            method=method,
        )


@records_arguments
class CKConv1d(CKConv):
    __doc__ = CKConv.__doc__
    ndim = 1


@records_arguments
class CKConv2d(CKConv):
    __doc__ = CKConv.__doc__
    ndim = 2


@records_arguments
class CKConv3d(CKConv):
    __doc__ = CKConv.__doc__
    ndim = 3
