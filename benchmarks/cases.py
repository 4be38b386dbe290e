"""What is measured: single layers and whole networks, each in several ways."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from plain import PlainConv, plain_network
from torch import Tensor, nn

import flexseq as fs
from flexseq.functional.blocks import choose_axes
from flexseq.nn.continuous import read_crops

MASKS = {"fresh": 0.075, "half": 0.3, "full": 2.0}
FUNCTIONS = 33
"""Functions of which a kernel is a mix: MAGNet's 32, and a constant."""
PRACTICAL = 1e11
"""Multiplications of a direct convolution above which it is not run: seconds on a few cores."""


@dataclass(frozen=True)
class Setting:
    """Where and in what precision: a torch device; bf16 means autocast."""

    device: str = "cpu"
    bf16: bool = False


def step(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], setting: Setting, *, training: bool) -> Callable[[], object]:
    """A training step with Adam, or inference in eval mode without gradients."""
    model.train(training).to(setting.device)
    x = x.to(setting.device)
    autocast = torch.autocast(setting.device, torch.bfloat16, enabled=setting.bf16)
    if not training:

        @torch.no_grad()
        def infer() -> object:
            with autocast:
                return model(x)

        return infer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def train() -> None:
        optimizer.zero_grad()
        with autocast:
            value = loss(model(x))
        value.backward()
        optimizer.step()

    return train


