"""What the optimiser should know of a model: parameter groups, and the penalty on kernels."""

from typing import Any

import torch
from torch import Tensor, nn

from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.forward_pass import kernels_for_penalty
from flexseq.nn.kernel_making import norm_of
from flexseq.nn.mask import GaussianMask
from flexseq.nn.njet import NJetConv


def param_groups(model: nn.Module, lr: float, mask_lr_scale: float = 0.1) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser: masks train at a fraction of the learning rate.

    The widths of N-Jets train at the full rate: they are what such a kernel is made of, not a mask on it.

    Args:
        model: anything; masks are found by their type.
        lr: learning rate of all other parameters.
        mask_lr_scale: the masks' share of it, 0.1 in the papers.

    Returns:
        One group, or two where there are masks; every parameter stands in exactly one.

    Example:
        >>> import flexseq as fs
        >>> groups = param_groups(fs.FlexTCN(depth=1), lr=0.01)
        >>> [(len(group["params"]), group["lr"]) for group in groups]
        [(58, 0.01), (4, 0.001)]
    """
    widths = {module.mask for module in model.modules() if isinstance(module, NJetConv)}
    found = [module for module in model.modules() if isinstance(module, GaussianMask) and module not in widths]
    masks = {id(p): p for mask in found for p in mask.parameters()}
    others = [p for p in model.parameters() if id(p) not in masks]
    groups = [{"params": others, "lr": lr}]
    if masks:
        groups.append({"params": list(masks.values()), "lr": lr * mask_lr_scale})
    return groups


def kernel_penalty(model: nn.Module) -> Tensor:
    """The papers' weight decay: the sum over continuous convolutions of ||sampled kernel||_2 + ||bias||_2, norms not squared.

    Returns:
        A scalar; 0 for a model without such layers.
    """
    total = next(model.parameters()).new_zeros(())
    layers = [module for module in model.modules() if isinstance(module, ContinuousConv)]
    for layer, kernel in zip(layers, kernels_for_penalty(layers), strict=True):
        total = total + norm_of(kernel)
        if layer.bias is not None:
            total = total + torch.linalg.vector_norm(layer.bias)
    return total
