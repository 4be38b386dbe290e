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
from cases import DEPTHWISE, LAYERS, NETWORKS, ON_GPU, SEPARABLE, DepthwiseCase, LayerCase, NetworkCase, SeparableCase, Setting, taps
from timing import FIXED, Machine, MemoryMeter, measure_machine, ratio, rounds

RESULTS = Path(__file__).parent / "results"
SUITES = {"networks": NETWORKS, "depthwise": DEPTHWISE, "separable": SEPARABLE, "layers": LAYERS, "growth": []}
Case = NetworkCase | SeparableCase | LayerCase | DepthwiseCase
LENGTHS = [64, 256, 1024, 4096, 16_384, 32_768, 65_536, 131_072]


def measure(case: Case, setting: Setting, machine: Machine, meter: MemoryMeter) -> dict:
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
        "difference": case.difference(setting),
    }
    fixed = {who: seconds[who] for who in FIXED if who in seconds}
    if fixed:
        best = min(fixed, key=lambda who: fixed[who])
        row |= {"taps": taps(case.layer()), "best": best, "auto_over_best": ratio(times["auto"], times[best])[0]}
    if case.original_s and setting == Setting():
        row["plain_over_original"] = seconds["plain"] / case.original_s / machine.slowdown
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
    cells += ["floor ms", "plain MB", "flexseq MB", "difference"]
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
    return found


def measure_growth(setting: Setting) -> list[dict]:
    """Time over length of one layer over time with a batch of one, all lengths in turn: a row for each mask, in training and inference."""
    rows = []
    for mask in ("fresh", "half", "full"):
        for training in (True, False):
            cases = {str(length): LayerCase(1, 1, length, mask, training) for length in LENGTHS}
            times = rounds({length: case.contestant("auto", setting) for length, case in cases.items()}, setting.device)
            rows.append(
                {
                    "case": f"{mask} mask, {'training step' if training else 'inference'}",
                    "seconds": {length: statistics.median(values) for length, values in times.items()},
                    "growth": {n: ratio(times[n], times[str(int(n) // 2)]) for n in times if str(int(n) // 2) in times and int(n) > 16_384},
                }
            )
    return rows


def write_growth(rows: list[dict], about: dict, name: str) -> None:
    """A table of times and of what each doubling multiplies them by, the figures behind it, and the plot."""
    import matplotlib.pyplot as plt

    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    lengths, doubled = list(rows[0]["seconds"]), list(rows[0]["growth"])
    heads = ["one FlexConv1d, 30 channels, batch 1: ms", *[f"{int(n):,}" for n in lengths], *[f"{int(n):,} / half" for n in doubled]]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["case"], *[f"{row['seconds'][n] * 1e3:.3g}" for n in lengths]]
        cells += ["{:.2f} ({:.2f}, {:.2f})".format(*row["growth"][n]) for n in doubled]
        lines.append("| " + " | ".join(cells) + " |")
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    picture = f"![time over length]({name}.png)"
    (RESULTS / f"{name}.md").write_text("\n\n".join(["# Time over length", f"{notes}.", "\n".join(lines), picture]) + "\n")
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for row in rows:
        axis.loglog([int(n) for n in lengths], [1e3 * second for second in row["seconds"].values()], marker="o", label=row["case"])
    axis.loglog([int(n) for n in lengths], [int(n) / 1e3 for n in lengths], "k:", label="proportional to the length")
    axis.set(xlabel="samples", ylabel="milliseconds", title="One FlexConv1d, 30 channels, batch 1")
    axis.legend()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
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
    machine = measure_machine(setting.device, torch.bfloat16 if setting.bf16 else torch.float32)
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
        name = suite if setting == Setting() else f"{suite}_{setting.device}{'_bf16' if setting.bf16 else ''}"
        if suite == "growth":
            if not arguments.only:
                write_growth(measure_growth(setting), about, name)
                print(RESULTS / f"{name}.md")
            continue
        listed = [*SUITES[suite], *(ON_GPU if suite == "networks" and setting.device != "cpu" else [])]
        cases = [case for case in listed if not arguments.only or arguments.only in case.name]
        meter = MemoryMeter(setting.device)
        rows: list[dict] = []
        failed: list[str] = []
        for number, case in enumerate(cases, 1):
            try:
                rows.append(measure(case, setting, machine, meter))
            except (RuntimeError, MemoryError) as error:  # out of memory, mostly: the others are still to be measured
                failed.append(f"FAILED: {case.name}: {str(error).splitlines()[0]}")
                print(f"{failed[-1]} {number}/{len(cases)}", flush=True)
                continue
            if len(rows) == 1:
                print(head(rows[0]))
            print(f"{line(rows[-1])} {number}/{len(cases)}", flush=True)
            if not arguments.only:
                write(rows, failed, about, name)  # what there is so far
        print(*findings(rows), *failed, sep="\n")
        if not arguments.only:
            print(RESULTS / f"{name}.md")


def write(rows: list[dict], failed: list[str], about: dict, name: str) -> None:
    """The table, and the figures behind it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    table = "\n".join([head(rows[0]), *map(line, rows)])
    (RESULTS / f"{name}.md").write_text(f"# {name.capitalize()}\n\n{notes}.\n\n" + "\n\n".join([*findings(rows), *failed, table]) + "\n")


if __name__ == "__main__":
    main()
