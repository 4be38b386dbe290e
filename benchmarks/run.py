"""Time and peak memory of layers and networks, against `plain.py`, torch's convolution and the floor: `make benchmark`.

Writes, into benchmarks/results/, tables, the figures behind them, and a plot of time over length. Each comparison takes its contestants in
turn. On a GPU: `python benchmarks/run.py --device cuda`, and again with `--bf16`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from cases import LAYERS, NETWORKS, LayerCase, NetworkCase, Setting, taps
from timing import Machine, MemoryMeter, measure_machine, ratio, rounds

RESULTS = Path(__file__).parent / "results"
SUITES = {"networks": NETWORKS, "layers": LAYERS}


def measure(case: NetworkCase | LayerCase, setting: Setting, machine: Machine, meter: MemoryMeter | None) -> dict:
    """All figures of one case."""
    contestants = {who: case.contestant(who, setting) for who in case.contestants()}
    times = rounds(contestants, setting.device)
    seconds = {who: statistics.median(values) for who, values in times.items()}
    moved, operations = case.floor()
    row = {
        "case": case.name,
        "seconds": seconds,
        "pairs": len(times["auto"]),
        "ratio": ratio(times["plain"], times["auto"]) if "plain" in times else None,
        "floor_s": max(moved / machine.bytes_per_s, operations / machine.operations_per_s),
        "difference": case.difference() if setting == Setting() else None,
    }
    fixed = {who: seconds[who] for who in ("direct", "fft", "overlap") if who in seconds}
    if fixed:
        best = min(fixed, key=lambda who: fixed[who])
        row |= {"taps": taps(case.layer()), "best": best, "auto_over_best": ratio(times["auto"], times[best])[0]}
    if case.original_s and setting == Setting():
        row["plain_over_original"] = seconds["plain"] / case.original_s / machine.slowdown
    if meter:
        row["mb"] = {who: meter.peak(case.contestant, who, setting) for who in ("plain", "auto") if who in contestants}
    return row


def line(row: dict) -> str:
    """A row of the table."""
    seconds, cells = row["seconds"], [row["case"]]
    if "best" in row:
        cells.append(" x ".join(map(str, row["taps"])))
    columns = ("plain", "auto", "direct", "fft", "overlap", "torch") if "best" in row else ("plain", "auto")
    cells += [f"{seconds[who] * 1e3:.4g}" if who in seconds else "" for who in columns]
    cells.append("" if row["ratio"] is None else "{:.1f} ({:.1f}, {:.1f})".format(*row["ratio"]))
    if "best" in row:
        cells.append(f"{row['auto_over_best']:.2f}")
    cells.append(f"{row['floor_s'] * 1e3:.3g}")
    if "mb" in row:
        cells += [f"{row['mb'][who]:.0f}" if who in row["mb"] else "" for who in ("plain", "auto")]
    cells.append("" if row["difference"] is None else f"{row['difference']:.0e}")
    return "| " + " | ".join(cells) + " |"


def head(row: dict) -> str:
    """The table's head."""
    cells = ["case"]
    if "best" in row:
        cells += [
            "taps",
            "plain ms",
            "**flexseq ms**",
            "direct",
            "fft",
            "overlap",
            "torch conv",
            "plain / flexseq",
            "flexseq / best method",
        ]
    else:
        cells += ["plain ms", "**flexseq ms**", "plain / flexseq"]
    cells += ["floor ms", *(["plain MB", "flexseq MB"] if "mb" in row else []), "difference"]
    return "| " + " | ".join(cells) + " |\n|" + "---|" * len(cells)