@dataclass(frozen=True)
class NetworkCase:
    """A FlexTCN-6 on (batch, 1, size), or a FlexNet-7 on (batch, 3, size, size)."""

    network: str
    batch: int
    size: int
    mask: str
    training: bool
    original_s: float | None = None

    @property
    def name(self) -> str:
        shape = f"({self.batch}, 1, {self.size})" if self.network == "FlexTCN-6" else f"({self.batch}, 3, {self.size}, {self.size})"
        return f"{self.network} {shape}, {self.mask} masks, {'training step' if self.training else 'inference'}"

    def model(self) -> nn.Module:
        """Always with the same weights."""
        torch.manual_seed(0)
        sigma = MASKS[self.mask] if self.mask != "full" or self.network != "FlexTCN-6" else 1.0  # as in the original's figures
        if self.network == "FlexTCN-6":
            model: nn.Module = fs.FlexTCN(mask_sigma=sigma)
        else:
            model = fs.FlexNet(mask_sigma=sigma, image_size=self.size)
        with torch.no_grad():
            model(self.x()[:2])
        return model

    def x(self) -> Tensor:
        shape = (self.batch, 1, self.size) if self.network == "FlexTCN-6" else (self.batch, 3, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def contestant(self, who: str, setting: Setting) -> Callable[[], object]:
        model = self.model() if who == "auto" else plain_network(self.model())
        targets = (torch.arange(self.batch) % 10).to(setting.device)
        return step(model, self.x(), lambda y: F.cross_entropy(y, targets), setting, training=self.training)

    def contestants(self) -> list[str]:
        return ["plain", "auto"]

    @torch.no_grad()
    def difference(self) -> float:
        """Between the two, in eval mode, on two examples."""
        model, x = self.model().eval(), self.x()[:2]
        return relative(model(x), plain_network(model)(x))

    def floor(self) -> tuple[float, float]:
        """Bytes and operations of its convolutions at least, as of one layer."""
        layers = [layer for layer in self.model().modules() if isinstance(layer, fs.FlexConv1d | fs.FlexConv2d)]
        sizes = (self.size,) * layers[0].ndim
        costs = [convolution_floor((self.batch, layer.in_channels, *sizes), layer, training=self.training) for layer in layers]
        return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


@dataclass(frozen=True)
class LayerCase:
    """A FlexConv of 30 channels over time (causal), or of 24 over images, its kernel before cropping as long as the input."""

    ndim: int
    batch: int
    size: int
    mask: str
    training: bool
    original_s: None = None

    @property
    def channels(self) -> int:
        return 30 if self.ndim == 1 else 24

    @property
    def name(self) -> str:
        grid = ", ".join([str(self.size)] * self.ndim)
        what = "training step" if self.training else "inference"
        return f"FlexConv{self.ndim}d ({self.batch}, {self.channels}, {grid}), {self.mask} mask, {what}"

    def layer(self) -> fs.FlexConv1d | fs.FlexConv2d:
        torch.manual_seed(0)
        kind = fs.FlexConv1d if self.ndim == 1 else fs.FlexConv2d
        layer = kind(self.channels, self.channels, causal=self.ndim == 1, mask_sigma=MASKS[self.mask])
        layer._take_kernel_size((self.size,) * self.ndim)
        return layer

    def x(self) -> Tensor:
        shape = (self.batch, self.channels, *[self.size] * self.ndim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def contestants(self) -> list[str]:
        direct = self.batch * self.channels**2 * self.size**self.ndim * math.prod(taps(self.layer())) * (3 if self.training else 1)
        everyone = ["plain", "auto", "direct", "fft", "overlap", "torch"]
        if direct > PRACTICAL:
            return [who for who in everyone if who not in ("direct", "torch") and (who != "plain" or self.ndim == 1)]
        return everyone

    def contestant(self, who: str, setting: Setting) -> Callable[[], object]:
        layer = self.layer()
        if who == "plain":
            model: nn.Module = PlainConv(layer)
        elif who == "torch":
            model = TorchConv(layer)
        else:
            model = layer
            layer.method = who
        x = self.x().requires_grad_(self.training)  # as inside a network
        return step(model, x, lambda y: y.square().mean(), setting, training=self.training)

    @torch.no_grad()
    def difference(self) -> float | None:
        if "plain" not in self.contestants():
            return None
        layer, x = self.layer().eval(), self.x()[:1]
        return relative(layer(x), PlainConv(layer)(x))

    def floor(self) -> tuple[float, float]:
        """Bytes and operations at least."""
        return convolution_floor(self.x().shape, self.layer(), training=self.training)


class TorchConv(nn.Module):
    """torch's convolution with an ordinary kernel of as many taps as a FlexConv keeps."""

    def __init__(self, layer: fs.FlexConv1d | fs.FlexConv2d):
        super().__init__()
        self.weight = nn.Parameter(layer.sample_kernel().detach().clone())
        self.bias = nn.Parameter(torch.zeros(layer.out_channels))
        self.causal = layer.causal

    def forward(self, x: Tensor) -> Tensor:
        extent = self.weight.shape[2:]
        if self.causal:
            return F.conv1d(F.pad(x, (extent[0] - 1, 0)), self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, padding="same")


def taps(layer: nn.Module) -> list[int]:
    """Taps that a layer keeps along each axis."""
    (crop,) = read_crops([layer])
    return [stop - start for start, stop in crop.keep]


def convolution_floor(x_shape: tuple[int, ...], layer: fs.FlexConv1d | fs.FlexConv2d, *, training: bool) -> tuple[float, float]:
    """Bytes that must move and operations that must be done, by the cheaper of the direct way and transforms.

    Bytes: a training step reads x and writes y, reads the gradient of y and x again, and writes the gradient of x. Operations of
    transforms: 2.5 n log2 n for a real one of n points, 8 for a complex product, 4 for one function's share in one kernel at one
    frequency; three times as many in a training step.
    """
    batch, in_channels, *grid = x_shape
    out_channels, kernels = layer.out_channels, layer.in_channels * layer.out_channels
    extent = taps(layer)
    signal = batch * math.prod(grid) * 4
    moved = signal * (in_channels + out_channels) * (2.5 if training else 1)
    direct = 2 * batch * kernels * math.prod(grid) * math.prod(extent)
    before = tuple(n - 1 if layer.causal else (n - 1) // 2 for n in extent)
    axes = choose_axes(tuple(x_shape), (out_channels, in_channels, *extent), before, FUNCTIONS, "auto")
    blocks, points = batch * math.prod([axis.blocks for axis in axes]), math.prod([axis.points for axis in axes])
    transform = 2.5 * points * math.log2(points)
    spectral = (blocks * (in_channels + out_channels) + FUNCTIONS) * transform + points / 2 * kernels * (8 * blocks + 4 * FUNCTIONS)
    return moved, min(direct, spectral) * (3 if training else 1)


def relative(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).abs().max() / reference.abs().max()).item()


# Seconds of the original implementation: training step, inference.
NETWORKS = [
    NetworkCase(network, batch, size, mask, training, original[not training] if original else None)
    for network, batch, size, mask, original in [
        ("FlexTCN-6", 64, 784, "fresh", (0.575, 0.160)),
        ("FlexTCN-6", 64, 784, "full", None),
        ("FlexTCN-6", 4, 16_000, "fresh", (7.9, 1.84)),
        ("FlexTCN-6", 4, 16_000, "half", None),
        ("FlexTCN-6", 4, 16_000, "full", (12.5, 2.7)),
        ("FlexTCN-6", 1, 16_000, "fresh", None),
        ("FlexNet-7", 64, 16, "fresh", (0.131, 0.028)),
        ("FlexNet-7", 64, 32, "fresh", (0.805, 0.237)),
        ("FlexNet-7", 64, 32, "half", None),
        ("FlexNet-7", 64, 32, "full", None),
    ]
    for training in (True, False)
]

_LARGE = {1: {64: 64, 256: 64, 1024: 64, 4096: 16, 16_384: 4}, 2: {8: 64, 16: 64, 32: 64, 64: 16, 128: 4}}
_SIZES = {1: [64, 256, 1024, 4096, 16_384, 32_768, 65_536, 131_072], 2: [8, 16, 32, 64, 128, 224]}
LAYERS = [
    LayerCase(ndim, batch, size, mask, training)
    for ndim in (1, 2)
    for size in _SIZES[ndim]
    for batch in (1, *([_LARGE[ndim][size]] if size in _LARGE[ndim] else []))
    for mask in MASKS
    for training in (True, False)
]
