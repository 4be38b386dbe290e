"""Times of the network cases in this working tree against those in another one, step by step in turn.

`git worktree add ../before COMMIT`, then `python benchmarks/compare.py ../before`; writes benchmarks/results/before_after.md. Each tree has
a process of its own; both take one step after the other, so that a machine whose speed drifts slows both. About seven minutes.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
TARGET = HERE / "benchmarks" / "results" / "before_after.md"
ROUNDS_S = 12.0
"""Seconds that both together may take for a case, three rounds at least."""


def work() -> None:
    """What a tree's process does: build the case whose name it reads, or take a step, and say the seconds."""
    from cases import NETWORKS, Setting

    cases, run = {case.name: case for case in NETWORKS}, None
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name in cases:
            run = cases[name].contestant("auto", Setting())
            run()
            run()
            print("0", flush=True)
        elif run is not None:
            began = time.perf_counter()
            run()
            print(time.perf_counter() - began, flush=True)


class Tree:
    """A process that has imported one tree's flexseq and cases."""

    def __init__(self, root: Path):
        paths = [str(root), str(root / "benchmarks"), str(HERE / "benchmarks")]
        code = f"import sys; sys.path[:0] = {paths!r}; import compare; compare.work()"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{root} is no tree of flexseq with benchmarks/cases.py")

    def ask(self, line: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def commit(root: Path) -> str:
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    from cases import NETWORKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other working tree")
    parser.add_argument("--only", help="cases whose name holds this; writes nothing")
    arguments = parser.parse_args()
    before, after = Tree(arguments.before.resolve()), Tree(HERE)
    lines = ["| case | before ms | after ms | before / after |", "|---|---|---|---|"]
    print(*lines, sep="\n")
    for case in NETWORKS:
        if arguments.only and arguments.only not in case.name:
            continue
        before.ask(case.name)
        after.ask(case.name)
        both = before.ask("step") + after.ask("step")
        pairs = [(before.ask("step"), after.ask("step")) for _ in range(min(15, max(3, round(ROUNDS_S / both))))]
        ratios = [a / b for a, b in pairs]
        milliseconds = [statistics.median(times) * 1e3 for times in zip(*pairs, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        lines.append(f"| {case.name} | {milliseconds[0]:.4g} | {milliseconds[1]:.4g} | {spread} |")
        print(lines[-1], flush=True)
        if not arguments.only:  # what there is so far
            trees = f"{commit(arguments.before)} before, {commit(HERE)} after"
            about = f"`python benchmarks/compare.py TREE`, {trees}, in turn; ratios: median, least"
            TARGET.write_text("\n\n".join(["# Before and after", f"{about} and greatest.", "\n".join(lines)]) + "\n")


if __name__ == "__main__":
    main()
