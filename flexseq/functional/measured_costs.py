"""Constants of `flexseq.functional.costs`, as benchmarks/fit_costs.py measured them; picoseconds."""

from typing import Any

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
        "transform": 138,
        "move": 3140,
        "move_more": 2780,
        "elementwise": 3140,
        "join": 0,
        "contract": 172,
        "mix": 146,
        "operator": 8.5e08,
        "direct": (71, 35, 35),
        "direct_depthwise": (71, 35, 35),
        "direct_move": (0, 2180, 2180),
        "direct_mix": 190,
        "direct_operator": 2.5e08,
    },
}
