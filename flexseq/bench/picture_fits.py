"""Kernel networks of equal size fitted to pictures."""

import hashlib
import itertools
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexseq.bench.fit_plots import plot_fits
from flexseq.bench.fits import LR, NO_EPOCHS, fit_function
from flexseq.bench.results import versions, where_it_ran, write_result
from flexseq.bench.study import claim_study, mean_and_spread
from flexseq.data.pictures import BROKEN, SUFFIXES, in_colour, opened
from flexseq.errors import InputError, unknown_name
from flexseq.files import replacing, write_text
from flexseq.kernels import KERNELS, KernelNetwork
from flexseq.positions import tap_positions
from flexseq.words import duration

IMAGE_NETWORKS = ("magnet", "gabor", "siren", "fourier")
PARAMETERS = 7_300
"""Of every network, as near as a width gets: the paper's have 7.1 to 7.4 K, of unpublished shapes."""
PUBLISHED_PSNR = {"siren": 25.665, "fourier": 23.276, "gabor": 25.606, "magnet": 25.893}
"""FlexConv, Table 5."""


def network_of_size(kernel: str, out_channels: int, parameters: int = PARAMETERS) -> KernelNetwork:
    """A kernel network over two axes whose width brings it nearest to a number of parameters, drawn as for fits of whole images.

    Example:
        >>> sum(p.numel() for p in network_of_size("magnet", 3).parameters())
        7307
    """

    def build(hidden: int) -> KernelNetwork:
        scale = {} if kernel in ("siren", "mlp") else {"input_scale": 256.0}
        return KERNELS[kernel](2, out_channels, hidden=hidden, spatial_extent=1.0, **scale)

    def excess(hidden: int) -> int:
        return abs(sum(p.numel() for p in build(hidden).parameters()) - parameters)

    with torch.random.fork_rng(devices=[]):
        width = min(range(4, 200), key=excess)
    return build(width)


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of values that span 2, as from -1 to 1.

    Example:
        >>> round(psnr(0.04), 6), psnr(0.0)
        (20.0, inf)
    """
    return 10 * math.log10(4 / mean_squared_error) if mean_squared_error else math.inf


def read_picture(path: Path, crop: int | None) -> Tensor:
    """(3, height, width) in [-1, 1]; the middle `crop` x `crop` pixels of it where given.

    Raises:
        InputError: no picture; smaller than the crop.
    """
    try:
        with opened(path) as image:
            values = np.asarray(in_colour(image), np.float32)
    except BROKEN as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error
    picture = torch.from_numpy(values).permute(2, 0, 1) / 127.5 - 1
    if crop is None:
        return picture
    height, width = picture.shape[1:]
    if min(height, width) < crop:
        raise InputError(f"{path} has {height} x {width} pixels, which is less than --crop {crop}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return picture[:, top : top + crop, left : left + crop]


def pictures_in(folder: str | Path) -> list[Path]:
    """The pictures of a folder, sorted.

    Raises:
        InputError: no folder, or none in it.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise InputError(f"--data-dir expected a folder of pictures, got {place}")
    found = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{place} holds no pictures (png, jpg, bmp, tif, webp)")
    return found


