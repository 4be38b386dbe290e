"""Well-known image networks, whole or converted: what NIFF was tried in."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_tensor
from flexseq.errors import InputError, unknown_name
from flexseq.models.cifar_resnet import CIFARResNet
from flexseq.surgery import to_niff, to_separable
from flexseq.torchaudio_import import import_torchaudio

CONVERSIONS = ("baseline", "separated", "niff", "niff_full", "niff_linear")
OWN = "small_resnet"
SMALL = 64
"""Pixels up to which a network gets a stem for small images."""

TIMM = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "convnext_tiny": "convnext_tiny",
    "densenet121": "densenet121",
    "mobilenet_v2": "mobilenetv2_100",
}
TORCHVISION = ("resnet18", "resnet50", "resnet101", "convnext_tiny", "densenet121", "mobilenet_v2")
RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]},
    "resnet50": {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
    "resnet101": {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 23, 3]},
}
IN_TRANSFORMERS = (*RESNETS, "convnext_tiny", "mobilenet_v2")
BACKBONES = (OWN, *TIMM)


@records_arguments
class Backbone(nn.Module):
    """An image network by name, as it is or with other convolutions in it.

    The stem is made for small images up to 64 px: the first convolution without stride, 3x3 where it was larger, no max-pooling behind it;
    a patch of 4x4 becomes one of 2x2. MobileNet's second stage has no stride, either, and where convolutions are converted so is the first.
    So they have the published parameters of the paper's networks for CIFAR-10, but for ConvNeXt, which is a smaller one there, and "niff"
    of the ResNets, whose counts lack all new 1x1 convolutions.

    Args:
        in_channels: channels of the images.
        num_classes: logits.
        backbone: "resnet18", "resnet50", "resnet101", "convnext_tiny", "densenet121", "mobilenet_v2", which timm, torchvision or
            transformers builds, or "small_resnet", this project's CIFARResNet-20.
        conversion: "baseline", the network as it is; "separated", its full convolutions split into depthwise and 1x1 ones; "niff",
            "niff_full" (one NIFF over all pairs of channels) and "niff_linear" (without joining the edges), see `flexseq.to_niff`.
        niff_size: the networks that make NIFF's kernels, see there; by default as in the paper: "tiny" for "niff_full", else "cifar" for
            small images, "small" for MobileNet and DenseNet, "big" for the others.
        image_size: pixels along an edge.
        library: which one builds it; by default the first that is installed and has it. It is part of what is saved.

    Raises:
        InputError: unknown names; no library here has the network.

    Source:
        Grabinski et al. 2024, appendix C.

    Example:
        >>> network = Backbone(3, 10, backbone="small_resnet", conversion="niff").eval()
        >>> network(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        backbone: str = OWN,
        *,
        conversion: str = "baseline",
        niff_size: str | Sequence[int] | None = None,
        image_size: int = 32,
        library: str | None = None,
    ):
        super().__init__()
        check_integers("Backbone", in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        if backbone not in BACKBONES:
            raise unknown_name("backbone", backbone, BACKBONES)
        if conversion not in CONVERSIONS:
            raise unknown_name("conversion", conversion, CONVERSIONS)
        network, library = build_backbone(backbone, in_channels, num_classes, library)
        if isinstance(recorded := self.__dict__["_arguments"], dict):
            recorded["library"] = library  # names of parameters differ between them
        small = backbone != OWN and image_size <= SMALL
        if small:
            _for_small_images(network, second_stride=backbone != "mobilenet_v2")
        if conversion == "separated":
            network, _ = to_separable(network, first=small)
        elif conversion != "baseline":
            options: dict[str, Any] = {"full": conversion == "niff_full", "linear": conversion == "niff_linear"}
            if niff_size is None and conversion == "niff_full":
                niff_size = "tiny"
            elif niff_size is None:
                niff_size = "cifar" if image_size <= SMALL else "small" if backbone in ("mobilenet_v2", "densenet121") else "big"
            init = "torch" if backbone == "convnext_tiny" else "kaiming"
            network, _ = to_niff(network, size=niff_size, init=init, first=small and backbone != "convnext_tiny", **options)
        self.in_channels = in_channels
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, num_classes)."""
        check_tensor("Backbone", "its input", x)
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputError(f"Backbone expected images of shape (batch, {self.in_channels}, height, width), got shape {tuple(x.shape)}")
        outputs = self.network(x)
        return outputs if isinstance(outputs, Tensor) else outputs.logits


def is_available(name: str, in_channels: int = 3) -> bool:
    """Whether a library that is installed here has the network."""
    try:
        with torch.device("meta"):
            build_backbone(name, in_channels, 2)
    except InputError:
        return False
    return True


def build_backbone(name: str, in_channels: int = 3, num_classes: int = 1000, library: str | None = None) -> tuple[nn.Module, str]:
    """A network by name, untrained and as its library makes it, and the library.

    Raises:
        InputError: no library here has it.
    """
    if name == OWN:
        return CIFARResNet(in_channels, num_classes, depth=20), "flexseq"
    builders: dict[str, Callable[[], nn.Module] | None] = {
        "timm": lambda: _timm(name, in_channels, num_classes),
        "torchvision": (lambda: _torchvision(name, num_classes)) if name in TORCHVISION and in_channels == 3 else None,
        "transformers": (lambda: _transformers(name, in_channels, num_classes)) if name in IN_TRANSFORMERS else None,
    }
    if library is not None and library not in builders:
        raise unknown_name("library", library, builders)
    for one in builders if library is None else [library]:
        builder = builders[one]
        if builder is None or importlib.util.find_spec(one) is None:
            continue
        try:
            if one == "transformers" and importlib.util.find_spec("torchaudio") is not None:
                import_torchaudio()  # which it imports, too
            importlib.import_module(one)
        except (ImportError, RuntimeError, OSError) as error:  # a package that does not fit this machine's torch
            if library is not None:
                raise InputError(f"{library} does not import here: {error}") from error
            continue
        return builder(), one
    having = library or " or ".join(one for one, builder in builders.items() if builder is not None)
    raise InputError(f"{name} needs {having or 'a library'}, which is not installed here; {OWN} is this project's own")


def _timm(name: str, in_channels: int, num_classes: int) -> nn.Module:
    import timm

    return timm.create_model(TIMM[name], pretrained=False, in_chans=in_channels, num_classes=num_classes)


def _torchvision(name: str, num_classes: int) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None, num_classes=num_classes)


def _transformers(name: str, in_channels: int, num_classes: int) -> nn.Module:
    import transformers

    common: dict[str, Any] = {"num_channels": in_channels, "num_labels": num_classes}
    if name == "convnext_tiny":
        return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**common))
    if name == "mobilenet_v2":
        # Torch's symmetric padding: TensorFlow's is another layer, with convolutions that are not "same".
        return transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(tf_padding=False, **common))
    config = transformers.ResNetConfig(embedding_size=64, **RESNETS[name], **common)
    return transformers.ResNetForImageClassification(config)


@torch.no_grad()
def _for_small_images(network: nn.Module, *, second_stride: bool) -> None:
    """Take the first convolution's stride away, and the max-pooling after it; and the next stride, unless it is to stay."""
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    size, stride = first.kernel_size[0], first.stride[0]
    if size == stride:  # patches
        new = nn.Conv2d(first.in_channels, first.out_channels, 2, stride=2, bias=first.bias is not None)
    else:
        new = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    _replace(network, name, new)
    pools = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]
    for path, pool in pools[:1]:
        if pool.stride == 2:
            _replace(network, path, nn.Identity())
    if not second_stride:
        strided = next(module for module in network.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1)
        strided.stride = (1, 1)
    for module in network.modules():  # transformers' patch embeddings check the size by it
        if size == stride and hasattr(module, "patch_size"):
            module.patch_size = 2  # type: ignore[assignment]


def _replace(network: nn.Module, name: str, new: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    parent = network.get_submodule(path)
    parent._modules[leaf] = new
