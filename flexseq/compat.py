"""Load weights of the original implementations."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flexseq.errors import InputError
from flexseq.nn.continuous import ContinuousConv

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
            ours[f"{prefix}_extra_state"] = torch.cat([tensor.double().expand(ndim), torch.ones(1, dtype=torch.float64)])
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
