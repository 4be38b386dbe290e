"""Training: parameter groups, schedule, the Lightning module, checkpoints. Lightning is imported only by the modules that need it."""

from flexseq.training.parameters import kernel_penalty, param_groups

__all__ = ["kernel_penalty", "param_groups"]
