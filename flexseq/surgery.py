"""Put NIFF, FlexConv or CF-Conv layers into any network."""

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexseq.arguments import forget_arguments, is_recorded, record_conversion
from flexseq.errors import InputError, unknown_name
from flexseq.kernels import KERNELS, KernelFactory
from flexseq.nn.cfconv import CFConv1d, CFConv2d
from flexseq.nn.flexconv import FlexConv1d, FlexConv2d, FlexConv3d
from flexseq.nn.niff import SIZES, NIFFConv1d, NIFFConv2d

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
INITIALISATIONS = ("torch", "kaiming")

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
    """

    name: str
    before: str
    after: str
    reason: str
    parameters_before: int
    parameters_after: int


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
        head = ("module", "was", "is", "parameters")
        cells = [
            (row.name, row.before, row.after or f"left: {row.reason}", f"{row.parameters_before:,} -> {row.parameters_after:,}")
            for row in self.rows
        ]
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(4)]
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
) -> tuple[nn.Module, Report]:
    """A copy of a network with NIFF layers for its convolutions, by the paper's rule.

    The first convolution and those with a stride stay, and so do 1x1 ones. A depthwise convolution of any size becomes a depthwise NIFF;
    another one a depthwise NIFF and a 1x1 convolution (of as many groups as it had), or a single NIFF over all channels if `full`. A
    dilated one is converted like any other: the new kernel is as large as the image. Left alone and listed, too: a convolution that
    changes its input's size, one of a class of its own or with a parametrisation, transposed and lazy ones. Hooks on converted modules
    are lost.

    Args:
        model: any module; it is not changed. New layers have the dtype, device and mode of those that they replace, and new weights.
        size: the networks' size, "tiny", "small", "big" or "cifar", or anything that NIFFConv takes as `kernel`. The paper has "big" for
            ResNet and ConvNeXt, "small" for MobileNet and DenseNet, "tiny" with `full`, and "cifar" for CIFAR-10.
        full: one NIFF over all pairs of channels, in place of a depthwise one and a 1x1.
        bias: keep the biases of converted convolutions; published counts of parameters are without.
        linear, padding: the paper's ablations, see `flexseq.NIFFConv2d`.
        init: how NIFF's linear maps and the new 1x1s start, as "torch" draws weights, or "kaiming", He's normal distribution by the number
            of outputs, as in the authors' ResNets, DenseNet and MobileNet.
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
    return _convert(model, replace, "to_niff", given, ndims=(1, 2), keeps_first=not first)


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
    only: Only = None,
    **options: Any,
) -> tuple[nn.Module, Report]:
    """A copy of a network with FlexConv layers for its convolutions, of the same channels and groups.

    Which are converted is as in `to_niff`.

    Args:
        model: any module; it is not changed. New layers have the dtype, device and mode of those that they replace, and new weights.
        kernel_size: taps before cropping; where None, each layer's first input decides.
        kernel: the kernel network; see `flexseq.FlexConv2d`.
        mask_sigma: where the masks start; the default shows about 5 taps of 33.
        bias: keep the biases of converted convolutions (they start at 0).
        only: convert no others than modules with such names: a regular expression or a function.
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
    given = {"kernel": kernel, "mask_sigma": mask_sigma, "variance_preserving": True, **options}

    def replace(conv: Any) -> nn.Module:
        layer: Any = {1: FlexConv1d, 2: FlexConv2d, 3: FlexConv3d}[len(conv.kernel_size)]
        return layer(conv.in_channels, conv.out_channels, kernel_size, groups=conv.groups, bias=bias and conv.bias is not None, **given)

    return _convert(model, replace, "to_flexconv", {"kernel_size": kernel_size, "bias": bias, "only": only, **given}, ndims=(1, 2, 3))


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
) -> tuple[nn.Module, Report]:
    if not isinstance(model, nn.Module):
        raise InputError(f"{caller} expected a torch.nn.Module, got {type(model).__name__}")
    chosen = _chooser(given["only"])
    new = copy.deepcopy(model)
    rows: list[Replacement] = []
    made: dict[int, nn.Module] = {}
    first = next((module for module in new.modules() if isinstance(module, PLAIN)), None) if keeps_first else None
    for name, module in list(new.named_modules()):
        if not isinstance(module, PLAIN + TRANSPOSED):
            continue
        reason = _reason(module, first, ndims) or ("" if chosen(name) else "not chosen")
        if not (reason or depthwise) and module.groups == module.in_channels == module.out_channels:
            reason = "depthwise already"
        before, count = _describe(module), _count(module)
        if reason:
            rows.append(Replacement(name, before, "", reason, count, count))
            continue
        made[id(module)] = replacement = _like(replace(module), module)
        rows.append(Replacement(name, before, _describe(replacement), "", count, _count(replacement)))
    if not made:
        left = "; ".join(f"{row.name or 'the model'}: {row.reason}" for row in rows[:3]) + ("; ..." if rows[3:] else "")
        raise InputError(f"{caller} found nothing to convert in {type(model).__name__} ({left or 'it has no convolutions'})")
    for module in list(new.modules()):
        for child_name, child in list(module._modules.items()):  # also where one module stands in two places
            if child is not None and id(child) in made:
                module._modules[child_name] = made[id(child)]
    if id(new) in made:
        new = made[id(new)]
    elif is_recorded(new):
        record_conversion(new, caller, given)
    layers = {id(layer) for layer in made.values()}
    for name, part in new.named_modules():
        if name and is_recorded(part) and any(id(inner) in layers for inner in part.modules() if inner is not part):
            forget_arguments(part, f"{type(part).__name__} was converted as part of {type(new).__name__}; save its state_dict instead")
    return new, Report(rows, _count(model), _count(new))


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
    if init == "kaiming":
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
