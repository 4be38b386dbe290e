"""CF-Conv: kernels in the frequency domain, learned from a sparse sample of their values."""

import math
import numbers
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flexseq.arguments import records_arguments
from flexseq.errors import InputError, unknown_name
from flexseq.functional.circular_conv import as_correlation, checked_grid, circular_conv, half_grid, mirrored, of_real, resize_spectrum
from flexseq.functional.dtypes import at_least_float32
from flexseq.functional.state_conv import Sampled, state_conv
from flexseq.kernels.stacked import Rows, StackedMLP
from flexseq.nn.layer import ConvLayer
from flexseq.nn.sizes import KernelSize, decode, encode
from flexseq.nn.unmade import Unmade
from flexseq.positions import unit_coordinates

PARAMETERISATIONS = ("hwio", "hwi", "hwo", "hw")
WIDTHS = {"hwio": (32, 32, 32, 16, 16, 16, 8, 8, 8, 1), "hwi": (16, 16, 8, 1), "hwo": (16, 16, 8, 1), "hw": (2, 1)}
"""Of each network; "hwio" and "hw" are the papers', which do not say the others'."""
UPDATES = ("replace", "average")
GRADIENTS = ("sparse", "naive", "rematerialised", "chunked")
RATE = 0.1
"""What a new value counts in an average by default: the first paper's."""
CHUNK = 2**18
"""Positions that `refresh` and "chunked" evaluate at a time."""