def fit_pictures(
    folder: Path,
    pictures: list[Path],
    *,
    networks: list[str],
    iterations: int,
    crop: int | None,
    seed: int,
    device: torch.device,
) -> Path:
    """Fit every network to every picture, as far as that is not done in `folder`, and write the table of mean PSNR.

    Args:
        folder: where results go; one small file for each fit, so that a stopped run goes on.
        pictures: what to fit.
        networks: some of `IMAGE_NETWORKS`.
        iterations: of Adam, at learning rate 0.01 (SIREN: 0.001).
        crop: the middle so many pixels along both edges; None for whole pictures.
        seed: of the initial weights.
        device: where.

    Returns:
        The path of result.json.

    Raises:
        InputError: `folder` holds fits with other options; pictures that cannot be read; a fit that failed.

    Source:
        FlexConv, Table 5.
    """
    if not networks:
        raise InputError(f"--networks expected some of {', '.join(IMAGE_NETWORKS)}, got none")
    for name in networks:
        if name not in IMAGE_NETWORKS:
            raise unknown_name("network", name, IMAGE_NETWORKS)
    for option, value, least in (("--iterations", iterations, 1), ("--crop", crop, 8)):
        if value is not None and value < least:
            raise InputError(f"{option} expected at least {least}, got {value}")
    for path in pictures:
        read_picture(path, crop)  # one that cannot be used is to be named now, not after hours
    recipe = {"task": "kodak_fit", "iterations": iterations, "crop": crop, "seed": seed, "parameters": PARAMETERS}
    claim_study(folder, recipe)
    print(f"results go to {folder}", flush=True)
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}
    todo = []
    for path, name in itertools.product(pictures, networks):
        place = _place(folder, name, path)
        if not place.is_file():
            todo.append((path, name))
        elif json.loads(place.read_text())["sha256"] != sums[path]:
            raise InputError(f"{folder} holds a fit of another picture called {path.name}; give another --out")
    began = time.perf_counter()
    for position, (path, name) in enumerate(todo, start=1):
        target = read_picture(path, crop).to(device)
        torch.manual_seed(seed)
        network = network_of_size(name, 3).to(device)
        positions = tap_positions(target.shape[1:], device=device)
        fitted = fit_function(network, partial(network, positions), target, iterations=iterations, lr=LR.get(name, 0.01))
        if not math.isfinite(fitted.errors[-1]):
            raise InputError(f"fitting {name} to {path} failed: the error is {fitted.errors[-1]}")
        curve = [psnr(error) for error in fitted.errors]
        about: dict[str, Any] = {
            "picture": path.name,
            "sha256": sums[path],
            "size": list(target.shape[1:]),
            "hidden": network.hidden,
            "parameters": sum(p.numel() for p in network.parameters()),
            "psnr": curve[-1],
            "curve": {"steps": fitted.steps, "psnr": curve},
            "seconds": fitted.seconds,
        }
        _write_picture(fitted.values.cpu(), _place(folder, name, path).with_suffix(".fit.png"))
        write_text(_place(folder, name, path), json.dumps(about) + "\n")
        left = duration((time.perf_counter() - began) / position * (len(todo) - position))
        print(
            f"{position} of {len(todo)}: {name}, {path.name}: {about['psnr']:.2f} dB, {fitted.seconds:.0f} s, about {left} left", flush=True
        )
    fits = {name: [json.loads(_place(folder, name, path).read_text()) for path in pictures] for name in networks}
    return _write_result(folder, pictures, fits, recipe, device)


def _write_picture(values: Tensor, path: Path) -> None:
    from PIL import Image

    pixels = ((values.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    with replacing(path) as part:
        Image.fromarray(pixels).save(part)


def _place(folder: Path, network: str, picture: Path) -> Path:
    return folder / "fits" / network / f"{picture.name}.json"


def _write_result(folder: Path, pictures: list[Path], fits: dict[str, list[Any]], recipe: dict[str, Any], device: torch.device) -> Path:
    rows = {}
    for name, results in fits.items():
        mean, spread = mean_and_spread([result["psnr"] for result in results])
        shape = {key: results[0][key] for key in ("hidden", "parameters")}
        seconds = sum(result["seconds"] for result in results)
        rows[name] = {"psnr": mean, "spread": spread, **shape, "paper_psnr": PUBLISHED_PSNR[name], "seconds": seconds}
    best = max(rows, key=lambda name: rows[name]["psnr"])
    sizes = sorted({"x".join(map(str, result["size"])) for results in fits.values() for result in results})
    lines = ["| network | width | parameters | PSNR, dB | paper: whole images, 20,000 iterations |", "|---|---|---|---|---|"]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["psnr"]):
        around = "" if row["spread"] is None else f" ± {row['spread']:.2f}"
        lines.append(f"| {name} | {row['hidden']} | {row['parameters']:,} | {row['psnr']:.2f}{around} | {row['paper_psnr']:.2f} |")
    lines += ["", f"{len(pictures)} pictures of {', '.join(sizes)} pixels, {recipe['iterations']:,} iterations; ± over pictures."]
    write_text(folder / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    first = pictures[0]
    shown = {name: read_picture(_place(folder, name, first).with_suffix(".fit.png"), None) for name in fits}
    plot_fits(fits, read_picture(first, recipe["crop"]), shown, folder / "fits.png")
    whole_kodak = len(pictures) == 24 and recipe["crop"] is None and recipe["iterations"] == 20_000
    result = {
        "task": "kodak_fit",
        "model": best,
        "parameters": rows[best]["parameters"],
        "metric": "mean PSNR in dB",
        "value": rows[best]["psnr"],
        "paper_value": PUBLISHED_PSNR[best] if whole_kodak and all(path.name.startswith("kodim") for path in pictures) else None,
        **NO_EPOCHS,
        "networks": rows,
        "pictures": [path.name for path in pictures],
        "seconds": sum(row["seconds"] for row in rows.values()),
        **where_it_ran(device, "32-true"),
        "seed": recipe["seed"],
        "dataset": {"name": "pictures", "source": str(pictures[0].parent), "sizes": {"pictures": len(pictures)}},
        "versions": versions(),
        "recipe": recipe,
    }
    return write_result(folder, result)
