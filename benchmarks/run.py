"""Time and peak memory of whole networks, against `plain.py` in the same run: `make benchmark`.

Each comparison takes the two in turn, so that a machine whose speed drifts slows both. Writes a table and the figures behind it into
benchmarks/results/.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from plain import PlainNetwork
from torch import nn

import flexseq as fs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """A FlexTCN-6 on (batch, 1, length), its masks at `sigma`; a training step (with Adam), or inference in eval mode."""

    batch: int
    length: int
    sigma: float
    training: bool

    @property
    def name(self) -> str:
        masks = {0.075: "fresh", 0.3: "half-grown", 1.0: "open"}[self.sigma]
        return f"FlexTCN-6 ({self.batch}, 1, {self.length}) {masks} masks, {'training step' if self.training else 'inference'}"


CASES = [
    Case(batch, length, sigma, training)
    for batch, length, sigma in [
        (64, 784, 0.075),
        (64, 784, 1.0),
        (4, 16_000, 0.075),
        (4, 16_000, 0.3),
        (4, 16_000, 1.0),
        (1, 16_000, 0.075),
    ]
    for training in (True, False)
]


def networks(case: Case) -> tuple[nn.Module, nn.Module]:
    """Ours and the plain one, with the same weights."""
    torch.manual_seed(0)
    model = fs.FlexTCN(mask_sigma=case.sigma)
    with torch.no_grad():
        model(torch.zeros(2, 1, case.length))
    return model, PlainNetwork(model)


def step(case: Case, model: nn.Module) -> Callable[[], None]:
    """What is timed."""
    x = torch.randn(case.batch, 1, case.length, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(case.batch) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    model.train(case.training)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), targets).backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        model(x)

    return train if case.training else infer


def compare(case: Case) -> dict:
    """Seconds of both, taken in turn, at least 7 times where a plain run takes under 2 s, else 3."""
    ours, plain = networks(case)
    x = torch.randn(2, 1, case.length)
    with torch.no_grad():
        difference = relative(ours.eval()(x), plain.eval()(x))
    run_ours, run_plain = step(case, ours), step(case, plain)
    run_ours()
    first = timed(run_plain)
    times = [(timed(run_plain), timed(run_ours)) for _ in range(7 if first < 2 else 3)]
    ratios = sorted(a / b for a, b in times)
    return {
        "case": case.name,
        "plain_s": statistics.median(a for a, _ in times),
        "ours_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "pairs": len(times),
        "difference": difference,
        **{f"{who}_mb": memory(case, who) for who in ("plain", "ours")},
    }


def timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return ((value - reference).abs().max() / reference.abs().max()).item()


def memory(case: Case, who: str) -> float:
    """Peak resident memory in MB of one step in a process of its own, above that of the imports."""
    index = str(CASES.index(case))
    done = subprocess.run([sys.executable, __file__, "--memory", who, "--case", index], capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_memory(case: Case, who: str) -> None:
    before = peak_memory()
    ours, plain = networks(case)
    step(case, ours if who == "ours" else plain)()
    print(peak_memory() - before)


def peak_memory() -> float:
    """MB, of this process alone: getrusage's figure begins with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", choices=("ours", "plain"), help="print the memory of one case and nothing else")
    parser.add_argument("--case", type=int, help="only this one, by its number, and write nothing")
    arguments = parser.parse_args()
    cases = CASES if arguments.case is None else [CASES[arguments.case]]
    if arguments.memory:
        print_memory(cases[0], arguments.memory)
        return
    rows = []
    for number, case in enumerate(cases, 1):
        rows.append(compare(case))
        print(f"{number}/{len(cases)}  {line(rows[-1])}", flush=True)
    if arguments.case is not None:
        return
    about = {
        "command": "make benchmark",
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout.strip(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "networks.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    head = "| case | plain s | flexseq s | ratio (min, max) | plain MB | flexseq MB | difference |\n|---|---|---|---|---|---|---|\n"
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    text = f"# Whole networks against benchmarks/plain.py\n\nfloat32; {notes}.\n\n{head}" + "".join(line(row) + "\n" for row in rows)
    (RESULTS / "networks.md").write_text(text)
    print(RESULTS / "networks.md")


def line(row: dict) -> str:
    return (
        f"| {row['case']} | {row['plain_s']:.3f} | {row['ours_s']:.3f} "
        f"| {row['ratio']:.1f} ({row['ratio_min']:.1f}, {row['ratio_max']:.1f}) "
        f"| {row['plain_mb']:.0f} | {row['ours_mb']:.0f} | {row['difference']:.0e} |"
    )


if __name__ == "__main__":
    main()
