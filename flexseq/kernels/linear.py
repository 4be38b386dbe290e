"""Linear maps over the channels of (channels, *taps): the 1x1 convolutions of the papers, as one matrix product."""

import math

import torch
from torch import Tensor, nn


class PointwiseLinear(nn.Module):
    """weight @ x + bias over the first axis, with torch's default initialisation.

    Args:
        in_features, out_features: channels before and after.
        weight_norm: learn each output's direction and length apart, weight = weight_g * weight_v / |weight_v|.
    """

    bias: Tensor
    weight: Tensor
    weight_v: Tensor
    weight_g: Tensor

    def __init__(self, in_features: int, out_features: int, *, weight_norm: bool = False):
        super().__init__()
        linear = nn.Linear(in_features, out_features)
        self.bias = linear.bias
        self.weight_norm = weight_norm
        if weight_norm:
            self.weight_v = linear.weight
            self.weight_g = nn.Parameter(linear.weight.detach().norm(dim=1, keepdim=True))
        else:
            self.weight = linear.weight

    def effective_weight(self) -> Tensor:
        """(out_features, in_features), as it is applied."""
        return effective_weight(*self.weight_parts())

    def weight_parts(self) -> tuple[Tensor, ...]:
        """What `effective_weight` takes: the weight, or direction and length."""
        return (self.weight_v, self.weight_g) if self.weight_norm else (self.weight,)

    @torch.no_grad()
    def init_uniform(self, bound: float, *, bias_bound: float | None = None) -> None:
        """Draw the weight from U(-bound, bound), and the bias from U(-bias_bound, bias_bound) where that is given."""
        if self.weight_norm:
            self.weight_v.uniform_(-bound, bound)
            self.weight_g.copy_(self.weight_v.norm(dim=1, keepdim=True))
        else:
            self.weight.uniform_(-bound, bound)
        if bias_bound is not None:
            self.bias.uniform_(-bias_bound, bias_bound)

    @torch.no_grad()
    def scale_outputs(self, factor: Tensor) -> None:
        """Multiply each output by its entry of `factor`, (out_features,)."""
        (self.weight_g if self.weight_norm else self.weight).mul_(factor[:, None])
        self.bias.mul_(factor)

    def forward(self, x: Tensor, *, weight_scale: float = 1.0) -> Tensor:
        """weight_scale * weight @ x + bias: (in_features, *taps) -> (out_features, *taps), computed in x's dtype."""
        return pointwise(x, self.effective_weight(), self.bias, weight_scale=weight_scale)


def effective_weight(weight: Tensor, length: Tensor | None = None) -> Tensor:
    """(..., out_features, in_features): the weight, with weight normalization where the length of each row, (..., out, 1), is given."""
    return weight if length is None else weight * (length / weight.norm(dim=-1, keepdim=True))


def stacked_pointwise(x: Tensor, weight: Tensor, bias: Tensor, *, weight_scale: float = 1.0, bias_scale: float = 1.0) -> Tensor:
    """`pointwise` for many networks: (networks, in_features, taps) -> (networks, out_features, taps).

    Args:
        weight, bias: (networks, out_features, in_features), and (networks, out_features).
        weight_scale, bias_scale: numbers that they are multiplied with.
    """
    return torch.baddbmm(bias.to(x.dtype)[..., None], weight.to(x.dtype), x, beta=bias_scale, alpha=weight_scale)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor, *, weight_scale: float = 1.0) -> Tensor:
    """weight_scale * weight @ x + bias: (in_features, *taps) -> (out_features, *taps), computed in x's dtype."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return torch.addmm(bias[:, None], weight, x.flatten(1), alpha=weight_scale).view(-1, *x.shape[1:])


def default_bound(fan_in: int) -> float:
    """Half-width of the uniform distribution from which torch draws linear weights and biases."""
    return 1 / math.sqrt(fan_in)
