"""Put NIFF, FlexConv or CF-Conv layers into any network."""

import copy
import gc
import inspect
import itertools
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from flexseq.arguments import forget_arguments, is_recorded, record_conversion
from flexseq.errors import InputError, unknown_name
from flexseq.fitting import fit_kernel, placed
from flexseq.kernels import KERNELS, KernelFactory
from flexseq.nn.cfconv import CFConv1d, CFConv2d
from flexseq.nn.flexconv import FlexConv1d, FlexConv2d, FlexConv3d
from flexseq.nn.niff import SIZES, NIFFConv1d, NIFFConv2d
from flexseq.nn.sizes import KernelSize

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NAMES = "names"
"""In files, what `only` came to."""
INITIALISATIONS = ("torch", "kaiming", "fit")

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)

Only = str | Callable[[str], bool] | None
"""Which modules, by their names: a regular expression that is searched for in them, or a function."""


@dataclass(frozen=True)
class Replacement:
    """A convolution, and what became of it.

    Args:
        name: the module's.
        before: what it was, as "3x3, 64 -> 128, stride 2".
        after: what it is now; "" where it was left alone.
        reason: why it was left alone; "" where it was not.
        parameters_before, parameters_after: of this module.
        error: with init="fit", how far the new kernel is from the old one, relative to its norm.
    """

    name: str
    before: str
    after: str
    reason: str
    parameters_before: int
    parameters_after: int
    error: float | None = None


@dataclass(frozen=True)
class Report:
    """What a conversion did. `str(report)` is a table, `report.rows` one object for each convolution.

    Args:
        rows: of each convolution of the model, in the order of its modules.
        parameters_before, parameters_after: of the whole model, each shared one counted once.
    """

    rows: list[Replacement]
    parameters_before: int
    parameters_after: int

    @property
    def replaced(self) -> list[str]:
        """Names of the modules that were replaced."""
        return [row.name for row in self.rows if not row.reason]

    def __str__(self) -> str:
        fitted = any(row.error is not None for row in self.rows)
        head = ("module", "was", "is", "parameters", *(["error of the fit"] if fitted else []))
        cells = [
            (
                row.name,
                row.before,
                row.after or f"left: {row.reason}",
                f"{row.parameters_before:,} -> {row.parameters_after:,}",
                *(["" if row.error is None else f"{row.error:.1%}"] if fitted else []),
            )
            for row in self.rows
        ]
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *cells]]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines.append(
            f"{len(self.replaced)} of {len(self.rows)} convolutions replaced; the model's parameters: "
            f"{self.parameters_before:,} -> {self.parameters_after:,}"
        )
        return "\n".join(lines)


