"""A buffer whose shape comes with the first input, and that averages of models can fill before."""

from typing import Any

import torch
from torch import Tensor


class Unmade(Tensor):
    """A buffer without elements that takes the shape of what is first copied into it.

    So a copy of a model that was made before the first input, as `torch.optim.swa_utils.AveragedModel` keeps one, can be given the
    model's state later. (torch's own UninitializedBuffer refuses everything until it is materialized.)
    """

    @staticmethod
    def make(like: Tensor) -> "Unmade":
        """An empty one, of the dtype and device of a tensor."""
        return torch.Tensor._make_subclass(Unmade, torch.empty(0, 2, dtype=like.dtype, device=like.device))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is Tensor.copy_ and isinstance(arguments[0], Unmade) and arguments[1].shape != arguments[0].shape:
            target, source = arguments[0], arguments[1]
            target.data = torch.empty(source.shape, dtype=target.dtype, device=target.device)
            target.__class__ = Tensor  # type: ignore[assignment]
            return target.copy_(source)
        if function is Tensor.detach and isinstance(arguments[0], Unmade):
            return arguments[0]  # itself: what is copied into it is to reach the layer
        return super().__torch_function__(function, types, arguments, options or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unmade":
        return memo.setdefault(id(self), Unmade.make(self))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Unmade.make, (torch.empty(0, dtype=self.dtype, device=self.device),)
