"""Measuring: contestants in turn, peak memory in a process of its own, and what this machine can do at all."""

import concurrent.futures
import ctypes
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

ORIGINAL_CONVOLUTION_S = 0.0075
"""Seconds of `calibration` on the machine of the original's figures. Not recorded there: inferred from its FlexNet-7 (237 ms for 15 layers
of 5 x 5 taps, 60 GFLOP, nearly all of it direct convolution), at the same operations a second."""


FIXED = ("direct", "fft", "overlap")
"""flexseq's methods, of which "auto" is to choose the best."""


class Machine(NamedTuple):
    """What a device does at best.

    Args:
        bytes_per_s: of a large copy, read and written.
        operations_per_s: of a large matrix product in the type that is measured, multiplications and additions.
        slowdown: of a direct convolution, against the machine of the original's figures.
    """

    bytes_per_s: float
    operations_per_s: float
    slowdown: float


def measure_machine(device: str, dtype: torch.dtype = torch.float32) -> Machine:
    """Rates of this device, each the best of several runs."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    matrix = torch.ones(4096, 4096, device=device, dtype=dtype)
    copy_s = _best(lambda: target.copy_(source), device)
    product_s = _best(lambda: matrix @ matrix, device)
    return Machine(2 * source.nbytes / copy_s, 2 * 4096**3 / product_s, calibration(device) / ORIGINAL_CONVOLUTION_S)


def calibration(device: str) -> float:
    """Seconds of one 5 x 5 convolution of FlexNet-7's first blocks, torch's own."""
    x, weight = torch.ones(64, 24, 32, 32, device=device), torch.ones(24, 24, 5, 5, device=device)
    return _best(lambda: F.conv2d(x, weight, padding=2), device)


def timed(run: Callable[[], object], device: str) -> float:
    """Seconds of one run."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def rounds(contestants: dict[str, Callable[[], object]], device: str) -> dict[str, list[float]]:
    """Seconds of each contestant, one round after the other, so that a machine whose speed drifts slows all of them.

    At least 7 rounds where all take under 2 s, else 3; where one takes over 20 s, its first run counts. Each turn of a quick contestant
    begins with a run that is not timed, since the one before has left the cache and the heap in its own way, and takes several runs where
    one is under 10 ms. A fixed method that is 4 times slower than the fastest of them at first runs no further.
    """
    first = {}
    for name, run in contestants.items():
        first[name] = timed(run, device)
        if first[name] < 2:
            first[name] = timed(run, device)  # warm
    fixed = [first[name] for name in FIXED if name in first]
    racing = {name: run for name, run in contestants.items() if name not in FIXED or first[name] < 4 * min(fixed)}
    slowest = max(first[name] for name in racing)
    if slowest > 20:
        return {name: [timed(run, device) if first[name] < 20 else first[name]] for name, run in racing.items()}
    times: dict[str, list[float]] = {name: [] for name in racing}
    for _ in range(7 if slowest < 2 else 3):
        for name, run in racing.items():
            if first[name] < 0.2:
                run()
            count = max(1, round(0.01 / first[name]))
            times[name].append(timed(lambda run=run, count=count: [run() for _ in range(count)], device) / count)
    return times


def ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios of the same rounds."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


class MemoryMeter:
    """Peak memory of a run in a process of its own, above that of the imports, in MB."""

    def __init__(self, device: str):
        self.device = device
        self.context = multiprocessing.get_context("forkserver")
        # The server imports once; a child starts with that, and with nothing else. It finds `cases` by the environment alone.
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.context.set_forkserver_preload(["cases"])

    def peak(self, make: Callable[..., Callable[[], object]], *arguments: object) -> float:
        """Of the run that make(*arguments) gives, there; what it holds when it begins counts, what making it took besides does not."""
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=self.context) as pool:
            return pool.submit(_peak, self.device, make, arguments).result()


def _peak(device: str, make: Callable[..., Callable[[], object]], arguments: tuple) -> float:
    if device != "cpu":
        make(*arguments)()
        return torch.cuda.max_memory_allocated() / 2**20
    before = _resident("VmRSS")
    run = make(*arguments)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten: what building took does not count
    run()
    return _resident("VmHWM") - before


def _resident(which: str) -> float:
    # Of this process alone: getrusage's figure begins with that of the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1]) / 1024


def _best(run: Callable[[], object], device: str) -> float:
    run()
    return min(timed(run, device) for _ in range(20))
