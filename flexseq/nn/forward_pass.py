"""One forward pass of a network: before it, all of its kernels are made, after one read from the device.

`follow` registers a hook on a module that does so whenever a forward pass of it begins. flexseq's networks register it themselves; for
any other module the first layer that runs in it finds the outermost one and does, so that the next forward pass is prepared. A pass with
gradients leaves its kernels with the layers, for penalties, until the next one, or until the network changes between training and
evaluation.
"""

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flexseq.functional.programs import is_recorded_now, unrecorded
from flexseq.nn import kernel_cache
from flexseq.nn.kernel_cache import Snapshot, Watched
from flexseq.nn.kernel_making import Kernel, make_kernels
from flexseq.nn.layer import ConvLayer, is_readable, read_codes
from flexseq.positions import Keep

if TYPE_CHECKING:
    from flexseq.nn.continuous import ContinuousConv
    from flexseq.nn.niff import NIFFConv

CALL = nn.Module._call_impl.__code__
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
"""Modules that do something of their own to the network within, and then run it."""


class Made:
    """A kernel, and what it was made from: parameters as they were then.

    Args:
        layer: whose it is.
        kernel: for kernels of frequency a dict in which the layer keeps one for each grid.
        root: the module at the begin of whose forward pass it was made; None for a layer by itself.
    """

    def __init__(self, layer: ConvLayer, kernel: Any, root: nn.Module | None):
        self.kernel, self.root = kernel, root
        self.with_gradients = torch.is_grad_enabled()
        self.confirm(layer)

    def confirm(self, layer: ConvLayer) -> None:
        """Take the parameters as they are now for those that it was made from: their values are the same."""
        self.size, self.modules = layer.size, layer.kernel_modules()
        self.watched = Watched(self.modules)

    def is_current(self, layer: ConvLayer) -> bool:
        """Whether the layer's parameters are the same tensors still, and nobody wrote into them; and there are gradients where wanted."""
        if torch.is_grad_enabled() and not self.with_gradients:
            return False
        modules = layer.kernel_modules()
        same = all(a is b for a, b in zip(modules, self.modules, strict=True))
        return same and self.size == layer.size and self.watched.is_unchanged()

    def may_be_shared(self, layer: ConvLayer) -> bool:
        """Whether a part of the network that is computed again may use it: gradients may pass through it more than once."""
        return bool(self.kernel.nodes) and self.is_current(layer)

    def is_of_this_step(self, layer: ConvLayer) -> bool:
        """Whether a penalty may use it: no backward pass has ended the step yet."""
        return self.may_be_shared(layer) and not any(node.spent for node in self.kernel.nodes)


class _Pass(threading.local):
    """The forward pass that a thread is in the middle of.

    Args:
        root: the module whose it is; None where there is none.
        made: for each layer that was prepared.
        ran: the layers that took what was made for them.
        fixed: the taps of layers, within `fixed_crops`.
    """

    def __init__(self) -> None:
        self.fixed: dict[ConvLayer, Keep] = {}
        self.clear()

    def clear(self, root: nn.Module | None = None) -> None:
        """Begin another one."""
        self.root = root
        self.made: dict[ConvLayer, Made] = {}
        self.ran: set[ConvLayer] = set()

    def take(self, layer: ConvLayer) -> Made | None:
        """What was made for a layer, if that is still the layer's."""
        if self.root is not None and not _is_running(self.root):  # it was interrupted, and nobody said that it ended
            self.clear()
        made = self.made.get(layer)
        if made is None or not made.is_current(layer):
            return None
        self.ran.add(layer)
        return made


_pass = _Pass()


def follow(module: nn.Module) -> None:
    """Have all kernels in a module made together whenever its forward pass begins, by two hooks; its copies and pickles have them, too."""
    if not any(hook is begin for hook in module._forward_pre_hooks.values()):
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end, always_call=True)


