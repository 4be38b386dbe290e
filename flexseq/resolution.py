"""Run a trained network at another sampling rate."""

import math
import numbers
from types import TracebackType
from typing import Any

from torch import nn

from flexseq.errors import InputError
from flexseq.nn.layer import ConvLayer

# What sees a fixed number of samples, and so something else at another rate, unless that number is 1.
FIXED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)


class Unchanged(list[str]):
    """Names of the layers that see a fixed number of samples at any resolution.

    As a context manager it takes the model back to where it was when the block ends.
    """

    def __init__(self, names: list[str], before: dict[Any, float]):
        super().__init__(names)
        self._before = before

    def __enter__(self) -> "Unchanged":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for layer, ratio in self._before.items():
            layer.set_resolution(ratio)


def set_resolution(model: nn.Module, ratio: float) -> Unchanged:
    """Sample the kernels of a whole model for inputs that are sampled more or less densely than in training.

    Kernels keep their extent and get `ratio` times as many taps, each counting 1 / ratio for each axis. On a band-limited signal outputs
    at ratio 2, at every second sample, are those at ratio 1, as long as no kernel reaches above training's Nyquist frequency.

    Args:
        model: any module, or a single layer.
        ratio: above 0, whole or not, relative to training whatever was set before; it stays in the state_dict. 2 means inputs sampled twice
            as densely: a series at twice the rate, an image with twice as many pixels along each edge.

    Returns:
        The names of layers that it cannot change (plain convolutions and pools of more than one sample), also a context manager:
        `with set_resolution(model, 2): ...` goes back when the block ends.

    Raises:
        InputError: a ratio that is not above 0; a layer whose kernel size is not known yet. Nothing is changed then.

    Source:
        FlexConv, Sec. 3.3; the factor is the authors' code's.

    Example:
        >>> import torch, flexseq as fs
        >>> model = fs.FlexTCN(depth=1, kernel_size=50).eval()
        >>> with set_resolution(model, 2.0) as unchanged:
        ...     model(torch.randn(1, 1, 100)).shape
        torch.Size([1, 10])
        >>> list(unchanged), model.blocks[0].conv1.ratio
        ([], 1.0)
    """
    if not isinstance(ratio, numbers.Real) or isinstance(ratio, bool) or not 0 < ratio < math.inf:
        raise InputError(f"set_resolution expected a ratio above 0, got {ratio!r}")
    layers = [module for module in model.modules() if isinstance(module, ConvLayer)]
    before = {layer: layer.ratio for layer in layers}
    try:
        for layer in layers:
            layer.set_resolution(ratio)
    except InputError:
        for layer, old in before.items():
            layer.set_resolution(old)
        raise
    names = [name for name, module in model.named_modules() if isinstance(module, FIXED) and _extent(module) > 1]
    return Unchanged(names, before)


def _extent(module: Any) -> int:
    size = module.kernel_size
    return max(size) if isinstance(size, tuple) else size
