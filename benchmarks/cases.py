"""What is measured: single layers and whole networks, each in several ways."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from plain import PlainConv, plain_network
from separable import separable_network
from torch import Tensor, nn

import flexseq as fs
from flexseq.nn.forward_pass import read_crops

MASKS = {"fresh": 0.075, "tenth": 0.1, "half": 0.3, "full": 2.0}
FUNCTIONS = 33
"""Functions of which a kernel is a mix: MAGNet's 32, and a constant."""
PRACTICAL = 1e11
"""Multiplications of a direct convolution above which it is not run: seconds on a few cores."""


@dataclass(frozen=True)
class Setting:
    """Where and in what precision: a torch device; bf16 means autocast."""

    device: str = "cpu"
    bf16: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


def step(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], setting: Setting, *, training: bool) -> Callable[[], object]:
    """A training step with Adam, or inference in eval mode without gradients."""
    model.train(training).to(setting.device)
    if not training:

        @torch.no_grad()
        def infer() -> object:
            with setting.autocast():
                return model(x)

        return infer
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def train() -> None:
        optimizer.zero_grad()
        x.grad = None
        with setting.autocast():
            value = loss(model(x))
        value.backward()
        optimizer.step()

    return train


class WholeNetwork:
    """What cases of whole networks share."""

    batch: int
    training: bool

    def model(self) -> nn.Module:
        raise NotImplementedError

    def x(self) -> Tensor:
        raise NotImplementedError

    def contestant(self, who: str, setting: Setting) -> Callable[[], object]:
        model = self.model() if who == "auto" else plain_network(self.model())
        targets = (torch.arange(self.batch) % 10).to(setting.device)
        return step(model, self.x().to(setting.device), lambda y: F.cross_entropy(y, targets), setting, training=self.training)

    def contestants(self) -> list[str]:
        return ["plain", "auto"]

    @torch.no_grad()
    def difference(self, setting: Setting) -> float:
        """Between the logits of the two, in eval mode, on two examples."""
        model, x = self.model().eval().to(setting.device), self.x()[:2].to(setting.device)
        with setting.autocast():
            return relative(model(x), plain_network(model)(x))


@dataclass(frozen=True)
class NetworkCase(WholeNetwork):
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

    def floor(self) -> tuple[float, float]:
        """Bytes and operations of its convolutions at least; in inference of those outputs on which the logits depend."""
        model = self.model().train(self.training)
        layers = [layer for layer in model.modules() if isinstance(layer, fs.FlexConv1d | fs.FlexConv2d)]
        outputs = [self.size] * len(layers)
        if isinstance(model, fs.FlexTCN) and not self.training:  # the last step depends on so many of each layer
            for i in reversed(range(len(layers))):
                outputs[i] = 1 if i == len(layers) - 1 else min(self.size, outputs[i + 1] + taps(layers[i + 1])[0] - 1)
        total = (0.0, 0.0)
        for layer, size in zip(layers, outputs, strict=True):
            moved, operations = convolution_floor((self.batch, layer.in_channels, *[size] * layer.ndim), layer, training=self.training)
            total = total[0] + moved, total[1] + operations
        return total


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
        layer.kernel_size = layer._size_for((self.size,) * self.ndim)
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
        x = self.x().to(setting.device).requires_grad_(self.training)  # as inside a network
        return step(model, x, lambda y: y.square().mean(), setting, training=self.training)

    def difference(self, setting: Setting) -> float | None:
        """Between the outputs on the inputs that are timed; in training also between the gradients, of x and of the basis's last map."""
        if "plain" not in self.contestants():
            return None
        results = []
        for make in (lambda layer: layer, PlainConv):
            layer = self.layer().to(setting.device)
            x = self.x().to(setting.device).requires_grad_(self.training)
            model = make(layer).train(self.training)
            with torch.set_grad_enabled(self.training), setting.autocast():
                y = model(x)
            results.append([y])
            if self.training:
                wave = torch.arange(y.numel(), device=y.device).cos().view_as(y)
                results[-1] += torch.autograd.grad((y * wave).sum(), [x, layer.kernel_network.linears[-1].weight, layer.mask.sigma])
        return max(relative(ours, plain) for ours, plain in zip(*results, strict=True))

    def floor(self) -> tuple[float, float]:
        """Bytes and operations at least."""
        return convolution_floor(self.x().shape, self.layer(), training=self.training)


@dataclass(frozen=True)
class DepthwiseCase:
    """A training step of one depthwise, causal FlexConv1d, its kernel before cropping as long as the input."""

    batch: int
    channels: int
    size: int
    mask: str
    training: bool = True
    original_s: None = None

    @property
    def name(self) -> str:
        what = "training step" if self.training else "inference"
        return f"depthwise FlexConv1d ({self.batch}, {self.channels}, {self.size}), {self.mask} mask, {what}"

    def layer(self) -> fs.FlexConv1d:
        torch.manual_seed(0)
        return fs.FlexConv1d(self.channels, self.channels, self.size, causal=True, groups=self.channels, mask_sigma=MASKS[self.mask])

    def x(self) -> Tensor:
        return torch.randn(self.batch, self.channels, self.size, generator=torch.Generator().manual_seed(1))

    def contestants(self) -> list[str]:
        return ["plain", "auto", "fft", "overlap"]

    def contestant(self, who: str, setting: Setting) -> Callable[[], object]:
        layer = self.layer()
        model: nn.Module = PlainConv(layer) if who == "plain" else layer
        layer.method = "auto" if who == "plain" else who
        x = self.x().to(setting.device).requires_grad_(self.training)
        return step(model, x, lambda y: y.square().mean(), setting, training=self.training)

    @torch.no_grad()
    def difference(self, setting: Setting) -> float:
        """Between the outputs."""
        layer, x = self.layer().to(setting.device), self.x().to(setting.device)
        with setting.autocast():
            return relative(layer(x), PlainConv(layer)(x))

    def floor(self) -> tuple[float, float]:
        """Bytes and operations at least."""
        return convolution_floor((self.batch, self.channels, self.size), self.layer(), training=self.training)


