"""How a network is trained, as plain values."""

from dataclasses import dataclass

from flexseq.errors import InputError


@dataclass
class Recipe:
    """The papers' way of training: Adam, a linear warm-up from 0, then a cosine, stepped at every batch.

    Args:
        epochs: at least 1.
        batch_size: samples a step.
        lr: learning rate after the warm-up.
        mask_lr_scale: the masks' share of it.
        kernel_penalty: weight of the sum over layers of ||sampled kernel||_2 + ||bias||_2.
        warmup_epochs: of the linear rise; at most a tenth of all epochs is taken, so that short runs get to train too.
        min_lr: where the cosine ends.
        gradient_clip: largest norm of the gradient; 0 for none.
        precision: "32-true" | "bf16-mixed" | "16-mixed" | "64-true", as Lightning names them.
        seed: of the initial weights, the order of the samples and dropout.
        workers: processes that prepare batches.
    """

    epochs: int
    batch_size: int
    lr: float
    mask_lr_scale: float = 0.1
    kernel_penalty: float = 0.0
    warmup_epochs: float = 5.0
    min_lr: float = 1e-6
    gradient_clip: float = 0.0
    precision: str = "32-true"
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name, smallest in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("workers", 0), ("kernel_penalty", 0), ("gradient_clip", 0)):
            if not getattr(self, name) >= smallest:  # NaN too
                raise InputError(f"{name} expected at least {smallest}, got {getattr(self, name)}")
        if not self.lr > 0:
            raise InputError(f"lr expected above 0, got {self.lr}")
        if self.seed >= 2**63:
            raise InputError(f"seed expected less than 2**63, got {self.seed}")
        known = ("32-true", "bf16-mixed", "16-mixed", "64-true")
        if self.precision not in known:
            raise InputError(f"precision expected one of {', '.join(known)}, got {self.precision!r}")
