"""What is computed in which floating point type."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: FFTs and positions of taps know no half precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32