def begin(module: nn.Module, arguments: Any) -> None:
    """The hook before a forward pass."""
    if is_recorded_now() or (_pass.root is not None and _pass.root is not module and _is_running(_pass.root)) or _is_compiled(module):
        return
    layers = layers_in(module)
    read_codes(layers)
    layers = [layer for layer in layers if not layer.is_idle and not layer.needs_size() and layer.is_readable()]
    if _in_backward() and any(_is_of_another(layer, module) for layer in layers):
        return  # a part of a network that is computed again: with the kernels of the whole
    _pass.clear(module)
    _pass.made = _prepared(layers, module)


def end(module: nn.Module, arguments: Any, output: Any) -> None:
    """The hook after it, also where it failed."""
    if _pass.root is module:
        if output is not None:
            for layer in _pass.made:
                layer.is_idle = layer not in _pass.ran
        _pass.clear()


@contextmanager
def fixed_crops(keeps: dict[Any, Keep]) -> Iterator[None]:
    """Within the block the kernels of some layers have these taps, and are zero where their masks are below the threshold.

    Nothing of them is read from the device then: shapes and values follow from tensors, as in a CUDA graph they have to.
    """
    before, _pass.fixed = _pass.fixed, keeps
    try:
        yield
    finally:
        _pass.fixed = before


def layers_in(module: nn.Module) -> list[ConvLayer]:
    """The layers of a module, each once."""
    found: dict[ConvLayer, None] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        one = waiting.pop()
        if isinstance(one, ConvLayer):
            found[one] = None
        elif one is not None:
            waiting += reversed(one._modules.values())
    return list(found)


def plan(layers: Sequence[nn.Module], grid: Sequence[int] | None = None) -> list[Keep | None]:
    """What a network asks before its layers run: the taps that each keeps.

    Layers without a size take theirs from the input. Those for which the hook before the forward pass could not make a kernel yet get one.

    Args:
        layers: any modules; those that are no continuous convolutions get None.
        grid: the size of the input; None where no layer needs one.
    """
    continuous: list[Any] = [layer for layer in layers if is_continuous(layer)]
    if is_recorded_now() or not all(layer in _pass.made or layer.is_readable() for layer in continuous):
        return read_crops(layers, grid)
    for layer in continuous:
        if grid is not None:
            layer.take_size(grid)
    if _pass.root is None:
        return read_crops(layers)
    hooked = len(_pass.root._forward_pre_hooks) > 1  # somebody else's hook may have changed parameters since
    missing = [layer for layer in continuous if layer not in _pass.made or (hooked and not _pass.made[layer].is_current(layer))]
    if missing:
        _pass.made |= _prepared(missing, _pass.root)
    keeps = {layer: _pass.made[layer].kernel.keep for layer in continuous}
    return [keeps.get(layer) for layer in layers]


def hand_over(layers: Sequence[Any], keeps: Sequence[Keep | None]) -> None:
    """While a program is recorded, give each layer the taps that `plan` read for all of them at once, for its next call.

    Apart from `plan`, since torch.compile specializes a graph for numbers unless they come out of the function that it stopped at.
    """
    if is_recorded_now():
        for layer, keep in zip(layers, keeps, strict=True):
            if keep is not None:
                layer.planned_taps = keep


def kernel_of(layer: "ContinuousConv", grid: Sequence[int]) -> Kernel:
    """The kernel for a call of a layer: that of the forward pass that it is part of, or else one of its own.

    Args:
        grid: the size of the input, for a layer that has no kernel size yet.
    """
    made = None if is_recorded_now() else _pass.take(layer)
    if made is not None:
        return made.kernel
    if is_recorded_now() or not layer.is_readable():
        keep, layer.planned_taps = layer.planned_taps, None
        if keep is None:
            (keep,) = read_crops([layer], grid)
        assert keep is not None
        return make_kernels([layer], [keep])[0]
    last = layer.last_made
    if last is not None and last.root is not None and _in_backward() and last.may_be_shared(layer):
        return last.kernel  # a part of the network that is computed again
    if _pass.root is None and not _is_replica(layer):
        outermost = _outermost(layer)
        if outermost is not layer:
            follow(outermost)
    layer.take_size(grid)
    layer.is_idle = False
    return _prepared([layer], None)[layer].kernel


