"""How large are the filters of a network? Spatial kernels of any layer, their mass, sizes, shapes and principal components, as data."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexseq.errors import InputError
from flexseq.models.causal_conv import CausalConv1d
from flexseq.nn.cfconv import CFConv
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.niff import NIFFConv
from flexseq.positions import taps_around

FITTED = 40
"""Kernels of a stage to which Gaussians are fitted, evenly chosen."""
DECOMPOSED = 4096
"""Kernels of a stage whose principal components are taken, evenly chosen."""


@dataclass(frozen=True)
class Filters:
    """The kernels of a layer in space.

    Args:
        layer: the module's name.
        kind: its class.
        kernels: (kernels, *grid) in float32 on the CPU, one for each pair of channels, as a cross-correlation applies them; every axis has
            an odd number of samples with the present one in the middle.
        spectra: (kernels, *bins), their Fourier transforms as convolutions, frequency 0 in the middle (of an even number the one after it);
            of NIFF and CF-Conv on their own bins, of others on the grid of `kernels`.
        causal: whether the kernels see the present and the past alone: half of each is zeros.
    """

    layer: str
    kind: str
    kernels: Tensor
    spectra: Tensor
    causal: bool = False

    @property
    def grid(self) -> tuple[int, ...]:
        """Samples along each axis."""
        return tuple(self.kernels.shape[1:])

    @property
    def extent(self) -> tuple[int, ...]:
        """Samples along each axis that the kernels can use; of causal ones those up to the current one."""
        return tuple(self.reach(size) for size in self.grid)

    def reach(self, window: int) -> int:
        """Samples of a centred window that the kernels can use: of causal ones, those up to the current one."""
        return (window + 1) // 2 if self.causal else window

    @property
    def shown(self) -> Tensor:
        """The kernels without the half that is zeros because they are causal: (kernels, *grid)."""
        kernels = self.kernels
        for axis, size in enumerate(self.extent, start=1):
            kernels = kernels.narrow(axis, 0, size)
        return kernels


@torch.no_grad()
def spatial_filters(model: nn.Module, size: int | None = None) -> list[Filters]:
    """The kernels of every convolution of a model with more than one tap, over one or two axes or of this library, in order.

    Plain convolutions are spread by their dilation; FlexConv's and its relatives' kernels are masked, all their taps shown; NIFF's reach
    half an image each way, and an even image's outermost sample stands on one side.

    Args:
        model: any module; a 1x1 convolution is left out.
        size: samples along every axis: kernels are cut or padded with zeros; odd. By default each layer's own.

    Raises:
        InputError: an even size, or one below 1; a layer that has not seen an input yet and so has no size, or no weights.
    """
    if size is not None and (size < 1 or size % 2 == 0):
        raise InputError(f"size expected an odd number of samples, so that one is in the middle, got {size}")
    found = []
    for name, module in model.named_modules():
        sampled = _sampled(module)
        if sampled is None or max(sampled[0].shape[2:]) == 1:
            continue
        kernel, present, causal = sampled
        kernels = _centred(kernel.flatten(0, 1).float().cpu(), present)
        if size is not None:
            kernels = _resized(kernels, size)
        spectra = _own_spectra(module) if isinstance(module, NIFFConv | CFConv) else _spectra(kernels)
        if not kernels.isfinite().all():
            raise InputError(f"{name or type(module).__name__} has a kernel of NaN or infinite values, of which there is nothing to report")
        found.append(Filters(name or type(module).__name__, type(module).__name__, kernels, spectra, causal))
    return found


def stage_of(layer: str) -> str:
    """The stage that a layer's name speaks of: all up to its first part with a digit.

    Example:
        >>> stage_of("layer1.0.conv2"), stage_of("encoder.stages.2.layers.0.conv"), stage_of("stem")
        ('layer1', 'encoder.stages.2', 'stem')
    """
    parts = layer.split(".")
    for i, part in enumerate(parts):
        if re.search(r"\d", part):
            return ".".join(parts[: i + 1])
    return layer


def by_stage(filters: Sequence[Filters], stage: Callable[[str], str] = stage_of) -> dict[str, Filters]:
    """Filters of a stage put together; within one stage, those of each grid."""
    groups: dict[tuple[str, Any], list[Filters]] = {}
    for one in filters:
        groups.setdefault((stage(one.layer), (one.grid, one.spectra.shape[1:], one.causal)), []).append(one)
    names = [name for name, _ in groups]
    joined: dict[str, Filters] = {}
    for (name, (_, bins, causal)), members in groups.items():
        extent = Filters("", "", members[0].kernels, members[0].spectra, causal).extent
        label = name if names.count(name) == 1 else f"{name} ({'x'.join(map(str, extent))})"
        if label in joined:  # of the same size, but with other bins
            label = f"{label}, spectra of {'x'.join(map(str, bins))}"
        kernels, spectra = torch.cat([one.kernels for one in members]), torch.cat([one.spectra for one in members])
        joined[label] = Filters(label, members[0].kind, kernels, spectra, causal)
    return joined


def mass_ratio(kernels: Tensor) -> tuple[list[int], Tensor]:
    """The share of a kernel's mass, the sum of its absolute values, within centred squares of growing size.

    Args:
        kernels: (kernels, *grid), odd axes.

    Returns:
        The sizes, 1, 3, 5, ..., and the shares, (kernels, sizes), in [0, 1]; NaN for a kernel of zeros, which has no mass to share.

    Source:
        NIFF, Eq. 6, with odd windows.

    Example:
        >>> mass_ratio(torch.tensor([[0.0, -1.0, 2.0, 1.0, 0.0]]))
        ([1, 3, 5], tensor([[0.5000, 1.0000, 1.0000]]))
    """
    if any(size % 2 == 0 for size in kernels.shape[1:]):
        raise InputError(f"mass_ratio expected axes of odd size, with a sample in the middle, got shape {tuple(kernels.shape)}")
    ring = _rings(kernels.shape[1:])
    masses = kernels.new_zeros(len(kernels), int(ring.max()) + 1)
    masses.index_add_(1, ring.flatten(), kernels.abs().flatten(1))
    total = masses.sum(1, keepdim=True)
    shares = (masses.cumsum(1) / total).clamp_max(1)
    return [2 * i + 1 for i in range(masses.shape[1])], torch.where(total > 0, shares, torch.nan)


def effective_size(kernels: Tensor, share: float = 0.95) -> Tensor:
    """The side of the smallest centred square that holds a share of a kernel's mass: (kernels,), odd; 0 for a kernel of zeros."""
    if not 0 < share <= 1:
        raise InputError(f"share expected above 0 and at most 1, got {share}")
    sizes, shares = mass_ratio(kernels)
    reached = shares >= share - 1e-6
    index = reached.int().argmax(1)
    return torch.where(reached.any(1), torch.tensor(sizes)[index], 0)


