"""What did a network learn? Figures of its kernels and masks, and a report of them."""

from flexseq.analysis import filters
from flexseq.analysis.report import write_report

__all__ = ["filters", "write_report"]
