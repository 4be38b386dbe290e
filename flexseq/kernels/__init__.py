"""Kernel networks: functions from positions to kernel values."""

from collections.abc import Callable

from flexseq.errors import InputError, unknown_name
from flexseq.kernels.mlp import MLP
from flexseq.kernels.multiplicative import Fourier, Gabor, MAGNet
from flexseq.kernels.network import KernelNetwork
from flexseq.kernels.siren import SIREN

__all__ = ["KERNELS", "MLP", "SIREN", "Fourier", "Gabor", "KernelFactory", "KernelNetwork", "MAGNet", "make_kernel"]

KernelFactory = Callable[..., KernelNetwork]
"""Called as factory(ndim, out_channels, spatial_extent=...)."""

KERNELS: dict[str, KernelFactory] = {"magnet": MAGNet, "gabor": Gabor, "fourier": Fourier, "siren": SIREN, "mlp": MLP}
"""The kernel networks that a layer knows by name."""


def make_kernel(kernel: str | KernelFactory, ndim: int, out_channels: int, *, spatial_extent: float = 1.0) -> KernelNetwork:
    """Build a kernel network from its name, or from a factory such as `partial(MAGNet, steerable=True)`.

    Raises:
        InputError: an unknown name, or a factory that makes something else.

    Example:
        >>> make_kernel("siren", 1, 4).omega_0
        30.0
    """
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise unknown_name("kernel", kernel, KERNELS)
        kernel = KERNELS[kernel]
    if isinstance(kernel, KernelNetwork) or not callable(kernel):
        got = f"a {type(kernel).__name__} that is made already" if isinstance(kernel, KernelNetwork) else repr(kernel)
        raise InputError(f"kernel expected a name, a class of flexseq.kernels, or functools.partial of one, got {got}")
    try:
        network = kernel(ndim, out_channels, spatial_extent=spatial_extent)
    except TypeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"kernel expected a factory called as (ndim, out_channels, spatial_extent=...), got one that says: {reason}"
        ) from error
    if not isinstance(network, KernelNetwork):
        raise InputError(f"kernel expected a name or a factory of a KernelNetwork, got one that made a {type(network).__name__}")
    if (network.ndim, network.out_channels) != (ndim, out_channels):
        raise InputError(
            f"kernel expected a network from {ndim} coordinates to {out_channels} channels, got a factory that made one from "
            f"{network.ndim} to {network.out_channels}"
        )
    return network
