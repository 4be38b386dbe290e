"""Everything that has to be measured on a GPU, in one command: `python benchmarks/gpu.py`.

Layers against float64, what the host waits for, kernels launched, time and memory of networks against `plain.py` and against S4D, the floor
of memory bandwidth, and a profile of the three slowest. Writes benchmarks/results/gpu.md. Needs torch, and nothing of flexseq's extras.
`--device cpu --small` tries the script out without a GPU, and writes nothing.
"""

import argparse
import copy
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from cases import NetworkCase, SeparableCase, Setting, step
from separable import s4d_network
from timing import measure_machine, synchronize
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import flexseq as fs
from flexseq.training.parameters import kernel_penalty

TARGET = Path(__file__).parent / "results" / "gpu.md"
BUDGET_S = 240
"""After so many seconds nothing new is begun but the report."""


def layers() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Every layer, in the ways that it can be computed, and the shape of an input."""
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    for method in ("direct", "fft", "overlap"):
        found[f"FlexConv1d, {method}"] = fs.FlexConv1d(6, 8, causal=True, mask_sigma=0.2, method=method), (3, 6, 500)
        found[f"FlexConv1d depthwise, {method}"] = fs.FlexConv1d(8, 8, causal=True, groups=8, mask_sigma=0.2, method=method), (3, 8, 500)
        found[f"FlexConv1d groups, {method}"] = fs.FlexConv1d(6, 8, groups=2, mask_sigma=0.2, method=method), (3, 6, 500)
        found[f"FlexConv2d, {method}"] = fs.FlexConv2d(3, 5, mask_sigma=0.3, method=method), (2, 3, 24, 20)
    found["FlexConv2d rotated"] = fs.FlexConv2d(3, 5, mask_sigma=0.3, rotated_mask=True), (2, 3, 24, 20)
    found["FlexConv3d"] = fs.FlexConv3d(2, 3, mask_sigma=0.4), (2, 2, 9, 8, 7)
    for kernel in ("siren", "gabor", "fourier", "mlp"):
        found[f"CKConv1d, {kernel}"] = fs.CKConv1d(4, 4, causal=True, kernel=kernel), (2, 4, 300)
    found["CKConv2d"] = fs.CKConv2d(3, 4), (2, 3, 16, 16)
    found["NJetConv1d"], found["NJetConv2d"] = (
        (fs.NJetConv1d(4, 4, sigma=0.2), (2, 4, 200)),
        (fs.NJetConv2d(3, 4, sigma=0.3), (2, 3, 16, 16)),
    )
    found["NIFFConv2d"] = fs.NIFFConv2d(6, 6, groups=6), (2, 6, 20, 20)
    found["CFConv2d"] = fs.CFConv2d(4, 4), (2, 4, 16, 16)
    return found


def differences(device: str) -> list[tuple[str, float, float]]:
    """Of outputs and of gradients from those of a copy in float64 on the CPU, relative to their largest number."""
    rows = []
    for name, (layer, shape) in layers().items():
        torch.manual_seed(0)
        x = torch.randn(shape)
        layer(x)  # the first input gives the kernel's size
        exact = copy.deepcopy(layer).double()
        layer = layer.to(device)
        results = []
        for model, own in ((exact, x.double()), (layer, x.to(device))):
            own.requires_grad_()
            y = model(own)
            wave = torch.arange(y.numel(), dtype=torch.float64).cos().view(y.shape)
            parameters = [p for p in model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad((y * wave.to(y)).sum(), [own, *parameters], allow_unused=True)
            results.append((y, [g for g in gradients if g is not None]))
        (expected, slopes), (y, own_slopes) = results
        largest = max(slope.abs().max().item() for slope in slopes)
        worst = max(relative(a, b, 1e-2 * largest) for a, b in zip(own_slopes, slopes, strict=True))
        rows.append((name, relative(y, expected), worst))
    return rows


def relative(value: Tensor, exact: Tensor, least: float = 0.0) -> float:
    """The largest difference over the largest number, or over `least`, which is what rounding leaves of others."""
    difference = (value.detach().double().cpu() - exact.detach()).abs().max().item()
    return difference / max(exact.abs().max().item(), least)


def waits(device: str) -> list[tuple[str, int]]:
    """How often the host waits for the device in a forward and a backward pass with both penalties."""
    networks = {
        "FlexTCN-6": (fs.FlexTCN(), (4, 1, 784)),
        "FlexNet-7": (fs.FlexNet(), (4, 3, 32, 32)),
        "CIFARResNet-20 of FlexConvs": (fs.to_flexconv(fs.CIFARResNet(depth=20), kernel_size=9)[0], (4, 3, 32, 32)),
        "Sequential of FlexConvs": (nn.Sequential(fs.FlexConv1d(2, 8, 99), nn.ReLU(), fs.FlexConv1d(8, 8, 99)), (4, 2, 99)),
    }
    rows = []
    for name, (model, shape) in networks.items():
        model, x = model.to(device), torch.randn(shape, device=device)

        def run(model=model, x=x) -> None:
            (model(x).square().mean() + kernel_penalty(model) + fs.alias_penalty(model)).backward()

        for _ in range(2):
            run()
        synchronize(device)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
        torch.cuda.set_sync_debug_mode("default")
        rows.append((name, sum("synchroniz" in str(one.message) for one in caught)))
    return rows


def launched(run: Callable[[], object]) -> tuple[int, float]:
    """Kernels that the device ran, and the milliseconds that it was busy."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in record.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels), sum(event.device_time for event in kernels) / 1e3