@dataclass(frozen=True)
class SeparableCase(WholeNetwork):
    """A network of separable FlexConvs on (batch, 1, size)."""

    depth: int
    channels: int
    batch: int
    size: int
    mask: str
    training: bool
    original_s: None = None

    @property
    def name(self) -> str:
        what = "training step" if self.training else "inference"
        return f"{self.depth} separable blocks of {self.channels}, ({self.batch}, 1, {self.size}), {self.mask} masks, {what}"

    def model(self) -> nn.Module:
        """Always with the same weights."""
        torch.manual_seed(0)
        model = separable_network(self.depth, self.channels, MASKS[self.mask])
        with torch.no_grad():
            for _ in range(2):
                model(self.x()[:2])
        return model

    def x(self) -> Tensor:
        return torch.randn(self.batch, 1, self.size, generator=torch.Generator().manual_seed(1))

    def floor(self) -> tuple[float, float]:
        """Bytes and operations of its depthwise convolutions at least."""
        layers = [layer for layer in self.model().modules() if isinstance(layer, fs.FlexConv1d)]
        floors = [convolution_floor((self.batch, self.channels, self.size), layer, training=self.training) for layer in layers]
        return sum(moved for moved, _ in floors), sum(operations for _, operations in floors)


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
    (keep,) = read_crops([layer])
    return [stop - start for start, stop in keep]


def convolution_floor(x_shape: tuple[int, ...], layer: fs.FlexConv1d | fs.FlexConv2d, *, training: bool) -> tuple[float, float]:
    """Bytes that must move and operations that must be done, by the cheapest of the direct way and all cuts for transforms.

    Bytes are of float32, under autocast too, since FFTs work in it. A training step reads x and writes y, reads the gradient of y and x
    again, and writes the gradient of x. Operations of transforms: 2.5 n log2 n for a real one of n points, 8 for a complex product; three
    times as many in a training step, and then also 4 for one function's share in one kernel at one frequency, which inference can keep.
    """
    batch, in_channels, *grid = x_shape
    out_channels, kernels = layer.out_channels, layer.in_channels * layer.out_channels // layer.groups
    extent = taps(layer)
    moved = batch * math.prod(grid) * 4 * (in_channels + out_channels) * (2.5 if training else 1)
    operations = [2.0 * batch * kernels * math.prod(grid) * math.prod(extent)]
    for lengths in range(1, 65):  # blocks that give so many kernel lengths of output along each axis
        hops = [min(size, lengths * n) for size, n in zip(grid, extent, strict=True)]
        points = math.prod([hop + n - 1 for hop, n in zip(hops, extent, strict=True)])
        blocks = batch * math.prod([size / hop for size, hop in zip(grid, hops, strict=True)])
        transforms = blocks * (in_channels + out_channels) + (FUNCTIONS if training else 0)
        products = points / 2 * kernels * (8 * blocks + (4 * FUNCTIONS if training else 0))
        operations.append(transforms * 2.5 * points * math.log2(max(points, 2)) + products)
    return moved, min(operations) * (3 if training else 1)


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

ON_GPU = [NetworkCase("FlexTCN-6", 32, 16_000, mask, training) for mask in ("fresh", "full") for training in (True, False)]
"""Minutes on a CPU."""

DEPTHWISE = [
    DepthwiseCase(16, 128, 1024, "full"),
    DepthwiseCase(32, 64, 784, "full"),
    DepthwiseCase(8, 64, 8000, "full"),
    DepthwiseCase(8, 64, 8000, "tenth"),
    DepthwiseCase(16, 128, 1024, "half"),
    DepthwiseCase(2, 128, 16_000, "full"),
]
SEPARABLE = [SeparableCase(4, 64, 16, size, "fresh", training) for size in (784, 4096) for training in (True, False)]

_LARGE = {1: {64: 64, 256: 64, 1024: 64, 4096: 16, 16_384: 4}, 2: {8: 64, 16: 64, 32: 64, 64: 16, 128: 4}}
_SIZES = {1: [64, 256, 1024, 4096, 16_384, 32_768, 65_536, 131_072], 2: [8, 16, 32, 64, 128, 224]}
LAYERS = [
    LayerCase(ndim, batch, size, mask, training)
    for ndim in (1, 2)
    for size in _SIZES[ndim]
    for batch in (1, *([_LARGE[ndim][size]] if size in _LARGE[ndim] else []))
    for mask in ("fresh", "half", "full")
    for training in (True, False)
]