class CFConv(ConvLayer):
    """Circular convolution with a kernel over (frequency, in, out) that is a state, updated at random positions by small networks.

    Every training step draws positions uniformly, evaluates two networks there, for the real and the imaginary part, and writes the values
    into the state; the gradient flows through those values alone. Inference uses the state as it is.

    Args:
        in_channels, out_channels: multiples of `groups`.
        kernel_size: samples along each axis of the inputs; where None, taken from the first training batch and kept, in the state_dict too.
        groups: as in torch.nn.
        bias: whether a learned constant is added to each output channel.
        parameterisation: what the networks are functions of: "hwio", one pair for all; "hwi", one for each output channel; "hwo", for each
            input channel; "hw", for each pair of channels. All coordinates are in [0, 1].
        widths: of the networks, the last one 1; by default the papers' (see `WIDTHS`).
        positions: how many are drawn in a step, an integer of at most `total_positions`; or their share, a float above 0 and at most 1
            (so 1 is a single one, and 1.0 all).
        update: "replace" puts the values into the state; "average" moves it towards them.
        rate: of that average, what the new value counts; 0.1 where None. "replace" takes none.
        gradient: "sparse"; or, to compare, of the whole kernel, evaluated in every step: "naive", "rematerialised" (hidden values are
            computed again in the backward pass) or "chunked" (that in chunks, one after the other).
        half: keep the half spectrum, which is all that a real output needs; the papers keep the whole one.
        at_most: where there are fewer positions than `positions`, take all of them, with a warning, in place of an error; for networks.
        refresh_every: make the whole state anew from the networks every so many training steps, replacing it whatever `update` is, so that
            it does not hold on to values of networks long gone; that step evaluates all positions. None for never.
        seed: of the positions and the state's first values, in [0, 2**53); by default drawn from torch's random numbers.

    Raises:
        InputError: arguments out of range.

    Source:
        Harper et al. 2024, "Scaling Continuous Kernels with Sparse Fourier Domain Learning", both versions: the first averages with a rate
        of 0.1, the second replaces. The state starts uniform in [-1, 1]. Coordinates follow torch.fft's order: along all but a half state's
        last axis, 0 is frequency 0, the middle the highest, and 1 frequency -1.

    Warning:
        A training step changes the state in place: call `backward` before the next forward pass, or autograd raises an error. Running
        the layer a second time in the backward pass (torch.utils.checkpoint) would draw other positions, and is refused. In eval mode the
        networks get no gradient. Under DistributedDataParallel all processes draw the same and change their states alike: with
        broadcast_buffers=False it does not send them at every step.

    Example:
        >>> layer = CFConv2d(3, 8, positions=512)
        >>> layer(torch.randn(2, 3, 16, 16)).shape, layer.total_positions, layer.sample_kernel().shape
        (torch.Size([2, 8, 16, 16]), 3456, torch.Size([8, 3, 16, 16]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] | None = None,
        *,
        groups: int = 1,
        bias: bool = True,
        parameterisation: str = "hwio",
        widths: Sequence[int] | None = None,
        positions: int | float = 0.1,
        update: str = "replace",
        rate: float | None = None,
        gradient: str = "sparse",
        half: bool = True,
        at_most: bool = False,
        refresh_every: int | None = None,
        seed: int | None = None,
    ):
        super().__init__(in_channels, out_channels, groups)
        name = type(self).__name__
        for argument, value, known in (
            ("parameterisation", parameterisation, PARAMETERISATIONS),
            ("update", update, UPDATES),
            ("gradient", gradient, GRADIENTS),
        ):
            if value not in known:
                raise unknown_name(argument, value, known)
        if rate is not None and update == "replace":
            raise InputError(f"{name} expected rate=None with update='replace', which averages nothing, got {rate}")
        rate = RATE if rate is None else rate
        of_kinds: list[tuple[str, Any, type]] = [("positions", positions, numbers.Real), ("rate", rate, numbers.Real)]
        of_kinds += [(argument, n, numbers.Integral) for argument, n in (("seed", seed), ("refresh_every", refresh_every)) if n is not None]
        for argument, number, kind in of_kinds:
            if not isinstance(number, kind) or isinstance(number, bool):
                what = "an integer" if kind is numbers.Integral else "a number"
                raise InputError(f"{name} expected {argument} to be {what}, got {number!r}")
        if isinstance(positions, numbers.Integral):
            positions = int(positions)
        if not positions > 0 or (not isinstance(positions, int) and positions > 1):
            raise InputError(f"{name} expected positions of at least 1, or a share above 0 and at most 1, got {positions}")
        if not 0 < rate <= 1:
            raise InputError(f"{name} expected rate above 0 and at most 1, got {rate}")
        if refresh_every is not None and refresh_every < 1:
            raise InputError(f"{name} expected refresh_every of at least 1, got {refresh_every}")
        self.parameterisation, self.positions, self.update, self.gradient = parameterisation, positions, update, gradient
        self.rate = rate if update == "average" else 1.0
        self.keeps_half, self.at_most, self.refresh_every = half, at_most, refresh_every
        widths = WIDTHS[parameterisation] if widths is None else tuple(widths) if isinstance(widths, Sequence) else (widths,)
        if widths[-1:] != (1,):
            raise InputError(f"{name} expected widths that end with 1, the kernel's value, got {widths}")
        inputs = in_channels // groups
        count, coordinates = {
            "hwio": (1, self.ndim + 2),
            "hwi": (out_channels, self.ndim + 1),
            "hwo": (inputs, self.ndim + 1),
            "hw": (inputs * out_channels, self.ndim),
        }[parameterisation]
        self.real, self.imaginary = (StackedMLP(count, coordinates, widths) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # Flat, which no memory format of images concerns, and what sampling wants.
        self.state_values: Tensor
        self.register_buffer("state_values", Unmade.make(self.real.weights[0]))
        self._seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else int(seed)
        if not 0 <= self._seed < 2**53:
            raise InputError(f"{name} expected a seed in [0, 2**53), got {seed}")
        self._shared = False
        self._steps = 0
        size = self._checked_kernel_size(kernel_size)
        if size is not None:
            self._check_positions(size)
            self._set_size(KernelSize(size, True))
            self._start()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; in training with gradients, after the state was updated at this step's positions.

        Args:
            x: (batch, in_channels, *grid), of the state's grid times the resolution's ratio.

        Returns:
            (batch, out_channels, *grid).

        Raises:
            InputError: another number of axes or channels; another size; training at another resolution than 1.
        """
        self._check_input(x, self.real.weights[0].dtype)
        if 0 in x.shape[2:]:
            raise InputError(f"{type(self).__name__} expected at least one sample, got shape {tuple(x.shape)}")
        if not torch.compiler.is_compiling():
            self._read_code()
        if self.needs_size():
            self._size_from(x.shape[2:])
        if self.training:
            self._share()
        own = self._own_grid()
        if not self._fits(x.shape[2:], own):
            sizes = ["x".join(map(str, one)) for one in (own, x.shape[2:])]
            at = "" if self.ratio == 1 else f" at a resolution of {self.ratio:g}"
            raise InputError(f"{type(self).__name__} has a kernel for inputs of {sizes[0]} samples{at}, got {sizes[1]}")
        y = self._train_step(x) if self.training and torch.is_grad_enabled() else self._infer(x)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(-1, *[1] * self.ndim)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            return y.to(torch.get_autocast_dtype(x.device.type))
        return y.to(x.dtype)

    def _infer(self, x: Tensor) -> Tensor:
        if self.ratio != 1:
            return circular_conv(x, self.sample_spectrum(tuple(x.shape[2:])), groups=self.groups).to(at_least_float32(x.dtype))
        return state_conv(x, self._shaped_state, groups=self.groups, half=self.keeps_half)

    @torch.compiler.disable
    def _train_step(self, x: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() != -1:
            raise InputError(
                f"{type(self).__name__} expected its training step outside of a backward pass, got it within one: torch.utils.checkpoint, "
                "which runs it a second time, would draw other positions and give wrong gradients"
            )
        if self.ratio != 1:
            raise InputError(f"{type(self).__name__} trains at the resolution of its state alone; it is set to a ratio of {self.ratio:g}")
        if self.refresh_every is not None and self._steps and self._steps % self.refresh_every == 0:
            self.refresh()
        with torch.autocast(x.device.type, enabled=False):
            if self.gradient == "sparse":
                drawn = self._drawn()  # on the CPU, where the device is not waited for
                rows = self._rows(drawn)
                positions = drawn.to(x.device)
                self._steps += 1
                values = self._evaluate(positions, None if rows is None else rows.to(x.device))
                with torch.no_grad():
                    flat = self.state_values
                    new = values.to(flat.dtype)
                    flat[positions] = new if self.rate == 1 else torch.lerp(flat[positions], new, self.rate)
                return state_conv(x, self._shaped_state, Sampled(values, positions, self.rate), groups=self.groups, half=self.keeps_half)
            self._steps += 1
            whole = self._whole()
            if self.rate != 1:
                whole = torch.lerp(self._shaped_state.to(whole.dtype), whole, self.rate)
            with torch.no_grad():
                self._shaped_state.copy_(whole)
            return circular_conv(x, self._as_half(whole), groups=self.groups)

    @torch.no_grad()
    def refresh(self, chunk: int = CHUNK) -> None:
        """Make the whole state anew from the networks, so many positions at a time.

        Raises:
            InputError: the kernel's size is not known yet; a chunk below 1.
        """
        if not isinstance(chunk, numbers.Integral) or chunk < 1:
            raise InputError(f"chunk expected an integer of at least 1, got {chunk!r}")
        self.known_size()
        flat = self.state_values
        for start in range(0, len(flat), chunk):
            positions = torch.arange(start, min(start + chunk, len(flat)), device=flat.device)
            flat[positions] = self._evaluate(positions).to(flat.dtype)

    def draw(self) -> Tensor:
        """This step's positions in the flattened state, each at most once, in order; the same for the same seed and step."""
        return self._drawn().to(self.real.weights[0].device)

    def _drawn(self) -> Tensor:
        total, count = self.total_positions, self.drawn_positions
        if count == total:
            return torch.arange(total, device="cpu")
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + self._steps) % 2**63)
        if count > total // 3:
            return torch.randperm(total, generator=generator, device="cpu")[:count].sort().values
        found, tries = torch.empty(0, dtype=torch.int64, device="cpu"), count + count // 4 + 16
        while len(found) < count:  # the cost is to depend on the count alone
            found, tries = torch.randint(total, (tries,), generator=generator, device="cpu").unique(), tries + tries // 2
        return found[torch.randperm(len(found), generator=generator, device="cpu")[:count].sort().values]

    @torch.no_grad()
    def _share(self) -> None:
        """Once, before the first training step: processes that train together have the first one's state, and draw as it does."""
        if not self._shared and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            shared = [self._seed, self._steps]
            dist.broadcast_object_list(shared)
            self._seed, self._steps = shared
            dist.broadcast(self.state_values, 0)
            self._shared = True

    @property
    def total_positions(self) -> int:
        """Values of the state, a complex number each.

        Raises:
            InputError: the kernel's size is not known yet.
        """
        return math.prod(self._state_shape(self.known_size())[:-1])

    @property
    def drawn_positions(self) -> int:
        """How many are drawn in a step."""
        return self._drawn_of(self.total_positions)

    def _drawn_of(self, total: int) -> int:
        if isinstance(self.positions, int):
            return min(self.positions, total) if self.at_most else self.positions
        return max(1, round(self.positions * total))

    def _state_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        grid = half_grid(size) if self.keeps_half else size
        return *grid, self.in_channels // self.groups, self.out_channels, 2

    def sample_spectrum(self, grid: Sequence[int] | None = None) -> Tensor:
        """The state as a real kernel has it: (out_channels, in_channels / groups, *half), as torch.fft.rfftn orders it.

        Args:
            grid: of the signals that it is for: what the state's own cannot hold is 0. By default its size times the resolution's ratio.
        """
        size = self.known_size()
        state = self._shaped_state
        spectrum = self._as_half(state.to(at_least_float32(state.dtype)))
        grid = self._own_grid() if grid is None else checked_grid(grid, self.ndim)
        return spectrum if grid == size else resize_spectrum(spectrum, size, grid)

    def sample_kernel(self, grid: Sequence[int] | None = None) -> Tensor:
        """The kernel in space, as a cross-correlation applies it: (out_channels, in_channels / groups, *grid).

        Tap (n - 1) // 2 along each axis is the present one; taps beyond the image's edge are those at the other edge.
        """
        grid = self._own_grid() if grid is None else checked_grid(grid, self.ndim)
        return as_correlation(self.sample_spectrum(grid), grid)

    def _as_half(self, state: Tensor) -> Tensor:
        """(*grid, in / groups, out, 2) -> (out, in / groups, *half), complex, with the part that belongs to a real kernel."""
        spectrum = torch.view_as_complex(state.contiguous()).movedim((-1, -2), (0, 1))
        if self.keeps_half:
            return of_real(spectrum, self.known_size())
        return ((spectrum + mirrored(spectrum, self.ndim).conj()) / 2)[..., : self.known_size()[-1] // 2 + 1]

    def _whole(self) -> Tensor:
        """All values, by the gradient: (*grid, in / groups, out, 2)."""
        device = self.state_values.device
        total = self.total_positions
        if self.gradient == "chunked":
            parts = [torch.arange(start, min(start + CHUNK, total), device=device) for start in range(0, total, CHUNK)]
            return torch.cat([self._again(part) for part in parts]).view(self._state_shape(self.known_size()))
        everything = torch.arange(total, device=device)
        values = self._evaluate(everything) if self.gradient == "naive" else self._again(everything)
        return values.view(self._state_shape(self.known_size()))

    def _again(self, positions: Tensor) -> Tensor:
        result: Any = checkpoint(self._evaluate, positions, use_reentrant=False, preserve_rng_state=False)
        return result

    def _rows(self, positions: Tensor) -> Rows | None:
        """Which network each position belongs to; None where one is for all."""
        if self.parameterisation == "hwio":
            return None
        o = positions % self.out_channels
        i = positions // self.out_channels % (self.in_channels // self.groups)
        which = {"hwi": o, "hwo": i, "hw": i * self.out_channels + o}[self.parameterisation]
        return Rows.of(which, self.real.count)

    def _evaluate(self, positions: Tensor, rows: Rows | None = None) -> Tensor:
        """Real and imaginary part at positions in the flattened state, whose `_rows` may be known already: (n, 2)."""
        rows = self._rows(positions) if rows is None else rows
        sizes = self._state_shape(self.known_size())[:-1]
        dtype = at_least_float32(self.real.weights[0].dtype)
        with torch.autocast(positions.device.type, enabled=False):
            coordinates = unit_coordinates(positions, sizes, dtype=dtype)
            axes = list(range(self.ndim))
            axes += [self.ndim] if self.parameterisation in ("hwio", "hwi") else []
            axes += [self.ndim + 1] if self.parameterisation in ("hwio", "hwo") else []
            return torch.cat([network(coordinates[:, axes], rows) for network in (self.real, self.imaginary)], 1)

    def _size_for(self, grid: Sequence[int]) -> tuple[int, ...]:
        size = super()._size_for(grid)
        self._check_positions(size)
        return size

    def _start(self) -> None:
        """Make the state."""
        weight = self.real.weights[0]
        shape = self._state_shape(self.known_size())
        with torch.inference_mode(False):  # a first input may come where nothing is to be trained
            generator = torch.Generator().manual_seed(self._seed)
            state = torch.empty(math.prod(shape[:-1]), 2, device="cpu").uniform_(-1, 1, generator=generator)
            self.state_values = state.to(device=weight.device, dtype=weight.dtype)

    @property
    def state(self) -> Tensor | None:
        """By frequency and channels, a view: (*grid, in_channels / groups, out_channels, 2), real and imaginary; None without a size."""
        return None if self.kernel_size is None else self.state_values.view(self._state_shape(self.kernel_size))

    @property
    def _shaped_state(self) -> Tensor:
        state = self.state
        assert state is not None
        return state

    def _check_positions(self, size: Sequence[int]) -> None:
        total, name = math.prod(self._state_shape(size)[:-1]), type(self).__name__
        if not isinstance(self.positions, int) or self.positions <= total:
            return
        if not self.at_most:
            raise InputError(
                f"{name} expected positions of at most {total:,}, all that a kernel for {'x'.join(map(str, size))} samples has, got "
                f"{self.positions:,}"
            )
        warnings.warn(
            f"{name}({self.in_channels}, {self.out_channels}) takes all of its {total:,} positions in every step, fewer than "
            f"{self.positions:,}",
            stacklevel=2,
        )

    def _own_grid(self) -> tuple[int, ...]:
        return self._at_ratio(self.known_size())

    # Where the drawing of positions stands belongs to the state_dict: as bytes, which are exact in every type of numbers.
    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(struct.pack(">QQ", self._seed, self._steps)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        try:
            self._seed, self._steps = struct.unpack(">QQ", bytes(int(byte) for byte in state.tolist()))
        except (ValueError, struct.error) as error:
            raise InputError(
                f"{type(self).__name__} expected a state of 16 bytes, a seed and a number of steps, got {state.tolist()}"
            ) from error

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        extra, state = f"{prefix}_extra_state", f"{prefix}state_values"
        old = state_dict.get(extra)
        if isinstance(old, Tensor) and old.is_floating_point() and len(old) == self.ndim + 3:  # files from before the code
            *size, seed, steps = old.tolist()
            if not 0 <= seed < 2**53 or not 0 <= steps < 2**53:
                raise InputError(f"{type(self).__name__} expected a seed and a number of steps below 2**53, got {seed} and {steps}")
            state_dict[f"{prefix}kernel_size_code"] = encode(self._size_as_saved_before(size), self.ndim)
            state_dict[extra] = torch.frombuffer(bytearray(struct.pack(">QQ", int(seed), int(steps))), dtype=torch.uint8)
            if f"{prefix}state" in state_dict:
                state_dict[state] = state_dict.pop(f"{prefix}state").flatten(0, -2)
        saved_code = state_dict.get(f"{prefix}kernel_size_code")
        code = None if saved_code is None else decode(saved_code.double().tolist(), self.ndim)
        weight = self.real.weights[0]
        if code is not None and code.size is None:
            self.state_values = Unmade.make(weight)
            state_dict.setdefault(state, self.state_values)
        elif code is not None and code.size is not None:
            shape, saved = (math.prod(self._state_shape(code.size)[:-1]), 2), state_dict.get(state)
            if saved is not None and tuple(saved.shape) != shape:
                raise InputError(
                    f"{type(self).__name__} expected {state} of shape {shape} for {'x'.join(map(str, code.size))} samples, "
                    f"got {tuple(saved.shape)}: other channels, groups or half?"
                )
            if code.size != self.kernel_size or isinstance(self.state_values, Unmade):
                self._check_positions(code.size)
                self.state_values = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}", f"positions={self.positions}"]
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += [f"ratio={self.ratio:g}"] if self.ratio != 1 else []
        return ", ".join([*parts, f"parameterisation={self.parameterisation!r}", f"update={self.update!r}", f"gradient={self.gradient!r}"])


@records_arguments
class CFConv1d(CFConv):
    __doc__ = CFConv.__doc__
    ndim = 1


@records_arguments
class CFConv2d(CFConv):
    __doc__ = CFConv.__doc__
    ndim = 2