def findings(rows: list[dict]) -> list[str]:
    """What a suite shows, and a warning where the opponent is weak."""
    found = []
    timed = [row for row in rows if "best" in row and row["seconds"]["auto"] > 1e-3]
    if timed:
        near = sum(row["auto_over_best"] <= 1.2 for row in timed)
        found.append(f"`auto` is within 1.2 of the best fixed method in {near} of the {len(timed)} cases that take over 1 ms.")
    found += [
        f"WARNING: plain is {row['plain_over_original']:.2f} times slower than the original on {row['case']}, "
        "relative to the calibration convolution: a weak opponent."
        for row in rows
        if row.get("plain_over_original", 0) > 1.25
    ]
    if any("plain_over_original" in row for row in rows):
        worst = max(row.get("plain_over_original", 0) for row in rows)
        found.append(f"Relative to a calibration convolution, plain takes at most {worst:.2f} times the original implementation's time.")
    steps = growth(rows)
    if steps:
        worst_step = max(steps, key=lambda item: item[2])
        found.append(
            f"From 16,384 to 131,072 samples each doubling multiplies the time by {min(s[2] for s in steps):.2f} to {worst_step[2]:.2f} "
            f"(most: {worst_step[0]} at {worst_step[1]:,})."
        )
    return found


def series(rows: list[dict]) -> dict[str, dict[int, float]]:
    """Seconds by length of layers over time with a batch of one, for each mask, in training and inference."""
    lines: dict[str, dict[int, float]] = {}
    seconds = {row["case"]: row["seconds"]["auto"] for row in rows}
    for case in LAYERS:
        if case.ndim == 1 and case.batch == 1 and case.name in seconds:
            lines.setdefault(f"{case.mask} mask, {'training step' if case.training else 'inference'}", {})[case.size] = seconds[case.name]
    return lines


def growth(rows: list[dict]) -> list[tuple[str, int, float]]:
    """(what, length, its time over that of half the length), from 32,768 on."""
    return [
        (name, size, values[size] / values[size // 2])
        for name, values in series(rows).items()
        for size in values
        if size > 16_384 and size // 2 in values
    ]


def plot(rows: list[dict], path: Path) -> None:
    """Time over length."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, values in series(rows).items():
        axis.loglog(list(values), [1e3 * second for second in values.values()], marker="o", label=name)
    lengths = sorted({size for values in series(rows).values() for size in values})
    axis.loglog(lengths, [lengths_s / 1e3 for lengths_s in lengths], "k:", label="proportional to the length")
    axis.set(xlabel="samples", ylabel="milliseconds", title="One FlexConv1d, 30 channels, batch 1")
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--only", help="cases whose name holds this; writes nothing")
    arguments = parser.parse_args()
    if unknown := [suite for suite in arguments.suite if suite not in SUITES]:
        parser.error(f"suite expected one of {', '.join(SUITES)}, got {', '.join(unknown)}")
    setting = Setting(arguments.device, arguments.bf16)
    machine = measure_machine(setting.device)
    about = {
        "command": "python benchmarks/" + " ".join(sys.argv).rpartition("/")[2],
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout.strip(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if setting.device != "cpu" else platform.processor() or platform.machine(),
        "dtype": "bf16 autocast" if setting.bf16 else "float32",
        "threads": torch.get_num_threads(),
        "GB/s of a copy": round(machine.bytes_per_s / 1e9, 1),
        "GFLOP/s of a matrix product": round(machine.operations_per_s / 1e9),
        "slowdown of the calibration convolution": round(machine.slowdown, 2),
    }
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    print(notes, flush=True)
    for suite in arguments.suite or SUITES:
        cases = [case for case in SUITES[suite] if not arguments.only or arguments.only in case.name]
        meter = MemoryMeter(setting.device)
        rows: list[dict] = []
        for number, case in enumerate(cases, 1):
            rows.append(measure(case, setting, machine, meter))
            if number == 1:
                print(head(rows[0]))
            print(f"{line(rows[-1])} {number}/{len(cases)}", flush=True)
        print(*findings(rows), sep="\n")
        if arguments.only or not rows:
            continue
        name = suite if setting == Setting() else f"{suite}_{setting.device}{'_bf16' if setting.bf16 else ''}"
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
        table = "\n".join([head(rows[0]), *map(line, rows)])
        (RESULTS / f"{name}.md").write_text(f"# {suite.capitalize()}\n\n{notes}.\n\n" + "\n\n".join([*findings(rows), table]) + "\n")
        if series(rows):
            plot(rows, RESULTS / f"{name}.png")
        print(RESULTS / f"{name}.md")


if __name__ == "__main__":
    main()
