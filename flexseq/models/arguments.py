"""What the networks check of their arguments alike."""

from typing import Any

from flexseq.errors import InputError

MASK_SIGMA = 0.075
"""Where masks start by default, in units of position."""
MOST_DEPTH = 1000
"""Blocks; deeper networks are a slip, or a file made to fill the memory."""
USED = {
    "flex": ("kernel", "mask_sigma", "variance_preserving", "method"),
    "ck": ("kernel", "variance_preserving", "method"),
    "njet": ("mask_sigma", "variance_preserving", "method"),
    "conv": (),
}
"""By `conv`, which of the options of continuous kernels its layers have."""
DEFAULTS: dict[str, tuple[Any, ...]] = {
    "kernel": ("magnet",),
    "mask_sigma": (None, MASK_SIGMA),
    "variance_preserving": (False,),
    "method": ("auto",),
}


def check_used(owner: str, conv: str, **options: Any) -> None:
    """Raise InputError where an option that the chosen convolution does not have is given; the defaults, which files hold, say nothing."""
    for name, value in options.items():
        if conv in USED and name not in USED[conv] and value not in DEFAULTS[name]:
            raise InputError(f"{owner} expected no {name} with conv={conv!r}, whose layers have none, got {value!r}")