def gaussian_sigmas(kernels: Tensor, most: int = FITTED) -> Tensor:
    """Widths of the Gaussian, with its own height, centre and width along each axis, that is nearest to a kernel's absolute values.

    Args:
        kernels: (kernels, *grid).
        most: fit to so many, evenly chosen among those with any mass.

    Returns:
        (fitted, ndim), in samples; kernels where nothing fits are left out, such as those whose nearest Gaussian is of no size between a
        tenth of a sample and four times the grid.

    Source:
        NIFF, appendix A: "Non-square kernels".
    """
    import numpy as np
    from scipy.optimize import curve_fit

    ndim = kernels.ndim - 1
    kernels = kernels.detach()
    kernels = _evenly(kernels[kernels.abs().flatten(1).sum(1) > 0], most)
    grids = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in kernels.shape[1:]], indexing="ij")).reshape(ndim, -1).astype(float)

    def gaussian(points: Any, height: float, *rest: float) -> Any:
        centre, sigma = np.array(rest[:ndim]), np.array(rest[ndim:])
        return height * np.exp(-0.5 * (((points - centre[:, None]) / sigma[:, None]) ** 2).sum(0))

    found = []
    for kernel in kernels:
        values = kernel.abs().flatten().double().numpy()
        weights = values / values.sum()
        centre = (grids * weights).sum(1)
        sigma = np.sqrt(((grids - centre[:, None]) ** 2 * weights).sum(1)).clip(0.3)
        largest = np.array(kernels.shape[1:], float)
        narrowest, widest = np.full(ndim, 0.1), 4 * largest
        low, high = [0, *(-largest / 2), *narrowest], [np.inf, *(largest / 2), *widest]
        try:
            best, _ = curve_fit(gaussian, grids, values, p0=[values.max(), *centre, *sigma], bounds=(low, high), max_nfev=200)
        except (RuntimeError, ValueError):  # no convergence; infinite values
            continue
        sigma = best[1 + ndim :]
        if (sigma > 1.01 * narrowest).all() and (sigma < 0.99 * widest).all():  # else it ended where it was not let further
            found.append(sigma)
    return torch.tensor(np.array(found)).reshape(len(found), ndim)


