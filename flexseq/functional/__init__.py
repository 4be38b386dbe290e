"""Stateless maths on tensors."""

from flexseq.functional.gaussian import gaussian_mask
from flexseq.functional.long_conv import basis_long_conv, long_conv

__all__ = ["basis_long_conv", "gaussian_mask", "long_conv"]
