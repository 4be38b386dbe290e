"""How a network is trained, as plain values."""

from dataclasses import dataclass

from flexseq.checks import is_integer, is_number
from flexseq.errors import InputError, unknown_name

PENALTIES = ("none", "magnet", "flexconv")
OPTIMIZERS = ("adam", "sgd")


@dataclass
class Recipe:
    """The papers' ways of training: Adam or SGD, a linear warm-up from 0, then a cosine, stepped at every batch.

    Args:
        epochs: at least 1.
        batch_size: samples a step.
        lr: learning rate after the warm-up.
        mask_lr_scale: the masks' share of it.
        kernel_penalty: weight of the sum over layers of ||sampled kernel||_2 + ||bias||_2.
        alias_penalty: what frequencies above Nyquist pay, "none", "magnet" (of kernels without their mask) or "flexconv" (with it);
            see `flexseq.alias_penalty`.
        alias_weight: of that.
        start_below_nyquist: scale the kernels' filters before training; see `flexseq.limit_frequencies`.
        average_statistics: give the final model batch normalisation's statistics averaged over the training split, see
            `flexseq.training.fit.average_statistics`.
        fine_tune_epochs: of tasks that train a second time, at another resolution.
        warmup_epochs: of the linear rise; at most a tenth of all epochs is taken, so that short runs get to train too.
        min_lr: where the cosine ends.
        gradient_clip: largest norm of the gradient; 0 for none.
        optimizer: "adam" | "sgd".
        momentum: of SGD.
        weight_decay: the optimiser's, added to the gradient.
        label_smoothing: share of the target that is spread over all classes in training; classes only.
        precision: "32-true" | "bf16-mixed" | "16-mixed" | "64-true", as Lightning names them.
        seed: of the initial weights, the order of the samples and dropout.
        workers: processes that prepare batches.
        cuda_graphs: on a GPU, capture training's forward and backward passes, and replay them; see `flexseq.training.cuda_graphs`.
    """

    epochs: int
    batch_size: int
    lr: float
    mask_lr_scale: float = 0.1
    kernel_penalty: float = 0.0
    alias_penalty: str = "none"
    alias_weight: float = 0.1
    start_below_nyquist: bool = False
    average_statistics: bool = False
    fine_tune_epochs: int = 0
    warmup_epochs: float = 5.0
    min_lr: float = 1e-6
    gradient_clip: float = 0.0
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    precision: str = "32-true"
    seed: int = 0
    workers: int = 0
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        for name, smallest in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("workers", 0), ("fine_tune_epochs", 0)):
            value = getattr(self, name)
            if not is_integer(value) or value < smallest:
                whole = "" if is_integer(value) else "a whole number of "
                raise InputError(f"{name} expected {whole}at least {smallest}, got {value!r}")
        for name in ("kernel_penalty", "gradient_clip", "alias_weight", "warmup_epochs", "min_lr", "mask_lr_scale"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise InputError(f"{name} expected at least 0, got {value!r}")
        for name in ("momentum", "weight_decay", "label_smoothing"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < 1:
                raise InputError(f"{name} expected in [0, 1), got {value!r}")
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.alias_penalty not in PENALTIES:
            raise unknown_name("penalty", self.alias_penalty, PENALTIES)
        if not is_number(self.lr) or self.lr <= 0:
            raise InputError(f"lr expected above 0, got {self.lr!r}")
        if self.seed >= 2**63:
            raise InputError(f"seed expected less than 2**63, got {self.seed}")
        known = ("32-true", "bf16-mixed", "16-mixed", "64-true")
        if self.precision not in known:
            raise InputError(f"precision expected one of {', '.join(known)}, got {self.precision!r}")
