"""The kernels of many layers, made together.

A kernel is a linear combination of functions of position: basis (H, *taps) and weight (out_channels, in_channels / groups, H). Layers whose
kernel networks have the same shape are evaluated as one batched network, each at the taps that it keeps, padded to the longest of them.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flexseq.functional import spectral_conv
from flexseq.functional.dtypes import at_least_float32
from flexseq.functional.gaussian import gaussian_masks
from flexseq.functional.programs import constant, is_recorded_now
from flexseq.kernels.linear import PointwiseLinear, effective_weight
from flexseq.kernels.network import is_as_built
from flexseq.positions import Keep, tap_positions, tap_weights, taps_around

if TYPE_CHECKING:
    from flexseq.nn.continuous import ContinuousConv

CHECKPOINTED_FROM = 2048
"""Taps from which the basis is computed again in the backward pass: 30 tensors of 32 functions take 8 MB there."""
TOGETHER = 2**20
"""Numbers up to which the functions of several layers are computed as one tensor, on a CPU: what its cache holds of a few of them."""
BEYOND_CPU = 2**3
"""How many times more on other devices, where starting an operator costs more than memory does."""
WASTE = 1.25
"""How many times the taps that they keep layers may be padded to, all together, where that is more than a few numbers."""
FEW = 2**16
"""Numbers that cost less than starting an operator more."""
CACHED_PLACES = 2**18
"""Numbers up to which the positions of taps are cached: they change with the crop alone."""


class Kernel(NamedTuple):
    """A layer's kernel at the taps that it keeps.

    Args:
        keep: a (start, stop) for each axis.
        basis, weight: (H, *taps), and (out_channels, in_channels / groups, H), at least in float32.
        kept: in eval mode what convolutions have made of it; they leave it there.
        nodes: the batches that it is from with gradients, which may pass through them more than once; none where they may not, or there are
            no gradients.
    """

    keep: Keep
    basis: Tensor
    weight: Tensor
    kept: dict[str, Any] | None = None
    nodes: "tuple[Batch, ...]" = ()


def make_kernels(layers: Sequence["ContinuousConv"], keeps: Sequence[Keep], *, rounded: bool = False, shared: bool = False) -> list[Kernel]:
    """The kernels of layers, differentiable, each at its own taps; all on one device.

    Args:
        layers: whose kernels' sizes are known.
        keeps: the taps to evaluate of each.
        rounded: there are more than the masks leave: where these are below their threshold, kernels are zero.
        shared: whether others may take them too, and pass gradients through them apart.
    """
    bases: dict[int, tuple[Tensor, Batch | None]] = {}
    weights: dict[int, tuple[Tensor, Batch | None]] = {}
    with torch.autocast(layers[0].device.type, enabled=False):  # positions need more digits than half precision has
        for batch in _basis_batches(layers, keeps, rounded):
            for index, tensor in zip(batch.members, batch.tensors(shared), strict=True):
                bases[index] = tensor, batch
        for index, (layer, keep) in enumerate(zip(layers, keeps, strict=True)):
            if index not in bases:
                bases[index] = basis_alone(layer, keep, rounded), None
        dtypes = [bases[index][0].dtype for index in range(len(layers))]
        for batch in _weight_batches(layers, dtypes):
            for index, tensor in zip(batch.members, batch.tensors(shared), strict=True):
                weights[index] = tensor, batch
        for index, layer in enumerate(layers):
            if index not in weights:
                weights[index] = weight_alone(layer, dtypes[index]), None
    kernels = []
    for index, keep in enumerate(keeps):
        (basis, of_basis), (weight, of_weight) = bases[index], weights[index]
        nodes = tuple(batch for batch in (of_basis, of_weight) if batch is not None and batch.has_node)
        whole = shared and of_basis is not None and of_weight is not None
        kernels.append(Kernel(keep, basis, weight, None, nodes if whole else ()))
    return kernels


def basis_alone(layer: "ContinuousConv", keep: Keep, rounded: bool) -> Tensor:
    """The functions of a layer whose network is like no other's, or that makes them in its own way: (H, *taps)."""
    taps = math.prod([stop - start for start, stop in keep])
    if torch.is_grad_enabled() and not is_recorded_now() and taps >= CHECKPOINTED_FROM:
        # Cheap to make again in the backward pass, costly to keep: some thirty tensors of this size.
        return checkpoint(layer.basis, keep, rounded=rounded, use_reentrant=False, preserve_rng_state=False)
    return layer.basis(keep, rounded=rounded)


