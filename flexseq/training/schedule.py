"""Learning rate over the steps of a run."""

import math


def warmup_cosine(step: int, *, steps: int, warmup_steps: int, floor: float) -> float:
    """The learning rate at `step` as a fraction of its largest value: linear from 0, then half a cosine down to `floor`.

    Args:
        step: from 0 to `steps`.
        steps: of the whole run.
        warmup_steps: of the linear rise.
        floor: the fraction where the cosine ends.

    Example:
        >>> [round(warmup_cosine(s, steps=10, warmup_steps=2, floor=0.0), 3) for s in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
