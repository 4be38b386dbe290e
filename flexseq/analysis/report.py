"""What did a network learn? One HTML file with everything in it."""

import base64
import html
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flexseq.analysis import filter_plots
from flexseq.analysis.filters import FITTED, by_stage, sigma_table, spatial_filters, stage_of, table
from flexseq.analysis.masks import masks_over_depth
from flexseq.errors import InputError
from flexseq.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stage = Callable[[str], str]
NAME = "report.html"
MOST_STAGES = 8
"""Where names tell apart more, layers are put together by the size that their kernels could have."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; display: block; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
td, th { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } .note { color: #555; }
"""


def write_report(model: nn.Module, folder: str | Path, *, title: str = "", size: int | None = None, stage: Stage = stage_of) -> Path:
    """Write `report.html` into a folder: sizes, mass, shape, principal components and pictures of all kernels of a model.

    Args:
        model: any module with convolutions of more than one tap, over one or two axes.
        folder: made where it is not there; a report in it is replaced.
        title: of the page; the model's class by default.
        size: samples along each axis at which kernels are compared, odd; each layer's own by default.
        stage: from a layer's name to that of the stage that it is counted to.

    Returns:
        The file's path. It needs nothing beside itself.

    Raises:
        InputError: no such convolutions; a layer that has not seen an input yet.
    """
    filters = [one for one in spatial_filters(model, size) if one.kernels.ndim <= 3]
    if not filters:
        raise InputError(f"{type(model).__name__} has no convolutions of more than one tap over one or two axes to report on")
    stages = by_stage(filters, stage)
    if len(stages) > MOST_STAGES:
        stages = by_stage(filters, lambda layer: "kernels")  # told apart by their grids
    rows = table(filters)
    kernels = sum(row["kernels"] for row in rows)
    cut = "" if size is None else f" Kernels are cut to {size} samples, or filled up with zeros, and shares are of what is left."
    parameters = sum(p.numel() for p in model.parameters())
    of_time, causal = all(one.kernels.ndim == 2 for one in filters), [one.causal for one in filters]
    window = (
        "the last samples, up to the current one," if all(causal) else "windows around the current sample" if of_time else "centred squares"
    )
    of_causal = " Causal kernels are measured from the current sample back." if any(causal) and not all(causal) else ""
    scale = "over the samples from the current one (0); the line is a weight of 0" if of_time else "red above and blue below 0"
    parts = [
        f"<h1>{html.escape(title or type(model).__name__)}</h1>",
        f"<p>{len(filters)} layers with {kernels:,} kernels of more than one tap; {parameters:,} parameters. "
        f"On average 95 % of a kernel's mass lies within {_sizes(rows)}.{cut}</p>",
        "<h2>How large are the kernels?</h2>",
        _image(filter_plots.plot_mass(stages), f"share of the mass over {window}"),
        f'<p class="note">The share of the sum of absolute values within {window}; mean and standard deviation over the kernels of '
        f"each stage. Kernels without any mass are left out.{of_causal}</p>",
        _table(
            rows,
            ("layer", "kind", "grid", "kernels", "zeros", "size", "size_std", "mass_3", "mass_5", "mass_7"),
            ("layer", "kind", "could be", "kernels", "zeros", "95 % within", "±", "within 3", "within 5", "within 7"),
        ),
        "<h2>The heaviest kernels</h2>",
        _image(filter_plots.plot_kernels(stages), "kernels"),
        f'<p class="note">Each of its own scale, {scale}; larger ones a second time, the {filter_plots.ZOOM} samples next to the current '
        "one.</p>",
        "<h2>Principal components of the kernels</h2>",
        _image(filter_plots.plot_components(stages), "principal components"),
        f'<p class="note">The {filter_plots.ZOOM} samples next to the current one, and the share of the variance that each explains.</p>',
    ]
    sigmas = sigma_table(stages)
    if sigmas:
        parts += [
            "<h2>Are they square?</h2>",
            _image(filter_plots.plot_sigma_ratios(sigmas), "ratio of widths"),
            _table(
                sigmas,
                ("stage", "fitted", "sigma_rows", "sigma_columns", "ratio", "ratio_low", "ratio_high"),
                ("stage", "kernels", "sigma down", "sigma across", "across / down", "a quarter is below", "a quarter is above"),
            ),
            f'<p class="note">Gaussians fitted to the absolute values of up to {FITTED} kernels of each stage, evenly chosen: medians, in '
            "samples, and quartiles.</p>",
        ]
    parts += [
        "<h2>Principal components of the spectra</h2>",
        _image(filter_plots.plot_spectrum_components(stages), "principal components of the spectra"),
        '<p class="note">Frequency 0 is in the middle.</p>',
    ]
    masks: list[dict[str, Any]] = [
        {"layer": row["layer"], "sigma": ", ".join(f"{value:.3f}" for value in _numbers(row["sigma"]))} for row in masks_over_depth(model)
    ]
    if masks:
        parts += ["<h2>Masks</h2>", _table(masks, ("layer", "sigma"), ("layer", "sigma, of a kernel from -1 to 1"))]
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title or type(model).__name__)}</title>'
    page += f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>{"".join(parts)}</body></html>\n'
    path = Path(folder) / NAME
    try:
        write_text(path, page)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return path


def load_model(path: str | Path) -> nn.Module:
    """The network of a run's folder, with its final weights, of a file of `flexseq.save`, or of an estimator's zip.

    Raises:
        InputError: there is none.
    """
    from flexseq.saving import load, load_from_zip

    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        where = "a folder of a run holds model.safetensors once it is finished" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {where}")
    return load_from_zip(file) if zipfile.is_zipfile(file) else load(file)


def _sizes(rows: list[dict[str, Any]]) -> str:
    """The mean effective size of the kernels of each kind and grid, the largest first, as part of a sentence."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if not math.isnan(row["size"]):
            groups.setdefault((row["kind"], row["grid"]), []).append(row)
    parts = []
    for (kind, grid), members in sorted(groups.items(), key=lambda item: -math.prod(map(int, item[0][1].split("x")))):
        count = sum(row["kernels"] - row["zeros"] for row in members)
        size = sum(row["size"] * (row["kernels"] - row["zeros"]) for row in members) / count
        parts.append(f"{size:.1f} of {grid.split('x')[-1]} samples ({html.escape(kind)}, {count:,} kernels)")
    return ", ".join(parts[:6]) + (", ..." if parts[6:] else "") if parts else "no samples: all kernels are 0"


def _numbers(values: object) -> Sequence[float]:
    assert isinstance(values, list)
    return values


def _image(figure: "Figure", description: str) -> str:
    buffer = io.BytesIO()
    with torch.no_grad():
        figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def _table(rows: list[dict[str, Any]], columns: Sequence[str], heads: Sequence[str]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "" if math.isnan(value) else f"{value:.2f}"
        return f"{value:,}" if isinstance(value, int) else html.escape(str(value))

    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell(row[column])}</td>" for column in columns) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