def to_niff(
    model: nn.Module,
    *,
    size: str | Sequence[int] | KernelFactory = "big",
    full: bool = False,
    bias: bool = False,
    linear: bool = False,
    padding: str | None = None,
    init: str = "torch",
    first: bool = False,
    only: Only = None,
    example: Any = None,
) -> tuple[nn.Module, Report]:
    """A copy of a network with NIFF layers for its convolutions, by the paper's rule.

    The first convolution and those with a stride stay, and so do 1x1 ones. A depthwise convolution of any size becomes a depthwise NIFF;
    another one a depthwise NIFF and a 1x1 convolution (of as many groups as it had), or a single NIFF over all channels if `full`. A
    dilated one is converted like any other: the new kernel is as large as the image. Left alone and listed, too: a convolution that
    changes its input's size, one of a class of its own, with a parametrisation, weight norm or pruning, transposed and lazy ones, and one
    that shares its weight with a module that stays. Hooks stay with their modules, and layers that shared a weight share their kernel.

    Args:
        model: any module; it is not changed. New layers have the dtype, device and mode of those that they replace, and new weights.
        size: the networks' size, "tiny", "small", "big" or "cifar", or anything that NIFFConv takes as `kernel`. The paper has "big" for
            ResNet and ConvNeXt, "small" for MobileNet and DenseNet, "tiny" with `full`, and "cifar" for CIFAR-10.
        full: one NIFF over all pairs of channels, in place of a depthwise one and a 1x1.
        bias: keep the biases of converted convolutions; published counts of parameters are without.
        linear, padding: the paper's ablations, see `flexseq.NIFFConv2d`.
        init: how NIFF's linear maps and the new 1x1s start: as "torch" draws weights; "kaiming", He's normal distribution by the number
            of outputs, as in the authors' ResNets, DenseNet and MobileNet; or "fit", as near as they can be to the kernels that they
            replace, with the error in the report. A 3x3 kernel over all channels is nearest to a depthwise one and a 1x1 by its first
            singular vectors, and that is often not near.
        example: with init="fit", an input of the model: each layer's size comes from it.
        first: convert the first convolution too, as in the authors' networks for CIFAR-10.
        only: convert no others than modules with such names.

    Returns:
        The new model and a report, to print: what was replaced, what was left alone and why, parameters before and after.

    Raises:
        InputError: there is nothing to convert; unknown names.

    Source:
        Grabinski et al. 2024, Sec. 3.2 and appendix H; biases as published counts have them.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
        >>> new, report = to_niff(model, size="small")
        >>> report.replaced, report.parameters_before, report.parameters_after
        (['2'], 1392, 552)
        >>> new(torch.randn(1, 3, 10, 12)).shape
        torch.Size([1, 16, 10, 12])
    """
    if init not in INITIALISATIONS:
        raise unknown_name("init", init, INITIALISATIONS)
    if isinstance(size, str) and size not in (*SIZES, *KERNELS):
        raise unknown_name("size", size, [*SIZES, *KERNELS])
    options: dict[str, Any] = {"kernel": size, "linear": linear, "padding": padding}

    def replace(conv: Any) -> nn.Module:
        layer = {1: NIFFConv1d, 2: NIFFConv2d}[len(conv.kernel_size)]
        has_bias = bias and conv.bias is not None
        depthwise = conv.groups == conv.in_channels == conv.out_channels
        if full or depthwise:
            new = layer(conv.in_channels, conv.out_channels, groups=conv.groups, bias=has_bias, **options)
            return _initialised(new, init)
        first = layer(conv.in_channels, conv.in_channels, groups=conv.in_channels, **options)
        point = type(conv)(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=has_bias)
        return nn.Sequential(_initialised(first, init), _initialised(point, init))

    given = {"size": size, "full": full, "bias": bias, "linear": linear, "padding": padding, "init": init, "first": first, "only": only}
    return _convert(model, replace, "to_niff", given, ndims=(1, 2), keeps_first=not first, example=example)


def to_separable(model: nn.Module, *, bias: bool = False, first: bool = False, only: Only = None) -> tuple[nn.Module, Report]:
    """A copy of a network with its full convolutions split into a depthwise one of the same size and a 1x1: NIFF's fair opponent.

    Which are converted is as in `to_niff`; depthwise ones stay.

    Args:
        model: any module; it is not changed.
        bias: keep the biases of converted convolutions, in the 1x1.
        first: split the first convolution too.
        only: convert no others than modules with such names.

    Returns:
        The new model and a report.

    Raises:
        InputError: there is nothing to convert.

    Source:
        Grabinski et al. 2024, appendix H, "Ablation on Separated Convolution".
    """

    def replace(conv: Any) -> nn.Module:
        size = {"padding": conv.padding, "dilation": conv.dilation, "padding_mode": conv.padding_mode}
        depthwise = type(conv)(conv.in_channels, conv.in_channels, conv.kernel_size, groups=conv.in_channels, bias=False, **size)
        point = type(conv)(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=bias and conv.bias is not None)
        return nn.Sequential(depthwise, point)

    given = {"bias": bias, "first": first, "only": only}
    return _convert(model, replace, "to_separable", given, ndims=(1, 2, 3), depthwise=False, keeps_first=not first)