def principal_components(values: Tensor, count: int = 9) -> tuple[Tensor, Tensor]:
    """Principal components of kernels, or of their spectra.

    Args:
        values: (kernels, *grid).
        count: components at most.

    Returns:
        (components, *grid), and the share of the variance that each explains; none where there is no variance.
    """
    import numpy as np
    from sklearn.decomposition import PCA

    rows = _evenly(values, DECOMPOSED).detach().flatten(1).double().numpy()
    if len(rows) < 2 or not np.ptp(rows, 0).any():
        return values.new_zeros(0, *values.shape[1:]), values.new_zeros(0)
    pca = PCA(min(count, *rows.shape), random_state=0).fit(rows)
    components = torch.from_numpy(pca.components_).float().unflatten(1, values.shape[1:])
    return components, torch.from_numpy(pca.explained_variance_ratio_).float()


def _own_spectra(layer: NIFFConv | CFConv) -> Tensor:
    """What the layer's networks, or its state, give: whole, (kernels, *bins), frequency 0 in the middle."""
    half = layer.sample_spectrum().flatten(0, 1)
    axes = list(range(1, half.ndim))
    grid = layer.sample_kernel().shape[2:]
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.irfftn(half, s=list(grid), dim=axes), dim=axes), axes).to(torch.complex64).cpu()


def _spectra(kernels: Tensor) -> Tensor:
    """Fourier transforms of kernels, as convolutions: (kernels, *grid), complex, frequency 0 in the middle."""
    axes = list(range(1, kernels.ndim))
    turned = torch.flip(kernels, axes)  # a correlation's taps, from right to left
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(turned, axes), dim=axes), axes)


def table(model_or_filters: nn.Module | Sequence[Filters], *, share: float = 0.95) -> list[dict[str, Any]]:
    """One row for each layer, as pandas.DataFrame takes them.

    Returns:
        Dicts of `layer`, `stage`, `kind`, `grid`, `kernels`, `zeros` (kernels without mass), `size` and `size_std` (effective size for that
        share of the mass, mean and standard deviation), `causal`, and of each window `mass_3`, `mass_5`, `mass_7` (mean share within).
        Windows are centred; of causal kernels they are the last samples, up to the current one, and so are `grid` and `size`.
    """
    filters = spatial_filters(model_or_filters) if isinstance(model_or_filters, nn.Module) else model_or_filters
    rows = []
    for one in filters:
        sizes, shares = mass_ratio(one.kernels)
        effective = effective_size(one.kernels, share).double()
        there = effective > 0
        row: dict[str, Any] = {
            "layer": one.layer,
            "stage": stage_of(one.layer),
            "kind": one.kind,
            "grid": "x".join(map(str, one.extent)),
            "kernels": len(one.kernels),
            "zeros": int((~there).sum()),
            "size": float(one.reach(1) + (effective[there] - 1).mean() / (2 if one.causal else 1)),
            "size_std": float(effective[there].std()) / (2 if one.causal else 1) if there.sum() > 1 else 0.0,
            "causal": one.causal,
        }
        for window in (3, 5, 7):
            whole = 2 * window - 1 if one.causal else window
            within = shares[there][:, sizes.index(whole)] if whole in sizes else torch.ones(int(there.sum()))
            row[f"mass_{window}"] = float(within.mean())
        rows.append(row)
    return rows


def mass_table(stages: Mapping[str, Filters]) -> list[dict[str, Any]]:
    """The curves of the mass over the window: one row for each stage and window, as pandas.DataFrame takes them.

    Returns:
        Dicts of `stage`, `grid`, `window` (side of the centred square; of causal kernels, the last samples), `mean` and `std` of the share
        within it, over the `kernels` that have any mass.

    Source:
        NIFF, Eq. 6 and Fig. 4.
    """
    rows = []
    for name, one in stages.items():
        sizes, shares = mass_ratio(one.kernels)
        shares = shares[~shares[:, 0].isnan()].double()
        for size, values in zip(sizes, shares.T, strict=True):
            std = float(values.std()) if len(values) > 1 else 0.0
            mean = float(values.mean()) if len(values) else float("nan")
            grid = "x".join(map(str, one.extent))
            rows.append({"stage": name, "grid": grid, "window": one.reach(size), "mean": mean, "std": std, "kernels": len(values)})
    return rows


