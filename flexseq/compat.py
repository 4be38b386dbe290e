"""Load weights of the original implementations."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flexseq.errors import InputError
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.niff import NIFFConv
from flexseq.nn.sizes import KernelSize, encode

# Of the original's names, as regular expressions, the ones here. The longest path is a network's, the shortest a kernel network's.
RENAMED = (
    (r"^backbone\.", r"blocks."),
    (r"^cconv1\.", r"conv."),
    (r"^norm1\.", r"norm."),
    (r"\.cconv([12])\.", r".conv\1."),
    (r"\.shortcut\.0\.", r".shortcut."),
    (r"^(finallyr|out_layer)\.", r"head."),
    (r"(^|\.)Kernel\.", r"\1kernel_network."),
    (r"(^|\.)output_linear\.", r"\1readout."),
    (r"(^|\.)linear\.(\d+)\.", r"\1linears.\2."),
)
CONSTANTS = ("temperature", "mask_threshold", "omega_0")
"""Buffers of the original that are constants of the constructor here; the temperature is of no use in either."""


def load_flexconv(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy weights of the original FlexConv code into a kernel network, a layer, a FlexTCN or a FlexNet.

    Masks, kernel sizes and batch statistics come along. The model must have been built with the same arguments.

    Args:
        model: what to fill, in place.
        state_dict: the original's, tensors (or arrays made to tensors) by name.

    Returns:
        `model`.

    Raises:
        InputError: weights that are missing, left over, or of another shape, by name; another omega_0 or threshold of the mask.

    Example:
        >>> import flexseq as fs
        >>> original = {"bias": torch.ones(1), "mask_params": torch.tensor([[1.0, 0.1]]), "train_length": torch.tensor([64])}
        >>> layer = fs.FlexConv1d(1, 1, causal=True)
        >>> original |= {k.replace("kernel_network", "Kernel").replace("linears", "linear").replace("readout", "output_linear"): v
        ...              for k, v in layer.state_dict().items() if k.startswith("kernel_network")}
        >>> load_flexconv(layer, original).kernel_size
        (64,)
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        tensor = torch.as_tensor(tensor)
        leaf = name.rpartition(".")[2]
        if leaf in CONSTANTS:
            _check_constant(model, name, tensor)
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        name = _siren_name(name, state_dict)
        prefix = name.removesuffix(leaf)
        if leaf == "mask_params":
            ours[f"{prefix}mask.mean"], ours[f"{prefix}mask.sigma"] = tensor[:, 0], tensor[:, 1]
        elif leaf == "train_length":
            layers = [layer for path, layer in model.named_modules() if path == prefix.removesuffix(".")]
            ndim = layers[0].ndim if layers and isinstance(layers[0], ContinuousConv) else 1
            ours[f"{prefix}kernel_size_code"] = encode(KernelSize(tuple(int(n) for n in tensor.expand(ndim)), True), ndim)
        else:
            ours[name] = tensor
    wanted = model.state_dict()
    missing, left_over = sorted(wanted.keys() - ours.keys()), sorted(ours.keys() - wanted.keys())
    if missing or left_over:
        raise InputError(
            f"load_flexconv: {type(model).__name__} wants {missing or 'nothing more'}, and has no place for {left_over or 'nothing'}"
        )
    for name, tensor in ours.items():
        shape = wanted[name].shape
        if tensor.shape[: len(shape)] != shape or tensor.numel() != shape.numel():
            raise InputError(f"load_flexconv expected {name} of shape {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}")
    # The original's linear maps are 1x1 convolutions: (out, in, 1, ...) there, (out, in) here.
    model.load_state_dict({name: tensor.reshape(wanted[name].shape) for name, tensor in ours.items()})
    return model


def load_niff(layer: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy weights of the original NIFF code into a layer.

    The original has the columns' frequency first, the rows' second; and where it centres a spectrum, it shifts the channels too, so that
    its filter c acts on channel c + C/2. Both are undone.

    Args:
        layer: a `NIFFConv2d`, depthwise or over all channels, or nn.Sequential of a depthwise one and a 1x1 convolution, which is
            filled in place. For odd sizes it needs as_published=True to compute what the original did.
        state_dict: the original's, tensors by name.

    Returns:
        `layer`.

    Raises:
        InputError: weights that are missing, left over, or of another shape, by name; another kind of layer.
    """
    if isinstance(layer, nn.Sequential) and len(layer) == 2 and isinstance(layer[0], NIFFConv) and isinstance(layer[1], nn.Conv2d):
        state = {name: torch.as_tensor(tensor) for name, tensor in state_dict.items()}
        weight = state.get("1.mlp.weight")
        left_over = sorted(name for name in state if not name.startswith("0.") and name != "1.mlp.weight")
        if left_over or layer[1].bias is not None:
            what = left_over[0] if left_over else "nothing for the bias of the 1x1 convolution"
            raise InputError(f"load_niff expected the weights of a depthwise layer (0.) and 1.mlp.weight alone, got {what}")
        if weight is None or weight.shape[:2] != layer[1].weight.shape[:2]:
            got = "nothing" if weight is None else f"shape {tuple(weight.shape)}"
            raise InputError(f"load_niff expected 1.mlp.weight of shape {tuple(layer[1].weight.shape[:2])}, got {got}")
        load_niff(layer[0], {name[2:]: tensor for name, tensor in state.items() if name.startswith("0.")})
        with torch.no_grad():
            layer[1].weight.copy_(_unshifted(weight.flatten(1), 0, 1)[..., None, None])
        return layer
    if not isinstance(layer, NIFFConv) or layer.ndim != 2 or layer.groups not in (1, layer.in_channels):
        raise InputError(f"load_niff expected a NIFFConv2d, depthwise or over all channels, got {type(layer).__name__}")
    ours: dict[str, Tensor] = {}
    numbers = sorted({int(found.group(1)) for name in state_dict if (found := re.search(r"layer_mpl(\d+)\.", name))})
    for name, tensor in state_dict.items():
        found = re.fullmatch(r"mlp_(real|imag)\.layer_mpl(\d+)\.(weight|bias)", name)
        if found is None:
            raise InputError(f"load_niff has no place for {name}")
        part, number, leaf = {"real": "real", "imag": "imaginary"}[found.group(1)], int(found.group(2)), found.group(3)
        values = torch.as_tensor(tensor)
        values = values.flatten(1) if leaf == "weight" else values
        if number == numbers[0] and leaf == "weight":
            values = values.flip(1)
        if number == numbers[-1]:
            if layer.groups == 1 and len(values) == layer.in_channels * layer.out_channels:
                pairs = _unshifted(values.unflatten(0, (layer.in_channels, layer.out_channels)), 0, 1)
                values = pairs.transpose(0, 1).flatten(0, 1)
            elif layer.groups > 1:
                values = _unshifted(values, 0)
            ours[f"{part}.readout.{leaf}"] = values
        else:
            ours[f"{part}.linears.{numbers.index(number)}.{leaf}"] = values
    wanted = {name: tensor for name, tensor in layer.state_dict().items() if name != "kernel_size_code"}
    wrong = sorted(
        name for name in wanted.keys() | ours.keys() if name not in wanted or name not in ours or wanted[name].shape != ours[name].shape
    )
    if wrong:
        raise InputError(f"load_niff expected weights of the layer's own widths; they differ in {', '.join(wrong)}")
    layer.load_state_dict({**layer.state_dict(), **ours})
    return layer


