"""One training step of CF-Conv's network by each gradient: time and peak memory over size and positions drawn, and where the time goes.

Writes benchmarks/results/cf.md and .json. A case that would take more memory than the machine has is left out, by an estimate, and those
that evaluate all positions at once are not run at the largest size. With --gradients only some are measured, and take the place of earlier
figures: python benchmarks/cf.py --gradients naive --sizes 64
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import MemoryMeter, measure_machine, timed

import flexseq as fs
from flexseq.functional.state_conv import _spectrum, gathered_gradient

RESULTS = Path(__file__).parent / "results"
SIZES, POSITIONS, BATCH = (32, 64, 150), (2**12, 2**15, 2**18), 16
HIDDEN = 2 * sum((32, 32, 32, 16, 16, 16, 8, 8, 8, 1))
"""Numbers that autograd keeps for a position: outputs of both networks' linear maps."""
WITHIN = 0.85
"""Share of the machine's memory that a case may take by its estimate."""


@dataclass(frozen=True)
class Case:
    """A training step with Adam on a batch of 16 images.

    Args:
        gradient: of CFConv, or "conv3" for the plain network.
        size: pixels along an edge.
        positions: drawn by each layer; 0 where all are evaluated.
    """

    gradient: str
    size: int
    positions: int = 0

    @property
    def name(self) -> str:
        return self.gradient + (f", n = 2^{self.positions.bit_length() - 1}" if self.positions else "")

    def contestant(self) -> Callable[[], object]:
        torch.manual_seed(0)
        options = {"conv": "conv"} if self.gradient == "conv3" else {"gradient": self.gradient, "positions": self.positions or 1.0}
        model = fs.CFNet(3, 2, image_size=self.size, **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
        x, y = torch.randn(BATCH, 3, self.size, self.size), torch.arange(BATCH) % 2

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

        return step

    def estimate(self) -> float:
        """Bytes that its largest layers need at least."""
        total = self.size * (self.size // 2 + 1) * 32 * 32
        state = 5 * total * 8
        signals = 6 * BATCH * 32 * self.size**2 * 4 * 3
        hidden = {"naive": 5.1, "rematerialised": 1.0}.get(self.gradient, 0) * total * HIDDEN * 4
        whole = {"naive": 5, "rematerialised": 5, "chunked": 5}.get(self.gradient, 0) * total * 8 * 3
        return state + signals + hidden + whole


CASES = [
    Case(gradient, size, positions)
    for size in SIZES
    for gradient, positions in [("conv3", 0), ("naive", 0), ("rematerialised", 0), ("chunked", 0), *[("sparse", n) for n in POSITIONS]]
]


def parts(size: int, positions: int) -> dict[str, float]:
    """Milliseconds of one layer's drawing, networks and update; of gathering their gradient; and of its convolution."""
    layer = fs.CFConv2d(32, 32, size, positions=positions)
    state, x = layer.state, torch.randn(BATCH, 32, size, size)
    assert state is not None
    transformed, everywhere = _spectrum(x), layer.draw()

    def networks() -> None:
        drawn = layer.draw()
        values = layer._evaluate(drawn)
        with torch.no_grad():
            state.view(-1, 2)[drawn] = values
        values.sum().backward()

    def gather() -> None:
        gathered_gradient(transformed, transformed, everywhere, (size, size), (32, 32), 1, True)

    def convolution() -> None:
        input = x.clone().requires_grad_()
        layer._infer(input).sum().backward()

    runs = {"update": networks, "gather": gather, "convolution": convolution}
    for run in runs.values():
        run()
    return {name: 1e3 * statistics.median(timed(run, "cpu") for _ in range(5)) for name, run in runs.items()}


def seconds(case: Case) -> float:
    """Of one step, the median of several."""
    step = case.contestant()
    first = timed(step, "cpu")
    return first if first > 20 else statistics.median(timed(step, "cpu") for _ in range(3 if first > 1 else 7))


def memory() -> float:
    """Bytes of this machine that are free now."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * int(next(line for line in text.splitlines() if line.startswith("MemAvailable")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--gradients", nargs="+", choices=list(dict.fromkeys(case.gradient for case in CASES)), help="measure these alone")
    parser.add_argument("--dense-up-to", type=int, default=64, help="pixels up to which naive and rematerialised run")
    given = parser.parse_args()
    sizes = given.sizes
    about = {
        "command": "python " + " ".join(sys.argv),
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout.strip(),
        "torch": torch.__version__,
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "slowdown of the calibration convolution": round(measure_machine("cpu").slowdown, 2),
    }
    meter = MemoryMeter("cpu")
    rows, updates = [], {}
    if given.gradients:
        before = json.loads((RESULTS / "cf.json").read_text())
        chosen = [case for case in CASES if case.size in sizes and case.gradient in given.gradients]
        names = {(case.name, case.size) for case in chosen}
        rows = [row for row in before["rows"] if (row["case"], row["size"]) not in names]
        updates = {(part["size"], part["positions"]): part for part in before["layers"]}
        about = {key: before[key] for key in about} | {"some rows anew": f"{about['command']}, {about['commit']}"}
        sizes = list(SIZES)
    else:
        chosen = [case for case in CASES if case.size in sizes]
    for case in chosen:
        row = {"case": case.name, "size": case.size, "estimate_mb": case.estimate() / 2**20}
        if case.size > given.dense_up_to and case.gradient in ("naive", "rematerialised"):
            row["failed"] = "not run"
        elif case.estimate() < WITHIN * memory():
            try:
                row["mb"] = meter.peak(case.contestant)
                row["seconds"] = seconds(case)
            except (BrokenProcessPool, MemoryError, RuntimeError) as error:  # killed for want of memory, mostly
                row["failed"] = type(error).__name__
        rows.append(row)
        write(rows, updates, about, sizes)
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    if not given.gradients:
        updates = {(size, n): parts(size, n) for size in sizes for n in POSITIONS if n <= size * (size // 2 + 1) * 32 * 32}
    print(write(rows, updates, about, sizes))


def write(rows: list[dict], updates: dict[tuple[int, int], dict[str, float]], about: dict, sizes: list[int]) -> str:
    """The tables, and the figures behind them."""
    names = [name for name in dict.fromkeys(case.name for case in CASES) if any(row["case"] == name for row in rows)]
    lines = [
        f"| one step, batch {BATCH} | " + " | ".join(f"{size} px: s | MB" for size in sizes) + " |",
        "|" + "---|" * (1 + 2 * len(sizes)),
    ]
    for name in names:
        cells = []
        for size in sizes:
            row = next((row for row in rows if row["case"] == name and row["size"] == size), None)
            if row is None:
                cells += ["", ""]
            elif "seconds" in row:
                cells += [f"{row['seconds']:.3g}", f"{row['mb']:.0f}"]
            else:
                cells += ["", row.get("failed", f"over {row['estimate_mb']:,.0f}")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    heads = "drawing, networks, update and back: ms | gathering the gradient: ms | convolution, forward and back: ms"
    detail = [f"| one layer, 32 channels | {heads} |", "|---|---|---|---|"]
    detail += [
        f"| {size} px, n = 2^{n.bit_length() - 1} | {figures['update']:.3g} | {figures['gather']:.3g} | {figures['convolution']:.3g} |"
        for (size, n), figures in updates.items()
    ]
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    RESULTS.mkdir(exist_ok=True)
    text = ["# CF-Conv: one training step", f"{notes}.", "\n".join(lines), "\n".join(detail)]
    (RESULTS / "cf.md").write_text("\n\n".join(text) + "\n")
    figures = [{**part, "size": size, "positions": n} for (size, n), part in updates.items()]
    (RESULTS / "cf.json").write_text(json.dumps({**about, "rows": rows, "layers": figures}, indent=1) + "\n")
    return "\n".join([*lines, "", *detail])


if __name__ == "__main__":
    main()