def weight_alone(layer: "ContinuousConv", dtype: torch.dtype) -> Tensor:
    """The weights of a layer's functions, the last of them a constant: (out_channels, in_channels / groups, H)."""
    readout = layer.kernel_network.readout
    weight = torch.cat([readout.effective_weight(), readout.bias[:, None]], 1).to(dtype)
    return weight.unflatten(0, (layer.out_channels, layer.in_channels // layer.groups))


class Batch:
    """Tensors of several layers that are computed as one, and its node in the graph of gradients.

    Args:
        members: indices of the layers.
        parts: parameters and buffers: for each place in the formula a list, the first layer's first.
        formula: from each part's list, stacked, (layers, members of the list, *shape), to (layers, ...).
        unstack: from that to a tensor for each layer, views of it.
        stack: the adjoint, from gradients, of which some may be None.
        recompute: whether to compute again in the backward pass, rather than keep what is between.
    """

    def __init__(
        self,
        members: list[int],
        parts: list[list[Tensor]],
        formula: Callable[[list[Tensor]], Tensor],
        unstack: Callable[[Tensor], list[Tensor]],
        stack: Callable[[Sequence[Tensor | None]], Tensor],
        recompute: bool,
    ):
        self.members, self.parts, self.formula, self.unstack, self.stack = members, parts, formula, unstack, stack
        self.recompute = recompute
        self.has_node = False  # in the graph of gradients
        self.spent = False  # whether a backward pass has gone through it

    def tensors(self, shared: bool) -> list[Tensor]:
        """A tensor for each layer; see `make_kernels`."""
        parameters = list({id(value): value for part in self.parts for value in part if value.requires_grad}.values())
        plain = not (torch.is_grad_enabled() and parameters) or is_recorded_now() or is_transformed()
        if plain or not (shared or self.recompute):
            return self.unstack(self.whole({}))
        self.has_node = True
        return list(_Node.apply(self, *parameters))

    def whole(self, others: dict[int, Tensor]) -> Tensor:
        """(layers, ...).

        Args:
            others: by the id of a parameter, what to take in its place.
        """
        stacked = []
        for part in self.parts:
            tensors = [others.get(id(value), value) for value in part]
            stacked.append(tensors[0][None, None] if len(part) == 1 else torch.stack(tensors).unflatten(0, (len(self.members), -1)))
        return self.formula(stacked)


class _Node(torch.autograd.Function):
    """A batch's tensors, with a graph of their own within.

    Backward passes may go through it more than once: the penalty on kernels takes those of the forward pass, and its gradient may be asked
    for apart from the loss's. Within, parameters have stand-ins, so that nobody's hooks run there.
    """

    @staticmethod
    def forward(ctx: Any, batch: Batch, *parameters: Tensor) -> tuple[Tensor, ...]:
        stand_ins = [value.detach().requires_grad_() for value in parameters]
        with torch.set_grad_enabled(not batch.recompute):
            whole = batch.whole(_by_id(parameters, stand_ins))
        ctx.batch, ctx.parameters = batch, parameters
        ctx.whole, ctx.stand_ins = (None, None) if batch.recompute else (whole, stand_ins)
        ctx.versions = [value._version for value in parameters]
        ctx.set_materialize_grads(False)  # a layer that did not run has no gradient
        return tuple(batch.unstack(whole.detach()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        batch, parameters = ctx.batch, ctx.parameters
        batch.spent = True
        whole, stand_ins = ctx.whole, ctx.stand_ins
        ctx.whole = ctx.stand_ins = None
        differentiable = torch.is_grad_enabled()
        if whole is None or differentiable:  # computed again, or a graph of gradients is wanted too
            if ctx.versions != [value._version for value in parameters]:
                raise RuntimeError("a parameter of a kernel network was modified in place between the forward and the backward pass")
            with torch.enable_grad():
                stand_ins = [value.view_as(value) if differentiable else value.detach().requires_grad_() for value in parameters]
                whole = batch.whole(_by_id(parameters, stand_ins))
        wanted = _wanted(batch, grads)
        is_wanted = [needed and id(value) in wanted for value, needed in zip(parameters, ctx.needs_input_grad[1:], strict=True)]
        inputs = [value for value, one in zip(stand_ins, is_wanted, strict=True) if one]
        if not inputs:
            return None, *[None] * len(parameters)
        found = iter(torch.autograd.grad(whole, inputs, batch.stack(grads), create_graph=differentiable, allow_unused=True))
        return None, *[next(found) if one else None for one in is_wanted]


def _by_id(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> dict[int, Tensor]:
    return {id(value): other for value, other in zip(parameters, others, strict=True)}


def _wanted(batch: Batch, grads: Sequence[Tensor | None]) -> set[int]:
    """The parameters of those layers to whose tensors a gradient came."""
    wanted = set()
    for part in batch.parts:
        each = len(part) // len(grads)
        for index, grad in enumerate(grads):
            if grad is not None:
                wanted |= {id(value) for value in part[index * each : (index + 1) * each]}
    return wanted


def is_transformed() -> bool:
    """Within torch.func, or in forward mode: whose rules are those of torch's own operators."""
    forward_mode: int = torch.autograd.forward_ad._current_level
    return forward_mode >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def _basis_batches(layers: Sequence["ContinuousConv"], keeps: Sequence[Keep], rounded: bool = False) -> list[Batch]:
    kinds: dict[Hashable, list[int]] = {}
    for index, layer in enumerate(layers):
        key = layer.stacking_key()
        if key is not None:
            kinds.setdefault(key, []).append(index)
    batches = []
    for members in kinds.values():
        taps = {index: math.prod([stop - start for start, stop in keeps[index]]) for index in members}
        limit = TOGETHER * (1 if spectral_conv._patience(layers[0].device) == 1 else BEYOND_CPU)
        alike = _of_similar_size(taps, layers[members[0]].kernel_network.hidden, limit)
        batches += [_basis_batch([layers[i] for i in some], [keeps[i] for i in some], some, rounded) for some in alike]
    return batches


def _of_similar_size(taps: dict[int, int], functions: int, limit: int) -> list[list[int]]:
    """Indices of layers to be evaluated together: all, unless that is too large a tensor, or most of it would be padding."""
    batches: list[list[int]] = []
    used = 0
    for index in sorted(taps, key=lambda index: -taps[index]):
        if batches:
            longest, count = taps[batches[-1][0]], len(batches[-1]) + 1
            numbers = longest * count * functions
            if numbers <= limit and (longest * count <= WASTE * (used + taps[index]) or numbers <= FEW):
                batches[-1].append(index)
                used += taps[index]
                continue
        batches.append([index])
        used = taps[index]
    return [sorted(batch) for batch in batches]


def _basis_batch(layers: list["ContinuousConv"], keeps: list[Keep], members: list[int], rounded: bool) -> Batch:
    network, first_mask = layers[0].kernel_network, layers[0].mask
    extents = [tuple(stop - start for start, stop in keep) for keep in keeps]
    lengths = [math.prod(extent) for extent in extents]
    dtype = at_least_float32(network.readout.bias.dtype)
    positions, counts = tap_places(layers, keeps, max(lengths), dtype)
    parts = [
        [value for one in same for value in one] for same in zip(*[layer.kernel_network.basis_parts() for layer in layers], strict=True)
    ]
    of_network = len(parts)
    # Of masks and numbers, not of layers: a layer holds its last kernel, whose graph holds these.
    inside = [
        partial(mask_inside, layer.mask, layer.known_size(), keep, layer.causal, layer.ratio)
        for layer, keep in zip(layers, keeps, strict=True)
    ]
    if first_mask is not None:
        masks: list[Any] = [layer.mask for layer in layers]
        parts += [[mask.mean for mask in masks], [mask.sigma for mask in masks]]
        if first_mask.angle is not None:
            parts.append([mask.angle for mask in masks])

    def formula(stacked: list[Tensor]) -> Tensor:
        functions = network.stacked_basis(stacked[:of_network], positions)
        if first_mask is None:
            constant = torch.ones_like(functions[:, :1])
        else:  # the readout's bias is the weight of a constant
            constant = gaussian_masks(positions, *[value[:, 0] for value in stacked[of_network:]])[:, None]
            if counts is not None:
                constant = constant * counts
            if rounded:
                kept = [_padded(one().flatten(), max(lengths)) for one in inside]
                constant = constant * torch.stack(kept)[:, None].to(constant.dtype)
            return torch.cat([functions * constant, constant], 1)
        whole = torch.cat([functions, constant], 1)
        return whole if counts is None else whole * counts

    def unstack(whole: Tensor) -> list[Tensor]:
        return [one[:, :length].unflatten(1, extent) for one, length, extent in zip(whole.unbind(0), lengths, extents, strict=True)]

    def stack(grads: Sequence[Tensor | None]) -> Tensor:
        present = [grad.flatten(1) for grad in grads if grad is not None]
        if len(present) == len(grads) and len(set(lengths)) == 1:
            return torch.stack(present) if len(present) > 1 else present[0][None]
        whole = present[0].new_zeros(len(grads), len(present[0]), max(lengths))
        for one, grad, length in zip(whole.unbind(0), grads, lengths, strict=True):
            if grad is not None:
                one[:, :length] = grad.flatten(1)
        return whole

    return Batch(members, parts, formula, unstack, stack, recompute=max(lengths) >= CHECKPOINTED_FROM)


def mask_inside(mask: Any, size: tuple[int, ...], keep: Keep, causal: bool, ratio: float) -> Tensor:
    """Which of some taps a mask leaves, found out on the device: (*taps), of bools."""
    inside = mask.inside(size, causal=causal, ratio=ratio)
    for axis, (start, stop) in enumerate(keep):
        inside = inside.narrow(axis, start, stop - start)
    return inside


def _weight_batches(layers: Sequence["ContinuousConv"], dtypes: Sequence[torch.dtype]) -> list[Batch]:
    kinds: dict[Hashable, list[int]] = {}
    for index, layer in enumerate(layers):
        readout = layer.kernel_network.readout
        if is_recorded_now() or not is_as_built(readout, PointwiseLinear):
            continue
        kinds.setdefault((readout.weight_norm, tuple(readout.weight_parts()[0].shape), readout.bias.dtype, dtypes[index]), []).append(index)
    return [_weight_batch([layers[i] for i in members], members, dtypes[members[0]]) for members in kinds.values()]


def _weight_batch(layers: list["ContinuousConv"], members: list[int], dtype: torch.dtype) -> Batch:
    readouts = [layer.kernel_network.readout for layer in layers]
    parts = [list(same) for same in zip(*[(*one.weight_parts(), one.bias) for one in readouts], strict=True)]
    shapes = [(layer.out_channels, layer.in_channels // layer.groups) for layer in layers]

    def formula(stacked: list[Tensor]) -> Tensor:
        *weight, bias = [value[:, 0] for value in stacked]
        return torch.cat([effective_weight(*map(_Whole.apply, weight)), _Whole.apply(bias)[..., None]], 2).to(dtype)

    def unstack(whole: Tensor) -> list[Tensor]:
        return [one.unflatten(0, shape) for one, shape in zip(whole.unbind(0), shapes, strict=True)]

    def stack(grads: Sequence[Tensor | None]) -> Tensor:
        present = next(grad for grad in grads if grad is not None)
        flat = [torch.zeros_like(present).flatten(0, 1) if grad is None else grad.flatten(0, 1) for grad in grads]
        return torch.stack(flat) if len(flat) > 1 else flat[0][None]

    return Batch(members, parts, formula, unstack, stack, recompute=False)


class _Whole(torch.autograd.Function):
    """Itself; its gradient without gaps in memory, so that the optimizer need not copy each layer's part of it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.view_as(tangent)


Place = tuple[tuple[int, ...], tuple[tuple[int, int], ...], bool, float]
"""Where a layer's taps lie: its kernel's size, the taps that it keeps, whether it is causal, and its resolution."""


def tap_places(layers: Sequence["ContinuousConv"], keeps: Sequence[Keep], length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Positions of layers' taps, and what each tap counts.

    Args:
        length: of the longest, to which the others are padded.

    Returns:
        (layers, ndim, length), and (layers, 1, length), 0 for padding; None where all count 1.
    """
    places = tuple(
        (layer.known_size(), tuple((int(start), int(stop)) for start, stop in keep), layer.causal, layer.ratio)
        for layer, keep in zip(layers, keeps, strict=True)
    )
    device = layers[0].device
    make = _tap_places if len(places) * len(places[0][0]) * length > CACHED_PLACES else _cached_places
    return make(places, length, dtype, device)


def _tap_places(places: tuple[Place, ...], length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    rows, counts = [], []
    for size, keep, causal, ratio in places:
        options: dict[str, Any] = {"causal": causal, "keep": keep, "ratio": ratio, "dtype": dtype, "device": device}
        row = tap_positions(size, **options).flatten(1)
        count = tap_weights(size, **options).flatten() if ratio != 1 else torch.ones_like(row[0])
        rows.append(_padded(row, length))
        counts.append(_padded(count, length))
    all_count = all(ratio == 1 and math.prod([b - a for a, b in keep]) == length for _, keep, _, ratio in places)
    return torch.stack(rows), None if all_count else torch.stack(counts)[:, None]


_cached_places = constant(_tap_places)


def _padded(row: Tensor, length: int) -> Tensor:
    return row if row.shape[-1] == length else torch.nn.functional.pad(row, (0, length - row.shape[-1]))


def taps_before(layer: "ContinuousConv", keep: Keep) -> list[int]:
    """Kept taps before the present one, for each axis."""
    size, _, ratio = layer.size
    assert size is not None  # whoever has taps to keep knows it
    around = [taps_around(count, causal=layer.causal, ratio=ratio)[0] for count in size]
    return [before - start for before, (start, _) in zip(around, keep, strict=True)]


def norm_of(kernel: Kernel) -> Tensor:
    """||kernel||_2, without forming the kernel: ||W B||^2 = tr(W B B' W') for its basis B and weight W. A scalar."""
    with torch.autocast(kernel.basis.device.type, enabled=False):
        basis, weight = kernel.basis.flatten(1), kernel.weight.flatten(0, 1)
        square = ((weight @ (basis @ basis.T)) * weight).sum()
        return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()  # the root's slope at 0 is infinite
