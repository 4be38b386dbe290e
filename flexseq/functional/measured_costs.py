"""Constants of `flexseq.functional.costs` in picoseconds, from benchmarks/fit_costs.py; SOURCES says which are measured."""

from typing import Any

SOURCES = {
    "cpu": "python benchmarks/fit_costs.py --shapes 200, torch 2.13.0, 2 cores of an Intel Xeon with AVX-512",
    "cuda": "not measured yet: from an H100's data sheet, and 10 microseconds for each of 40 kernels through transforms, 13 directly",
}
"""How each was found."""

MEASURED: dict[str, Any] = {
    "cpu": {
        "transform": 146.7,
        "move": 7344,
        "move_more": 6007,
        "elementwise": 4330,
        "join": 48.28,
        "contract": 75.45,
        "mix": 163,
        "operator": 1.37e09,
        "direct": (72.52, 48.79, 48.79),
        "direct_depthwise": (771.7, 1032, 1032),
        "direct_move": (852.3, 728.9, 728.9),
        "direct_mix": 35.43,
        "direct_operator": 9.941e08,
    },
    "cuda": {
        "transform": 0.3,
        "move": 12,
        "move_more": 6,
        "elementwise": 8,
        "join": 5,
        "contract": 0.6,
        "mix": 0.3,
        "operator": 4e08,
        "direct": (0.2, 0.2, 0.2),
        "direct_depthwise": (2, 2, 2),
        "direct_move": (5, 5, 5),
        "direct_mix": 0.3,
        "direct_operator": 1.3e08,
    },
}