def s4d_step(batch: int, size: int, depth: int, channels: int, setting: Setting) -> Callable[[], object]:
    """A training step of the network that separable ones are compared with."""
    torch.manual_seed(0)
    x = torch.randn(batch, 1, size, device=setting.device)
    targets = (torch.arange(batch) % 10).to(setting.device)
    return step(s4d_network(depth, channels), x, lambda y: F.cross_entropy(y, targets), setting, training=True)


def timed(runs: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of each, the median of rounds in which all take their turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize(device)
            began = time.perf_counter()
            run()
            synchronize(device)
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(run: Callable[[], object]) -> float:
    """Gigabytes that a run allocates at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *["| " + " | ".join(map(str, row)) + " |" for row in rows]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="few cases of small size")
    arguments = parser.parse_args()
    device, on_gpu, began = arguments.device, arguments.device != "cpu", time.perf_counter()
    setting = Setting(device)
    if on_gpu and not torch.cuda.is_available():
        parser.error("no GPU is here; try the script with --device cpu --small")
    machine = measure_machine(device)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip() or "unknown"
    name = torch.cuda.get_device_name() if on_gpu else platform.machine()
    about = f"python benchmarks/gpu.py, commit {commit}, torch {torch.__version__}, {name}, {machine.bytes_per_s / 1e9:.0f} GB/s of a copy"
    sections = ["# On a GPU", f"{about}."]

    def report(title: str, text: str) -> None:
        sections.append(f"## {title}\n\n{text}")
        print(f"\n{title} ({time.perf_counter() - began:.0f} s)\n{text}", flush=True)

    rows = differences(device)
    worst = max(max(y, slope) for _, y, slope in rows)
    text = table(["layer", "output", "gradients"], [(name, f"{y:.0e}", f"{slope:.0e}") for name, y, slope in rows])
    report("Differences from float64", f"The largest is {worst:.0e}.\n\n{text}")
    if on_gpu:
        report("How often the host waits in a step, with both penalties", table(["network", "waits"], waits(device)))

    size = (
        {"time": (8, 200), "long": (2, 800), "image": (4, 12)}
        if arguments.small
        else {"time": (64, 784), "long": (32, 16_000), "image": (64, 32)}
    )
    cases: list[NetworkCase | SeparableCase] = [
        *[NetworkCase("FlexTCN-6", *size["time"], "fresh", training) for training in (True, False)],
        *[NetworkCase("FlexTCN-6", *size["long"], mask, True) for mask in ("fresh", "full")],
        *[NetworkCase("FlexNet-7", *size["image"], mask, True) for mask in ("fresh", "full")],
        SeparableCase(4, 140, *size["long"], "fresh", True),
        SeparableCase(6, 128, *size["long"], "fresh", True),
        SeparableCase(6, 128, *size["long"], "full", True),
    ]
    rows, slowest = [], []
    for case in cases:
        if time.perf_counter() - began > BUDGET_S:
            rows.append((case.name, "not run: the time was up", *[""] * 6))
            continue
        runs = {who: case.contestant(who, setting) for who in ("plain", "auto")}
        try:
            ms = timed(runs, device, 3 if arguments.small else 10)
        except torch.OutOfMemoryError as error:
            rows.append((case.name, str(error).splitlines()[0], *[""] * 6))
            continue
        moved, _ = case.floor()
        kernels, busy = launched(runs["auto"]) if on_gpu else (0, 0.0)
        memory = [f"{peak(runs[who]):.1f}" if on_gpu else "" for who in ("plain", "auto")]
        floor = moved / machine.bytes_per_s * 1e3
        rows.append(
            (
                case.name,
                f"{ms['plain']:.1f}",
                f"{ms['auto']:.1f}",
                f"{ms['plain'] / ms['auto']:.1f}",
                f"{busy:.1f}",
                kernels,
                f"{floor:.1f}",
                " / ".join(memory),
            )
        )
        slowest.append((ms["auto"], case))
    head = [
        "case",
        "plain ms",
        "**flexseq ms**",
        "plain / flexseq",
        "device busy ms",
        "kernels launched",
        "floor ms",
        "GB: plain / flexseq",
    ]
    report("Networks", table(head, rows))

    batch, length = size["long"]
    runs = {
        "S4D": s4d_step(batch, length, 6, 128, setting),
        "separable FlexConvs": SeparableCase(6, 128, batch, length, "fresh", True).contestant("auto", setting),
    }
    ms = timed(runs, device, 3 if arguments.small else 10)
    memory = {who: f"{peak(run):.1f}" if on_gpu else "" for who, run in runs.items()}
    text = table(["6 layers of 128", "ms", "GB"], [(who, f"{ms[who]:.1f}", memory[who]) for who in runs])
    report(f"Against S4D: training step on ({batch}, 1, {length})", text)

    if on_gpu:
        for _, case in sorted(slowest, key=lambda one: -one[0])[:3]:
            run = case.contestant("auto", setting)
            for _ in range(2):
                run()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
                run()
                torch.cuda.synchronize()
            found = record.key_averages().table(sort_by="self_device_time_total", row_limit=12, max_name_column_width=60)
            report(f"Profile: {case.name}", f"```\n{found}\n```")
    if arguments.small:
        print("\nsmall cases: nothing was written")
        return
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text("\n\n".join(sections) + "\n")
    print(f"\n{TARGET} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
