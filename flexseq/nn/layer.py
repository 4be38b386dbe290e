"""What every layer is, whatever its kernel is a function of: channels, groups, a size that may come with the first input, a resolution."""

import math
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Proxy

from flexseq.checks import LARGEST, check_integers, check_tensor, is_integer
from flexseq.errors import InputError
from flexseq.functional.programs import as_integers, is_exporting, unrecorded
from flexseq.nn.kernel_cache import KernelCache, Snapshot
from flexseq.nn.sizes import DIGITS, KernelSize, decode, encode

MOST_CHANNELS = 2**24
"""More would fill any memory with a single layer's weights."""
SIZING = threading.RLock()
"""Held while a layer takes its size from an input: threads that run one fresh model at once are not to do that twice."""


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor has values that the host can read: not on the meta device, while a program is exported, or inside torch.func."""
    if torch.compiler.is_compiling() and not is_exporting():
        return True  # what stands for a tensor there is a real one when the program runs
    return not (tensor.is_meta or isinstance(tensor, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def agreed_on(numbers: Sequence[int], device: torch.device) -> tuple[int, ...]:
    """Each number's largest value among the processes that are in the same forward pass of DistributedDataParallel; else its own."""
    own = tuple(int(n) for n in numbers)
    wrapper: Any = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
    if wrapper is None or dist.get_world_size(wrapper.process_group) == 1:
        return own
    values = torch.tensor(own, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX, wrapper.process_group)
    return tuple(values.tolist())


