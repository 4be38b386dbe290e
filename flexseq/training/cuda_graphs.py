"""A network's forward and backward passes as CUDA graphs: thousands of short kernels, started at once."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.nn.forward_pass import fixed_crops, follow, is_continuous, layers_in, read_crops
from flexseq.positions import Keep, rounded_up
from flexseq.training.parameters import kernel_penalty

MOST = 16
"""Graphs that are kept; each holds the memory of a whole pass."""


class _Step(nn.Module):
    """What a graph is captured of: the network, and the penalty on its kernels, which shares them."""

    is_wrapper = True  # no module for hooks, which torch does not capture

    def __init__(self, model: nn.Module, keeps: dict[Any, Keep]):
        super().__init__()
        self.model, self.keeps = model, keeps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with fixed_crops(self.keeps):
            return self.model(x), kernel_penalty(self.model)


class GraphedNetwork:
    """Calls a network, in training on a GPU by replaying a CUDA graph.

    The crops of all kernels are read from the device once before, and rounded up to a few sizes; beyond a mask's threshold kernels stay
    exactly zero. For each set of sizes, and each shape of input, a graph of the forward and one of the backward pass is captured when it is
    first met; the last 16 are kept. What cannot be captured runs as it is, with a warning that says why.

    After each call comes its one backward pass, before the next call, and the gradients are set to None before each step: a graph writes
    into the same memory every time. Where gradients are still there, as in accumulating them, the step runs as it is.

    Args:
        model: any module whose forward pass takes one tensor and gives one.

    Example:
        >>> import flexseq as fs
        >>> model = fs.FlexTCN(depth=1, width=4)
        >>> network = GraphedNetwork(model)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     logits, penalty = network(torch.randn(2, 1, 50))
        >>> logits.shape, str(caught[0].message)
        (torch.Size([2, 10]), 'no CUDA graph is used: the input is on the CPU')
    """

    def __init__(self, model: nn.Module):
        follow(model)
        self.model = model
        self.graphs: dict[Any, Any] = {}
        self.said: set[str] = set()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network's outputs, and the penalty on its kernels of `flexseq.training.kernel_penalty`."""
        reason = self._why_not(x)
        if reason is None and not any(layer.needs_size() for layer in layers_in(self.model)):  # else they take theirs from this input
            keeps = crops_to_capture(self.model)
            key = self._key(x, keeps)
            if key not in self.graphs:
                try:
                    self._capture(key, x, keeps)
                except RuntimeError as error:
                    self.graphs[key] = None
                    self._say(f"capturing failed: {str(error).splitlines()[0]}")
            self.graphs[key] = graph = self.graphs.pop(key)  # the last used is the last to go
            if graph is not None:
                return graph(x)
        if reason is not None:
            self._say(reason)
        return self.model(x), kernel_penalty(self.model)

    def _why_not(self, x: Any) -> str | None:
        if not isinstance(x, Tensor):
            return "the input is no single tensor"
        if x.device.type != "cuda":
            return f"the input is on the {x.device.type.upper()}"
        if not self.model.training or not torch.is_grad_enabled():
            return "the network is not in training"
        if any(p.grad is not None for p in self.model.parameters()):
            return "gradients of an earlier step are there; zero_grad(set_to_none=True) before each step"
        return None

    def _key(self, x: Tensor, keeps: dict[Any, Keep]) -> Any:
        """All that a graph depends on beside the numbers in its tensors."""
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        places = tuple((p.data_ptr(), p.requires_grad) for p in (*self.model.parameters(), *self.model.buffers()))
        modes = tuple(module.training for module in self.model.modules())
        sizes = tuple(layer.size for layer in layers_in(self.model))
        return x.shape, x.dtype, x.requires_grad, tuple(map(tuple, keeps.values())), autocast, places, modes, sizes

    def _capture(self, key: Any, x: Tensor, keeps: dict[Any, Keep]) -> None:
        """A graph of the forward and one of the backward pass. Trying them out leaves no trace in statistics and random numbers."""
        while len(self.graphs) >= MOST:
            self.graphs.pop(next(iter(self.graphs)))
        step = _Step(self.model, keeps)
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        state = torch.cuda.get_rng_state(x.device)
        sample = torch.randn_like(x).requires_grad_(x.requires_grad)
        try:
            enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
            with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):  # whose cached casts are not in the graph
                self.graphs[key] = torch.cuda.make_graphed_callables(step, (sample,), allow_unused_input=True)
        finally:
            torch.cuda.set_rng_state(state, x.device)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for layer in layers_in(self.model):
                layer.last_made = None  # it lies in the graph's memory

    def _say(self, reason: str) -> None:
        if reason not in self.said:
            self.said.add(reason)
            warnings.warn(f"no CUDA graph is used: {reason}", stacklevel=3)


def crops_to_capture(model: nn.Module) -> dict[Any, Keep]:
    """The crops of a model's kernels, in one read from the device, rounded up to a few sizes; by layer."""
    layers: list[Any] = [layer for layer in layers_in(model) if is_continuous(layer) and layer.mask is not None]
    crops = {}
    for layer, keep in zip(layers, read_crops(layers), strict=True):
        assert keep is not None
        crops[layer] = rounded_up(keep, [stop for _, stop in layer._all_taps()], causal=layer.causal)
    return crops