def kernels_for_penalty(layers: Sequence["ContinuousConv"]) -> list[Kernel]:
    """Those of the forward pass before, where nothing changed since; else made anew, all in one read from the device."""
    found: dict[Any, Kernel] = {}
    for layer in layers:
        if torch.is_grad_enabled() and layer.last_made is not None and layer.last_made.is_of_this_step(layer):
            found[layer] = layer.last_made.kernel
    others = [layer for layer in layers if layer not in found]
    for layer in others:
        layer.known_size()
    found |= {layer: made.kernel for layer, made in _prepared(others, None).items()}
    return [found[layer] for layer in layers]


def kept_spectra(layer: "NIFFConv") -> dict[Any, Any] | None:
    """Where a layer with kernels of frequency keeps what it makes for each grid; None where it is to keep nothing."""
    if is_recorded_now() or not layer.is_readable():
        return None
    made = _pass.take(layer)
    if made is not None:
        return made.kernel
    layer.is_idle = False
    if _pass.root is None and not _is_replica(layer) and not torch.is_grad_enabled() and not layer.training:
        outermost = _outermost(layer)
        if outermost is not layer:
            follow(outermost)
    made = _prepared([layer], None).get(layer)
    return None if made is None else made.kernel


def read_crops(layers: Sequence[nn.Module], grid: Sequence[int] | None = None) -> list[Keep | None]:
    """The taps that each layer keeps, all masks read from the device at once.

    Args:
        layers: any modules; those that are no continuous convolutions get None.
        grid: the size of the input, for layers that have no kernel size yet.

    Returns:
        For each layer a (start, stop) for each axis.
    """
    continuous: list[Any] = [layer for layer in layers if is_continuous(layer)]
    if any(layer.mask is not None and not is_readable(layer.mask.sigma) for layer in continuous):  # as while a program is exported
        everything = {layer: layer._all_taps() for layer in continuous}
        return [everything.get(layer) for layer in layers]
    if torch.jit.is_tracing():
        with unrecorded():
            return _read_crops(layers, None if grid is None else [int(n) for n in grid])
    return _read_crops(layers, grid)


@torch.compiler.disable
def _read_crops(layers: Sequence[nn.Module], grid: Sequence[int] | None) -> list[Keep | None]:
    continuous: list[Any] = [layer for layer in layers if is_continuous(layer)]
    if grid is not None:
        for layer in continuous:
            layer.take_size(grid)
    crops: dict[nn.Module, Keep] = {}
    for some in _by_device(continuous):
        crops |= _look(some, None)[0]
    return [crops.get(layer) for layer in layers]


def _prepared(layers: Sequence[ConvLayer], root: nn.Module | None) -> dict[ConvLayer, Made]:
    """For each layer its kernel: the one that is kept, or a new one; all new ones together."""
    made: dict[ConvLayer, Made] = {}
    for some in _by_device(layers):
        made |= _prepared_on_a_device(some, root)
    return made


def _prepared_on_a_device(layers: list[Any], root: nn.Module | None) -> dict[ConvLayer, Made]:
    snapshots: dict[Any, Snapshot] = {}
    if not torch.is_grad_enabled():
        for layer in layers:
            if not layer.training and not _is_replica(layer) and (snapshot := layer.snapshot()) is not None:
                snapshots[layer] = snapshot
    values = kernel_cache.vector(list(snapshots.values())) if snapshots else None
    same = None
    entries: dict[Any, Any] = {layer: layer.cache.entry for layer in snapshots}  # once: other threads may change them
    if values is not None:
        same = kernel_cache.unchanged(list(entries.values()), list(snapshots.values()), values)
    crops, is_same = _look([layer for layer in layers if is_continuous(layer)], same)
    made: dict[ConvLayer, Made] = {}
    if is_same:
        for layer in snapshots:
            made[layer] = entries[layer].made
            if not made[layer].is_current(layer):  # others with the same values
                made[layer].confirm(layer)
    new: list[Any] = [layer for layer in crops if layer not in made]
    if new:
        rounded = any(layer in _pass.fixed for layer in new)
        kernels = make_kernels(new, [crops[layer] for layer in new], rounded=rounded, shared=root is not None)
        for layer, kernel in zip(new, kernels, strict=True):
            made[layer] = Made(layer, kernel._replace(kept={}) if layer in snapshots else kernel, root)
            if kernel.nodes and not _is_replica(layer):
                layer.last_made = made[layer]
    if values is not None and not is_same:
        for (layer, snapshot), part in zip(snapshots.items(), kernel_cache.split(values, list(snapshots.values())), strict=True):
            if layer not in made:
                made[layer] = Made(layer, {}, root)
            layer.cache.keep(snapshot, part, made[layer])
    return made