def component_table(stages: Mapping[str, Filters], count: int = 9) -> list[dict[str, Any]]:
    """The variance that principal components explain: one row for each stage (or layer, from a dict of those) and component.

    Returns:
        Dicts of `stage`, `of` ("kernels", or the "real" or "imaginary" part of the spectra), `component` (from 1) and `explained`.

    Source:
        NIFF, Figs. 1, 6 and A14.
    """
    rows = []
    for name, one in stages.items():
        for of, values in (("kernels", one.kernels), ("real", one.spectra.real), ("imaginary", one.spectra.imag)):
            _, explained = principal_components(values, count)
            rows += [{"stage": name, "of": of, "component": i + 1, "explained": float(share)} for i, share in enumerate(explained)]
    return rows


def sigma_table(stages: Mapping[str, Filters]) -> list[dict[str, Any]]:
    """One row for each stage: the ratio of a fitted Gaussian's widths, across to down, in 2-D; medians, and the ratio's quartiles.

    Returns:
        Dicts of `stage`, `fitted` (how many), `ratio`, `ratio_low`, `ratio_high`, `sigma_rows` and `sigma_columns`; NaN where none fitted.
    """
    rows = []
    for name, one in stages.items():
        if one.kernels.ndim != 3 or min(one.grid) < 3:
            continue
        down, across = gaussian_sigmas(one.kernels).T
        rows.append(
            {
                "stage": name,
                "fitted": len(down),
                "ratio": _quantile(across / down, 0.5),
                "ratio_low": _quantile(across / down, 0.25),
                "ratio_high": _quantile(across / down, 0.75),
                "sigma_rows": _quantile(down, 0.5),
                "sigma_columns": _quantile(across, 0.5),
            }
        )
    return rows


def _quantile(values: Tensor, share: float) -> float:
    return float(values.quantile(share)) if len(values) else float("nan")


def _evenly(values: Tensor, most: int) -> Tensor:
    """At most so many of the rows, evenly chosen."""
    return values[:: max(1, -(-len(values) // most))]


def _sampled(module: nn.Module) -> tuple[Tensor, list[int], bool] | None:
    """A layer's kernel, (out, in / groups, *taps), its current tap along each axis, and whether it is causal."""
    if isinstance(module, ContinuousConv):
        if module.kernel_size is None:
            raise InputError(f"{type(module).__name__} has no kernel size yet: give it an input first")
        around = [taps_around(size, causal=module.causal, ratio=module.ratio) for size in module.kernel_size]
        return module.sample_kernel(crop=False), [before for before, _ in around], module.causal
    if isinstance(module, NIFFConv | CFConv):
        kernel = module.sample_kernel()
        return kernel, [(size - 1) // 2 for size in kernel.shape[2:]], False
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if isinstance(module.weight, nn.UninitializedParameter):
            raise InputError(f"{type(module).__name__} has no weights yet: give it an input first")
        kernel, causal = (module.kernel(), True) if isinstance(module, CausalConv1d) else (module.weight, False)
        for axis, dilation in enumerate(module.dilation, start=2):
            if dilation > 1:
                spread = kernel.new_zeros(*kernel.shape[:axis], (kernel.shape[axis] - 1) * dilation + 1, *kernel.shape[axis + 1 :])
                spread.index_copy_(axis, torch.arange(kernel.shape[axis], device=kernel.device) * dilation, kernel)
                kernel = spread
        return kernel, [size - 1 if causal else (size - 1) // 2 for size in kernel.shape[2:]], causal
    return None


def _centred(kernels: Tensor, present: Sequence[int]) -> Tensor:
    """Zeros added on one side of each axis, so that the present tap is in the middle."""
    padding: list[int] = []
    for size, before in zip(reversed(kernels.shape[1:]), reversed(present), strict=True):
        half = max(before, size - 1 - before)
        padding += [half - before, half - (size - 1 - before)]
    return F.pad(kernels, padding)


def _resized(kernels: Tensor, size: int) -> Tensor:
    return F.pad(kernels, [(size - have) // 2 for have in reversed(kernels.shape[1:]) for _ in range(2)])


def _rings(grid: Sequence[int]) -> Tensor:
    """How far from the middle each sample is, along the axis on which it is furthest."""
    distances = torch.meshgrid(*[(torch.arange(n) - n // 2).abs() for n in grid], indexing="ij")
    return torch.stack(distances).amax(0)