def to_flexconv(
    model: nn.Module,
    *,
    kernel_size: int | Sequence[int] | None = None,
    kernel: str | KernelFactory = "magnet",
    mask_sigma: float = 0.075,
    bias: bool = True,
    init: str = "torch",
    only: Only = None,
    example: Any = None,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """A copy of a network with FlexConv layers for its convolutions, of the same channels and groups.

    Which are converted is as in `to_niff`.

    Args:
        model: any module; it is not changed. New layers have the dtype, device and mode of those that they replace, and new weights.
        kernel_size: taps before cropping; where None, each layer's first input decides.
        kernel: the kernel network; see `flexseq.FlexConv2d`.
        mask_sigma: where the masks start; the default shows about 5 taps of 33.
        bias: keep the biases of converted convolutions (they start at 0, with init="fit" as they were).
        init: "torch", kernels as FlexConv draws them; or "fit", as near as they can be to those that they replace, their masks as large.
        only: convert no others than modules with such names: a regular expression or a function.
        example: with init="fit" and no kernel_size, an input of the model: each layer's size comes from it.
        options: further ones of FlexConv.

    Returns:
        The new model and a report.

    Raises:
        InputError: there is nothing to convert; options that FlexConv refuses.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
        >>> new, report = to_flexconv(model, kernel_size=33)
        >>> report.replaced, new(torch.randn(1, 3, 32, 32)).shape
        (['2'], torch.Size([1, 16, 32, 32]))
    """
    _check_options("to_flexconv", FlexConv2d, options)
    if init not in ("torch", "fit"):
        raise unknown_name("init", init, ("torch", "fit"))
    given = {"kernel": kernel, "mask_sigma": mask_sigma, "variance_preserving": True, **options}

    def replace(conv: Any) -> nn.Module:
        layer: Any = {1: FlexConv1d, 2: FlexConv2d, 3: FlexConv3d}[len(conv.kernel_size)]
        return layer(conv.in_channels, conv.out_channels, kernel_size, groups=conv.groups, bias=bias and conv.bias is not None, **given)

    said = {"kernel_size": kernel_size, "bias": bias, "init": init, "only": only, **given}
    return _convert(model, replace, "to_flexconv", said, ndims=(1, 2, 3), example=example)


def to_cfconv(
    model: nn.Module, *, positions: int | float = 2**15, bias: bool = True, only: Only = None, **options: Any
) -> tuple[nn.Module, Report]:
    """A copy of a network with CF-Conv layers for its convolutions, of the same channels and groups.

    Which are converted is as in `to_niff`. Each layer's first input decides on its kernel's size.

    Args:
        model: any module; it is not changed. New layers have the dtype, device and mode of those that they replace, and new weights.
        positions: drawn in every step, by each layer; one that has fewer takes all, with a warning.
        bias: keep the biases of converted convolutions (they start at 0).
        only: convert no others than modules with such names: a regular expression or a function.
        options: further ones of CFConv, see `flexseq.CFConv2d`; a `seed` is the first layer's, counted up for the others.

    Returns:
        The new model and a report.

    Raises:
        InputError: there is nothing to convert; options that CFConv refuses.
    """

    _check_options("to_cfconv", CFConv2d, options)

    seeds = itertools.count()

    def replace(conv: Any) -> nn.Module:
        layer: Any = {1: CFConv1d, 2: CFConv2d}[len(conv.kernel_size)]
        given = {"groups": conv.groups, "bias": bias and conv.bias is not None, "positions": positions, "at_most": True, **options}
        if given.get("seed") is not None:
            given["seed"] += next(seeds)  # alike layers are not to start alike
        return layer(conv.in_channels, conv.out_channels, **given)

    return _convert(model, replace, "to_cfconv", {"positions": positions, "bias": bias, "only": only, **options}, ndims=(1, 2))


def _convert(
    model: nn.Module,
    replace: Callable[[Any], nn.Module],
    caller: str,
    given: dict[str, Any],
    *,
    ndims: tuple[int, ...],
    depthwise: bool = True,
    keeps_first: bool = True,
    example: Any = None,
) -> tuple[nn.Module, Report]:
    if not isinstance(model, nn.Module):
        raise InputError(f"{caller} expected a torch.nn.Module, got {type(model).__name__}")
    fits = given.get("init") == "fit"
    if example is not None and not fits:
        raise InputError(f'{caller} expected no example without init="fit"')
    if fits and example is None and given.get("kernel_size") is None:
        raise InputError(f'{caller} expected an example with init="fit", an input of the model, from which the layers\' sizes come')
    chosen = _chooser(given["only"])
    new = _copied(model)
    convs = {name: module for name, module in new.named_modules() if isinstance(module, PLAIN + TRANSPOSED)}
    first = next((module for module in convs.values() if isinstance(module, PLAIN)), None) if keeps_first else None
    reasons = {}
    for name, module in convs.items():
        reasons[name] = _reason(module, first, ndims) or ("" if chosen(name) else "not chosen")
        if not (reasons[name] or depthwise) and module.groups == module.in_channels == module.out_channels:
            reasons[name] = "depthwise already"
    for name, module in new.named_modules():  # as timm's RepVGG and MobileOne do
        method = next((one for one in ("reparameterize", "switch_to_deploy") if callable(getattr(module, one, None))), None)
        for conv in convs if method is not None else ():
            if not reasons[conv] and (not name or conv.startswith(f"{name}.")):
                reasons[conv] = f"{type(module).__name__}.{method} takes its weight"
    sharing = _sharing(new, convs)
    for name, others in sharing.items():
        staying = [other for other in others if other not in convs or reasons[other]]
        if caller == "to_cfconv" and others:
            staying = others  # a kernel of theirs is a state for each layer
        if not reasons[name] and staying:
            reasons[name] = f"its weight is shared with {staying[0]}"
    for name, module in convs.items():
        if not reasons[name]:
            _check_methods(module, name, caller)
    grids = _grids(new, convs, example) if fits and example is not None else {}
    rows: list[Replacement] = []
    made: dict[str, nn.Module] = {}
    for name, module in convs.items():
        before, count = _describe(module), _count(module)
        if reasons[name]:
            rows.append(Replacement(name, before, "", reasons[name], count, count))
            continue
        replacement = _like(replace(module), module)
        error = _fitted(replacement, module, grids.get(name), caller, name) if fits else None
        twin = next((other for other in sharing[name] if other in made), None)
        if twin is not None:
            _share_parameters(made[twin], replacement, bias=convs[twin].bias is module.bias)
        made[name] = replacement
        rows.append(Replacement(name, before, _describe(replacement), "", count, _count(replacement), error))
    if not made:
        left = "; ".join(f"{row.name or 'the model'}: {row.reason}" for row in rows[:3]) + ("; ..." if rows[3:] else "")
        raise InputError(f"{caller} found nothing to convert in {type(model).__name__} ({left or 'it has no convolutions'})")
    for name, replacement in made.items():
        _become(convs[name], replacement)
    if "" not in made and is_recorded(new):
        only: Any = given["only"]
        if isinstance(only, str):
            only = {NAMES: list(made)}  # a file is to hold no patterns, of which some take for ever
        record_conversion(new, caller, {**given, "only": only, **({"init": "torch"} if fits else {})})  # loading brings the weights
    layers = {id(convs[name]) for name in made}
    for name, part in new.named_modules():
        if name and is_recorded(part) and any(id(inner) in layers for inner in part.modules() if inner is not part):
            forget_arguments(part, f"{type(part).__name__} was converted as part of {type(new).__name__}; save its state_dict instead")
    return new, Report(rows, _count(model), _count(new))


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where weight norm or pruning left a tensor with a history, which torch does not copy: its hook makes it anew."""
    memo = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)


def _sharing(model: nn.Module, convs: dict[str, Any]) -> dict[str, list[str]]:
    """For each convolution the other modules that have its weight, by name."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and name not in owners.setdefault(id(parameter), []):
                owners[id(parameter)].append(name)
    return {name: [other for other in owners.get(id(conv._parameters.get("weight")), []) if other != name] for name, conv in convs.items()}


def _check_methods(module: nn.Module, name: str, caller: str) -> None:
    """Refuse a module whose methods somebody keeps: they would go on computing with the old class."""
    for referrer in gc.get_referrers(module):
        if isinstance(referrer, types.MethodType) and any(isinstance(holder, dict | list | tuple) for holder in gc.get_referrers(referrer)):
            raise InputError(
                f"{caller} cannot convert {name or 'the model'}: something keeps its method {referrer.__name__}; keep the module itself, "
                "or leave it out by `only`"
            )


def _become(old: Any, new: nn.Module) -> None:
    """Make a module another one in place, so that whoever refers to it, by whatever name or list, has the new one. Hooks stay."""
    hooks = {name: value for name, value in vars(old).items() if name in HOOKS}
    old.__class__ = new.__class__
    old.__dict__.clear()
    old.__dict__.update(vars(new))
    old.__dict__.update(hooks)


def _share_parameters(source: nn.Module, target: nn.Module, *, bias: bool) -> None:
    """Give one layer the parameters of another of its kind, the bias of its outputs only if that was shared too."""
    last = "1.bias" if isinstance(source, nn.Sequential) else "bias"
    for name, parameter in source.named_parameters():
        if name == last and not bias:
            continue
        path, _, leaf = name.rpartition(".")
        target.get_submodule(path)._parameters[leaf] = parameter


@torch.no_grad()
def _grids(model: nn.Module, convs: dict[str, Any], example: Any) -> dict[str, tuple[int, ...]]:
    """The sizes of the convolutions' inputs, of a forward pass in eval mode."""
    grids: dict[str, tuple[int, ...]] = {}
    handles = [
        conv.register_forward_pre_hook(lambda _, given, name=name: grids.setdefault(name, tuple(given[0].shape[2:])) and None)
        for name, conv in convs.items()
    ]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()(*example) if isinstance(example, tuple | list) else model.eval()(example)
    finally:
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return grids


def _fitted(new: nn.Module, old: Any, grid: tuple[int, ...] | None, caller: str, name: str) -> float:
    """Fit a new layer to the convolution that it replaces, also where that is even or dilated; the relative error of its kernel."""
    layer: Any = new[0] if isinstance(new, nn.Sequential) else new
    if layer.kernel_size is None:
        if grid is None:
            raise InputError(f"{caller} expected an example that reaches {name}, from which its kernel's size comes")
        layer._set_size(KernelSize(layer._size_for(grid), True))
    kernel = old.weight.detach()
    for axis, dilation in enumerate(old.dilation, start=2):
        spread = kernel.new_zeros(*kernel.shape[:axis], dilation * (kernel.shape[axis] - 1) + 1, *kernel.shape[axis + 1 :])
        spread.narrow(axis, 0, spread.shape[axis])[(slice(None),) * axis + (slice(None, None, dilation),)] = kernel
        kernel = spread
        if kernel.shape[axis] % 2 == 0:  # an even one's present tap is before its middle
            kernel = torch.cat([kernel.new_zeros(*kernel.shape[:axis], 1, *kernel.shape[axis + 1 :]), kernel], axis)
    target: Any = new[1] if isinstance(new, nn.Sequential) else new
    with torch.no_grad():
        if old.bias is not None and target.bias is not None:
            target.bias.copy_(old.bias)
    if not isinstance(new, nn.Sequential):
        return fit_kernel(layer, kernel)
    # Of each input channel's kernels the nearest multiples of one, which the depthwise layer has; the 1x1 has the multiples.
    per_group = old.in_channels // old.groups
    by_input = kernel.double().flatten(2).unflatten(0, (old.groups, -1)).transpose(1, 2).flatten(0, 1)  # (in, out / groups, taps)
    u, s, v = torch.linalg.svd(by_input, full_matrices=False)
    root = s[:, :1].sqrt()
    depthwise, point = (root * v[:, 0]).view(-1, 1, *kernel.shape[2:]), (root * u[..., 0]).unflatten(0, (old.groups, per_group))
    fit_kernel(layer, depthwise)
    with torch.no_grad():
        target.weight.copy_(point.transpose(1, 2).flatten(0, 1).view(target.weight.shape))
        grid = layer._own_grid()
        whole = placed(kernel.double(), grid, [(n - 1) // 2 for n in grid])
        single = layer.sample_kernel().double().view(old.groups, per_group, 1, *grid).transpose(1, 2)  # (groups, 1, in / groups, *grid)
        product = target.weight.double().view(old.groups, -1, per_group, *[1] * len(grid)) * single
        norm = torch.linalg.vector_norm(whole)
        return float(torch.linalg.vector_norm(product.flatten(0, 1) - whole) / norm) if norm else 0.0


def _reason(module: Any, first: nn.Module | None, ndims: tuple[int, ...]) -> str:
    """Why a convolution stays; "" where it does not."""
    if isinstance(module, TRANSPOSED):
        return "transposed"
    if module is first:
        return "the first convolution"
    if len(module.kernel_size) not in ndims:
        return f"{len(module.kernel_size)} axes"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc,no-untyped-call]
        return "lazy; give it an input first"
    if max(module.stride) > 1:
        return "stride"
    if max(module.kernel_size) == 1:
        return "1x1"
    if torch.nn.utils.parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is parametrised"
    if prune.is_pruned(module):
        return "it is pruned"
    if module._state_dict_hooks or module._state_dict_pre_hooks or module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return "it has hooks on its state_dict"
    if type(module) not in PLAIN:
        return f"a class of its own, {type(module).__name__}"
    sizes = zip(module.kernel_size, module.dilation, range(len(module.kernel_size)), strict=True)
    if module.padding != "same" and any(2 * module.padding[i] != dilation * (size - 1) for size, dilation, i in sizes):
        return "its output is not as large as its input"
    return ""


def _check_options(caller: str, layer: type, options: dict[str, Any]) -> None:
    known = inspect.signature(layer).parameters.keys() - {"in_channels", "out_channels", "groups"}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {caller}", name, sorted(known))


def _like(new: nn.Module, old: nn.Module) -> nn.Module:
    parameter = next(old.parameters())
    return new.to(device=parameter.device, dtype=parameter.dtype).train(old.training)


def _initialised(module: nn.Module, init: str) -> nn.Module:
    if init == "kaiming":  # "fit" comes later
        for name, parameter in module.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter.data, mode="fan_out", nonlinearity="relu")
    return module


def _describe(module: Any) -> str:
    if isinstance(module, nn.Sequential):
        return " + ".join(_describe(part) for part in module)
    name = type(module).__name__
    if isinstance(module, PLAIN + TRANSPOSED):
        name = "transposed " if isinstance(module, TRANSPOSED) else ""
        name += "x".join(map(str, module.kernel_size))
    parts = [f"{name}, {module.in_channels} -> {module.out_channels}"]
    if module.groups == module.in_channels == module.out_channels:
        parts.append("depthwise")
    elif module.groups > 1:
        parts.append(f"groups {module.groups}")
    for argument in ("stride", "dilation"):
        value = getattr(module, argument, (1,))
        if max(value) > 1:
            parts.append(f"{argument} {'x'.join(map(str, value)) if len(set(value)) > 1 else value[0]}")
    if getattr(module, "padding_mode", "zeros") != "zeros":  # which the new layer does not have
        parts.append(f"{module.padding_mode} padding")
    return ", ".join(parts)


def _chooser(only: Only) -> Callable[[str], bool]:
    if only is None:
        return lambda name: True
    if isinstance(only, dict) and only.keys() == {NAMES}:
        return set(only[NAMES]).__contains__
    if not isinstance(only, str) and not callable(only):
        raise InputError(f"only expected a regular expression or a function of names, got {only!r}")
    if isinstance(only, str):
        try:
            pattern = re.compile(only)
        except re.error as error:
            raise InputError(f"only expected a regular expression, got {only!r}: {error}") from error
        return lambda name: pattern.search(name) is not None
    return only


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not isinstance(parameter, nn.UninitializedParameter))


CONVERSIONS: dict[str, Callable[..., tuple[nn.Module, Report]]] = {
    "to_niff": to_niff,
    "to_separable": to_separable,
    "to_flexconv": to_flexconv,
    "to_cfconv": to_cfconv,
}
"""What `flexseq.load` does again to a network that was converted."""