def _look(layers: Sequence[Any], same: Tensor | None) -> tuple[dict[Any, Keep], bool]:
    """Which taps continuous convolutions keep, and whether a bool on the device is true: all that the host reads of it, at once."""
    asked = [layer for layer in layers if layer.mask is not None and layer not in _pass.fixed]
    masks = list({id(layer.mask): layer.mask for layer in asked}.values())
    parts = [value.detach().reshape(-1) for mask in masks for value in mask.in_a_row()] + ([] if same is None else [same[None]])
    numbers = (torch.cat(parts) if len(parts) > 1 else parts[0]).tolist() if parts else []
    rows: dict[int, list[float]] = {}
    for mask in masks:
        count = sum(value.numel() for value in mask.in_a_row())
        rows[id(mask)], numbers = numbers[:count], numbers[count:]
    crops: dict[Any, Keep] = {}
    for layer in layers:
        size = layer.known_size()
        if layer in _pass.fixed:
            crops[layer] = _pass.fixed[layer]
        elif layer.mask is None:
            crops[layer] = layer._all_taps()
        else:
            crops[layer] = layer.mask.kept_taps(size, rows[id(layer.mask)], causal=layer.causal, ratio=layer.ratio)
            if layer.training and torch.is_grad_enabled():
                layer._check_reach(crops[layer])
    return crops, bool(numbers and numbers[0] == 1)


def _by_device(layers: Iterable[Any]) -> list[list[Any]]:
    devices: dict[torch.device, list[Any]] = {}
    for layer in layers:
        devices.setdefault(layer.device, []).append(layer)
    return list(devices.values())


def is_continuous(module: nn.Module) -> bool:
    """Whether a module is a layer whose kernel is a function of position."""
    return isinstance(module, ConvLayer) and hasattr(module, "kernel_network")


def _is_replica(layer: nn.Module) -> bool:
    """Of nn.DataParallel: made for one call, without parameters of its own."""
    return getattr(layer, "_is_replica", False)


def _is_of_another(layer: Any, root: nn.Module) -> bool:
    made = getattr(layer, "last_made", None)
    return made is not None and made.root is not None and made.root is not root and made.may_be_shared(layer)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _running() -> Iterator[nn.Module]:
    """The modules whose forward passes this thread is in, the innermost first."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CALL:
            yield frame.f_locals["self"]
        frame = frame.f_back


def _outermost(module: nn.Module) -> nn.Module:
    """The outermost module whose forward pass this thread is in, within whatever wraps a network; `module` where there is none."""
    networks = [one for one in _running() if not isinstance(one, WRAPPERS) and not getattr(one, "is_wrapper", False)]
    return networks[-1] if networks else module


def _is_running(module: nn.Module) -> bool:
    """Whether this thread is within a module's forward pass: of one that was interrupted nobody has said that it ended."""
    return any(one is module for one in _running())


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile runs a module whose hook this is: its hooks run as they are, what it computes does not."""
    around = next((one for one in _running() if one is not module), None)
    return type(around).__name__ == "OptimizedModule" and around is not None and around._modules.get("_orig_mod") is module
