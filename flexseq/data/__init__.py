"""Datasets and their downloads, splits, transforms."""

from flexseq.data.dataset import Dataset, Split

__all__ = ["Dataset", "Split"]
