"""What did a network learn? Figures of its kernels and masks."""
