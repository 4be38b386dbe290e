"""NIFF against `plain_niff.py`: time and peak memory of ResNet-18 and of single layers, and what a layer costs over size (NIFF, Fig. 8).

Writes benchmarks/results/niff.md, .json and .png. Needs timm, torchvision or transformers for ResNet-18. On a GPU: --device cuda.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from plain_niff import plain_niff
from timing import MemoryMeter, measure_machine, ratio, rounds
from torch import nn

import flexseq as fs
from flexseq.backbones import build_backbone

with torch.device("meta"):
    build_backbone("resnet18")  # imports its library, which is not to count as memory

RESULTS = Path(__file__).parent / "results"
SIZES = [8, 16, 32, 64, 128]
CHANNELS, BATCH = 64, 32
DIRECT_UP_TO = 32
"""Pixels up to which a convolution as large as the image is measured."""


@dataclass(frozen=True)
class Case:
    """ResNet-18 with big NIFFs, or one depthwise layer (`size` is then the feature map's).

    Args:
        network: or a single layer.
        size: pixels along an edge.
        training: forward, backward and SGD; else inference.
    """

    network: bool
    size: int
    training: bool

    @property
    def name(self) -> str:
        what = f"ResNet-18, {self.size} px" if self.network else f"one NIFF layer, {CHANNELS} channels, {self.size} px"
        return f"{what}, batch {BATCH}, {'training step' if self.training else 'inference'}"

    def contestant(self, who: str, device: str) -> Callable[[], object]:
        model, x = self.model(who), self.inputs()
        model, x = model.to(device).train(self.training), x.to(device)
        if not self.training:

            @torch.no_grad()
            def infer() -> object:
                return model(x)

            return infer
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

        def train() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        return train

    def inputs(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(BATCH, 3 if self.network else CHANNELS, self.size, self.size, generator=generator)

    def model(self, who: str) -> nn.Module:
        torch.manual_seed(0)
        if self.network:
            model = _Logits(fs.to_niff(build_backbone("resnet18")[0], size="big")[0])
        else:
            model = nn.Sequential(fs.nn.NIFFConv2d(CHANNELS, CHANNELS, groups=CHANNELS, kernel="big"))
        return plain_niff(model) if who == "plain" else model

    @torch.no_grad()
    def difference(self) -> float:
        ours, plain = (self.model(who).eval()(self.inputs()) for who in ("flexseq", "plain"))
        return ((ours - plain).abs().max() / plain.abs().max()).item()


class _Logits(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.network(x)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


CASES = [
    Case(True, 64, True),
    Case(True, 64, False),
    Case(False, 16, True),
    Case(False, 16, False),
    Case(False, 56, True),
    Case(False, 56, False),
]


def measure(case: Case, device: str, meter: MemoryMeter) -> dict:
    times = rounds({who: case.contestant(who, device) for who in ("plain", "flexseq")}, device)
    return {
        "case": case.name,
        "seconds": {who: statistics.median(values) for who, values in times.items()},
        "ratio": ratio(times["plain"], times["flexseq"]),
        "mb": {who: meter.peak(case.contestant, who, device) for who in ("plain", "flexseq")},
        "difference": case.difference(),
    }


def operations(size: int) -> dict[str, float]:
    """Multiplications and additions of one depthwise layer for one image, the kernel's own making left aside.

    A real transform of N x N samples takes 2.5 N^2 log2(N^2); a product of complex numbers 6 for each of half the bins. Linear NIFF keeps
    its kernel in space, and transforms it, too.
    """
    samples, padded = size**2, (2 * size) ** 2
    transform, padded_transform = (2.5 * n * math.log2(n) for n in (samples, padded))
    return {
        "two FFTs": CHANNELS * 2 * transform,
        "depthwise, 3 x 3": CHANNELS * 2 * 9 * samples,
        "depthwise, as large as the image": CHANNELS * 2 * samples * samples,
        "NIFF": CHANNELS * (2 * transform + 6 * samples / 2),
        "linear NIFF": CHANNELS * (3 * padded_transform + 6 * padded / 2),
    }


def measure_cost(size: int, device: str) -> dict[str, float]:
    """Milliseconds of each of these for one image, without gradients."""
    x = torch.randn(1, CHANNELS, size, size, device=device)
    layers = {
        linear: fs.nn.NIFFConv2d(CHANNELS, CHANNELS, size, groups=CHANNELS, linear=linear).eval().to(device) for linear in (False, True)
    }
    small, large = torch.randn(CHANNELS, 1, 3, 3, device=device), torch.randn(CHANNELS, 1, size + 1, size + 1, device=device)
    runs: dict[str, Callable[[], object]] = {
        "two FFTs": lambda: torch.fft.irfft2(torch.fft.rfft2(x), s=(size, size)),
        "depthwise, 3 x 3": lambda: F.conv2d(x, small, padding=1, groups=CHANNELS),
        "NIFF": lambda: layers[False](x),
        "linear NIFF": lambda: layers[True](x),
    }
    if size <= DIRECT_UP_TO:
        # Padded by a copy: where torch's convolution pads so much itself it is many times slower.
        runs["depthwise, as large as the image"] = lambda: F.conv2d(F.pad(x, [size // 2] * 4), large, groups=CHANNELS)
    with torch.no_grad():
        return {name: 1e3 * statistics.median(times) for name, times in rounds(runs, device).items()}


def plot(counted: list[dict[str, float]], measured: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, rows, label in ((left, counted, "operations"), (right, measured, "milliseconds")):
        for name in operations(8):
            points = [(size, row[name]) for size, row in zip(SIZES, rows, strict=True) if name in row]
            axis.loglog(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel="pixels along an edge", ylabel=label, xticks=SIZES, xticklabels=SIZES)
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.suptitle(f"One depthwise layer, {CHANNELS} channels, one image", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    machine = measure_machine(device)
    about = {
        "command": "python " + " ".join(sys.argv),
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout.strip(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "slowdown of the calibration convolution": round(machine.slowdown, 2),
    }
    meter = MemoryMeter(device)
    rows = []
    heads = "| case | plain ms | **flexseq ms** | plain / flexseq | plain MB | flexseq MB | difference |\n|---|---|---|---|---|---|---|"
    print(heads)
    lines = [heads]
    for case in CASES:
        row = measure(case, device, meter)
        rows.append(row)
        seconds, mb = row["seconds"], row["mb"]
        spread = "{:.1f} ({:.1f}, {:.1f})".format(*row["ratio"])
        lines.append(
            f"| {row['case']} | {seconds['plain'] * 1e3:.4g} | {seconds['flexseq'] * 1e3:.4g} | {spread} | {mb['plain']:.0f} | "
            f"{mb['flexseq']:.0f} | {row['difference']:.0e} |"
        )
        print(lines[-1], flush=True)
    counted, measured = [operations(size) for size in SIZES], [measure_cost(size, device) for size in SIZES]
    names = list(counted[0])
    costs = [f"| px | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    for size, operation, times in zip(SIZES, counted, measured, strict=True):
        cells = [f"{operation[name] / 1e6:.3g} M" + (f", {times[name]:.3g} ms" if name in times else "") for name in names]
        costs.append(f"| {size} | {' | '.join(cells)} |")
    name = "niff" if device == "cpu" else f"niff_{device}"
    RESULTS.mkdir(exist_ok=True)
    plot(counted, measured, RESULTS / f"{name}.png")
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, "rows": rows, "operations": counted, "ms": measured}, indent=1) + "\n")
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    parts = [
        "# NIFF",
        f"{notes}.",
        "\n".join(lines),
        f"Cost over size: operations and milliseconds of a depthwise layer of {CHANNELS} channels, one image, kernels kept (NIFF, Fig. 8). "
        "flexseq runs linear NIFF through FFTs or as a direct convolution, by the shapes alone; the operations are those through FFTs.",
        "\n".join(costs),
        f"![cost over size]({name}.png)",
    ]
    (RESULTS / f"{name}.md").write_text("\n\n".join(parts) + "\n")
    print("\n".join(costs))


if __name__ == "__main__":
    main()
