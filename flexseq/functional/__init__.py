"""Stateless maths on tensors."""

from flexseq.functional.gaussian import gaussian_mask
from flexseq.functional.long_conv import long_conv

__all__ = ["gaussian_mask", "long_conv"]
