"""What every layer is, whatever its kernel is a function of: channels, groups, a size that may come with the first input, a resolution."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flexseq.errors import InputError


class ConvLayer(nn.Module):
    """Base of the layers.

    Args:
        in_channels, out_channels: multiples of `groups`.
        groups: as in torch.nn.

    Attributes:
        kernel_size: samples along each axis that the kernel is for at ratio 1; None until it is known.

    Raises:
        InputError: channels that are no multiples of the groups.
    """

    ndim: ClassVar[int]
    kernel_size: tuple[int, ...] | None

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise InputError(f"{type(self).__name__} expected {argument} to be a positive multiple of groups={groups}, got {channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self._ratio = 1.0
        self._kept: Any = None  # what eval mode keeps between calls

    @property
    def ratio(self) -> float:
        """How many times as densely as in training inputs are sampled; `flexseq.set_resolution` sets it."""
        return self._ratio

    def set_resolution(self, ratio: float) -> None:
        """Take the kernel for inputs that are sampled `ratio` times as densely as in training.

        Raises:
            InputError: a ratio that is not above 0; a kernel whose size is not known yet.
        """
        if not 0 < ratio < math.inf:
            raise InputError(f"{type(self).__name__} expected a resolution ratio above 0, got {ratio}")
        if self.kernel_size is None and ratio != 1:
            raise InputError(f"{type(self).__name__} has no kernel size yet: give kernel_size, or an input at training's resolution first")
        self._ratio = float(ratio)

    def known_size(self) -> tuple[int, ...]:
        """`kernel_size`.

        Raises:
            InputError: it is not known yet.
        """
        if self.kernel_size is None:
            raise InputError(f"{type(self).__name__} has no kernel size yet: give kernel_size, or an input first")
        return self.kernel_size

    def _check_input(self, x: Tensor, dtype: torch.dtype) -> None:
        name = type(self).__name__
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels:
            axes = f"{self.ndim} grid {'axis' if self.ndim == 1 else 'axes'}"
            raise InputError(f"{name} expected input of {self.in_channels} channels and {axes}, got shape {tuple(x.shape)}")
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} expected input of {dtype}, as its parameters, got {x.dtype}")

    def _checked_kernel_size(self, kernel_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if kernel_size is None:
            return None
        given = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,) * self.ndim
        size = tuple(int(n) for n in given if isinstance(n, numbers.Integral))
        if len(size) != self.ndim or len(given) != self.ndim or min(size) < 1:
            raise InputError(f"{type(self).__name__} expected kernel_size to be 1 or more, for {self.ndim} axes, got {kernel_size!r}")
        return size

    def _at_ratio(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Samples along each axis of the same extent at the layer's resolution."""
        return tuple(max(1, round(size * self.ratio)) for size in grid)

    def _fits(self, grid: Sequence[int], own: Sequence[int]) -> bool:
        """Whether inputs are of the size that the kernel is for; at another ratio than 1 nearly, since strides round."""
        near = 0 if self.ratio == 1 else math.ceil(self.ratio)
        return all(abs(a - b) <= near for a, b in zip(grid, own, strict=True))

    def train(self, mode: bool = True) -> "ConvLayer":
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, *arguments: Any, **options: Any) -> "ConvLayer":
        self._kept = None  # parameters move or change their type
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and files do without