def _unshifted(values: Tensor, *axes: int) -> Tensor:
    """Undo fftshift's move of the channels along some axes."""
    return torch.roll(values, [(values.shape[axis] + 1) // 2 for axis in axes], axes)


def _check_constant(model: nn.Module, name: str, value: Tensor) -> None:
    """Raise InputError where a constant of the original's differs from the constructor's."""
    path, _, leaf = name.rpartition(".")
    for pattern, replacement in RENAMED:
        path = re.sub(pattern, replacement, f"{path}.").removesuffix(".")
    if leaf == "mask_threshold":
        path = f"{path}.mask".removeprefix(".")
    else:
        path = re.sub(r"(^|\.)kernel_net\.\d+$", "", path)
    module = dict(model.named_modules()).get(path)
    ours = getattr(module, {"mask_threshold": "threshold"}.get(leaf, leaf), None)
    if ours is not None and abs(ours - value.item()) > 1e-6 * abs(ours):
        raise InputError(f"load_flexconv expected {name} {ours}, as the model was built with, got {value.item()}")


def _siren_name(name: str, state_dict: Mapping[str, Tensor]) -> str:
    """kernel_net.0, .2, .4 (linear maps between sines) -> linears.0, linears.1, readout."""
    found = re.match(r"^(.*?)kernel_net\.(\d+)\.(\w+)$", name)
    if not found:
        return name
    prefix, index, leaf = found.group(1), int(found.group(2)), found.group(3)
    last = max(int(m.group(1)) for other in state_dict if (m := re.search(r"kernel_net\.(\d+)\.", other)))
    return f"{prefix}readout.{leaf}" if index == last else f"{prefix}linears.{index // 2}.{leaf}"