class ConvLayer(nn.Module):
    """Base of the layers.

    Args:
        in_channels, out_channels: multiples of `groups`.
        groups: as in torch.nn.

    A size that is not given is taken from the first training batch, under DistributedDataParallel from the largest of all processes. Until
    then it is that of the first input in eval mode. Size and resolution are a buffer, `kernel_size_code`, so that state_dicts, averages of
    models (`torch.optim.swa_utils.AveragedModel`) and broadcasts carry them along.

    Raises:
        InputError: channels that are no multiples of the groups.
    """

    ndim: ClassVar[int]
    kernel_size_code: Tensor

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        name = type(self).__name__
        check_integers(name, groups=groups)
        for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not is_integer(channels) or channels < 1 or channels % groups:
                raise InputError(f"{name} expected {argument} to be a positive multiple of groups={groups}, got {channels!r}")
            check_integers(name, most=MOST_CHANNELS, **{argument: channels})
        self.in_channels, self.out_channels, self.groups = int(in_channels), int(out_channels), int(groups)
        self._size = KernelSize()
        self.register_buffer("kernel_size_code", encode(self._size, self.ndim).to(torch.get_default_device()))
        self._seen_code: tuple[Any, ...] = ()
        self.cache = KernelCache()  # of eval mode
        self.last_made: Any = None  # by the last forward pass with gradients, for penalties
        self.is_idle = False  # in the last forward pass of the network that it is part of

    @property
    def kernel_size(self) -> tuple[int, ...] | None:
        """Samples along each axis that the kernel is for at ratio 1; None until it is known."""
        if not torch.compiler.is_compiling():
            self._read_code()
        return self._size.size

    @kernel_size.setter
    def kernel_size(self, size: tuple[int, ...] | None) -> None:
        self._set_size(self._size._replace(size=size, settled=size is not None))

    @property
    def ratio(self) -> float:
        """How many times as densely as in training inputs are sampled; `flexseq.set_resolution` sets it."""
        if not torch.compiler.is_compiling():
            self._read_code()
        return self._size.ratio

    def _set_size(self, value: KernelSize) -> None:
        """Change size or resolution, in the buffer too, which others may hold: in place."""
        self._size = value
        code = self.kernel_size_code
        new = encode(value, self.ndim).to(device=code.device, dtype=code.dtype)
        with torch.no_grad():
            if code.is_inference() and not torch.is_inference_mode_enabled():
                self.kernel_size_code = new
            else:
                code.copy_(new)
        self._seen_code = self._code_version()

    def _code_version(self) -> tuple[Any, ...]:
        code = self.kernel_size_code
        return id(code), None if code.is_inference() else code._version

    def _read_code(self, *, thoroughly: bool = False) -> None:
        """Take over what somebody wrote into the buffer: a state that was loaded, an average, another process's.

        Args:
            thoroughly: look at the numbers even where no version says that they changed, as where something wrote through `.data`.
        """
        if self._may_read_code() and (thoroughly or self._code_version() != self._seen_code):
            self._take_code(self.kernel_size_code.tolist())

    def _may_read_code(self) -> bool:
        return not torch.jit.is_tracing() and is_readable(self.kernel_size_code) and not getattr(self, "_is_replica", False)

    def _take_code(self, numbers: list[float]) -> None:
        self._seen_code = self._code_version()
        found = decode(numbers, self.ndim)
        if found is not None and found != self._size and (found.size is not None or self._size.size is None):
            self._size = found

    @property
    def size(self) -> KernelSize:
        """`kernel_size` and `ratio`, and whether they are final."""
        return self._size

    def needs_size(self) -> bool:
        """Whether the next input gives the kernel its size."""
        if not torch.compiler.is_compiling():
            self._read_code()
        return self._size.size is None or (self.training and not self._size.settled)

    def take_size(self, grid: Sequence[int]) -> None:
        """Take the kernel's size from that of an input, where it needs one."""
        if self.needs_size():
            self._size_from(grid)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.kernel_size_code.device

    def is_readable(self) -> bool:
        """Whether the host can read what the kernel is made from."""
        return True

    def kernel_modules(self) -> tuple[nn.Module | None, ...]:
        """Of whose parameters the kernel is made; none for layers that keep no kernel."""
        return ()

    def snapshot(self) -> Snapshot | None:
        """Everything that the kernel is a function of; None where nothing is kept of it, or that cannot be compared."""
        return None

    @torch.compiler.disable
    def _size_from(self, grid: Sequence[int]) -> None:
        """Take the size from an input's, once."""
        grid = as_integers(grid)
        with SIZING, unrecorded():
            self._read_code(thoroughly=True)
            if not self.needs_size():
                return
            if 0 in grid:
                raise InputError(f"{type(self).__name__} expected a first input of at least one sample, got a grid of {tuple(grid)}")
            size = self._size_for(agreed_on(grid, self.kernel_size_code.device) if self.training else grid)
            before = self._size
            self._set_size(KernelSize(size, self.training, self._size.ratio))
            if size != before.size:
                try:
                    self._start()
                except BaseException:
                    self._set_size(before)
                    raise

    def _size_for(self, grid: Sequence[int]) -> tuple[int, ...]:
        """The kernel's size for training inputs of a size."""
        return tuple(int(n) for n in grid)

    def _start(self) -> None:
        """What can be done only once the kernel's size is known."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        key, old = f"{prefix}kernel_size_code", f"{prefix}_extra_state"
        if key not in state_dict and isinstance(state_dict.get(old), Tensor):  # files from before the code
            state_dict[key] = encode(self._size_as_saved_before(state_dict.pop(old).tolist()), self.ndim)
        code = state_dict.get(key)
        if isinstance(code, Tensor) and not code.is_meta:
            saved = decode(code.double().tolist(), self.ndim) if code.ndim == 1 else None
            if saved is None:
                raise InputError(f"{type(self).__name__} expected {key} to hold a kernel size for {self.ndim} axes, got {code.tolist()}")
            self._size = saved
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        self._forget_kernels()

    def _size_as_saved_before(self, values: list[float]) -> KernelSize:
        """Sizes (0 where unknown), then the ratio, which the oldest files lack."""
        if len(values) not in (self.ndim, self.ndim + 1):
            raise InputError(f"{type(self).__name__} expected a state of {self.ndim} axes, got {values}")
        *size, ratio = [*values, 1.0][: self.ndim + 1]
        if not all(0 <= n < 16**DIGITS and n == int(n) for n in size) or not 0 < ratio < math.inf:
            raise InputError(f"{type(self).__name__} expected a state of sizes and a ratio above 0, got {values}")
        known = all(size)
        return KernelSize(tuple(int(n) for n in size) if known else None, known, ratio)

    def set_resolution(self, ratio: float) -> None:
        """Take the kernel for inputs that are sampled `ratio` times as densely as in training.

        Raises:
            InputError: a ratio that is not above 0; a kernel whose size is not known yet.
        """
        if not 0 < ratio < math.inf:
            raise InputError(f"{type(self).__name__} expected a resolution ratio above 0, got {ratio}")
        if self.kernel_size is None and ratio != 1:
            raise InputError(f"{type(self).__name__} has no kernel size yet: give kernel_size, or an input at training's resolution first")
        self._set_size(self._size._replace(ratio=float(ratio)))

    def known_size(self) -> tuple[int, ...]:
        """`kernel_size`.

        Raises:
            InputError: it is not known yet.
        """
        if self.kernel_size is None:
            raise InputError(f"{type(self).__name__} has no kernel size yet: give kernel_size, or an input first")
        return self.kernel_size

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        tracer = getattr(next((value for value in arguments if isinstance(value, Proxy)), None), "tracer", None)
        if tracer is None:
            return super().__call__(*arguments, **options)
        # To torch.fx a layer is a whole, as torch's own are: what it does depends on its state.
        return tracer.create_proxy("call_module", tracer.path_of_module(self), arguments, options)

    def _check_input(self, x: Tensor, dtype: torch.dtype) -> None:
        name = type(self).__name__
        check_tensor(name, "its input", x)
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_channels:
            axes = f"{self.ndim} grid {'axis' if self.ndim == 1 else 'axes'}"
            raise InputError(f"{name} expected input of {self.in_channels} channels and {axes}, got shape {tuple(x.shape)}")
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(f"{name} expected input of {dtype}, as its parameters, got {x.dtype}")

    def _checked_kernel_size(self, kernel_size: int | Sequence[int] | None) -> tuple[int, ...] | None:
        if kernel_size is None:
            return None
        given = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,) * self.ndim
        size = tuple(int(n) for n in given if is_integer(n))
        if len(size) != self.ndim or len(given) != self.ndim or not 1 <= min(size) <= max(size) <= LARGEST:
            raise InputError(f"{type(self).__name__} expected kernel_size to be 1 or more, for {self.ndim} axes, got {kernel_size!r}")
        return size

    def _at_ratio(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Samples along each axis of the same extent at the layer's resolution."""
        return tuple(max(1, round(size * self.ratio)) for size in grid)

    def _fits(self, grid: Sequence[int], own: Sequence[int]) -> bool:
        """Whether inputs are of the size that the kernel is for; at another ratio than 1 nearly, since strides round."""
        near = 0 if self.ratio == 1 else math.ceil(self.ratio)
        return all(abs(a - b) <= near for a, b in zip(grid, own, strict=True))

    def train(self, mode: bool = True) -> "ConvLayer":
        if mode:
            self.cache.forget()
        self.last_made = None
        return super().train(mode)

    def _apply(self, *arguments: Any, **options: Any) -> "ConvLayer":
        self._forget_kernels()  # parameters move or change their type
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": KernelCache(), "last_made": None}  # copies and files do without

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(
            {"cache": KernelCache(), "last_made": None, "is_idle": False, **state}
        )  # which layers pickled before did not have

    def _forget_kernels(self) -> None:
        self.cache.forget()
        self.last_made = None


def read_codes(layers: Sequence[ConvLayer]) -> None:
    """Take over what somebody wrote into the layers' buffers, as DistributedDataParallel does at every step, in one read."""
    changed: dict[torch.device, list[ConvLayer]] = {}
    for layer in layers:
        if layer._may_read_code() and layer._code_version() != layer._seen_code:
            changed.setdefault(layer.kernel_size_code.device, []).append(layer)
    for some in changed.values():
        numbers = torch.cat([layer.kernel_size_code for layer in some]).tolist()
        for layer in some:
            count = len(layer.kernel_size_code)
            layer._take_code(numbers[:count])
            numbers = numbers[count:]
