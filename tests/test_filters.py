"""Figures of a network's filters, and the report of them."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import flexseq as fs
from flexseq.analysis.filters import (
    Filters,
    by_stage,
    component_table,
    effective_size,
    gaussian_sigmas,
    mass_ratio,
    mass_table,
    principal_components,
    sigma_table,
    spatial_filters,
    stage_of,
    table,
)
from flexseq.analysis.report import load_model, write_report
from flexseq.models.causal_conv import CausalConv1d


def test_mass_ratio_by_hand():
    kernel = torch.tensor([[[1.0, 0, 0], [0, -2, 1], [0, 0, 0]], [[0.0] * 3] * 3])
    sizes, shares = mass_ratio(kernel)
    assert sizes == [1, 3]
    assert shares[0].tolist() == [0.5, 1.0]
    assert shares[1].isnan().all()
    assert effective_size(kernel).tolist() == [3, 0]
    assert effective_size(kernel, 0.5).tolist() == [1, 0]
    with pytest.raises(fs.InputError, match="share expected"):
        effective_size(kernel, 0)


def test_mass_ratio_against_numpys_windows():
    kernels = torch.randn(5, 9, 7, dtype=torch.float64)
    sizes, shares = mass_ratio(kernels)
    values = kernels.abs().numpy()
    for size, share in zip(sizes, shares.T, strict=True):
        half = size // 2
        inside = values[:, max(0, 4 - half) : 5 + half, max(0, 3 - half) : 4 + half].sum((1, 2))
        np.testing.assert_allclose(share, inside / values.sum((1, 2)))


def test_gaussians_come_back():
    t = torch.arange(-10, 11, dtype=torch.float64)
    kernels = torch.stack([torch.exp(-0.5 * ((t[:, None] - 1) / s) ** 2 - 0.5 * (t / w) ** 2) for s, w in ((1.5, 3.0), (2.0, 1.0))])
    kernels = torch.cat([kernels, torch.zeros(1, 21, 21, dtype=torch.float64)])
    found = gaussian_sigmas(kernels)
    assert sorted([round(s, 3), round(w, 3)] for s, w in found.tolist()) == [[1.5, 3.0], [2.0, 1.0]]


def test_gaussians_that_end_at_a_bound_are_left_out():
    flat = torch.ones(1, 5, 5)  # the nearest Gaussian is as wide as it may be
    assert gaussian_sigmas(flat).shape == (0, 2)
    assert np.isnan(sigma_table({"a": Filters("a", "Conv2d", flat, flat)})[0]["ratio"])


def test_ratios_of_sigmas_do_not_favour_an_axis():
    t = torch.arange(-8, 9, dtype=torch.float64)
    wide = torch.stack([torch.exp(-0.5 * (t[:, None] / s) ** 2 - 0.5 * (t / w) ** 2) for s, w in ((1.0, 2.0), (2.0, 1.0), (1.5, 1.5))])
    (row,) = sigma_table({"a": Filters("a", "Conv2d", wide, wide)})
    assert abs(row["ratio"] - 1) < 1e-3
    assert abs(row["ratio_low"] - 0.75) < 1e-3
    assert abs(row["ratio_high"] - 1.5) < 1e-3


def test_causal_kernels_are_measured_from_their_present_tap():
    model = fs.TCN(1, 2, depth=1, width=2, kernel_size=4)
    for module in model.modules():
        if isinstance(module, CausalConv1d):
            with torch.no_grad():
                module.weight.zero_()
                module.weight[..., -1] = 1
    for one in spatial_filters(model):
        assert effective_size(one.kernels).tolist() == [1] * len(one.kernels)


def test_layers_without_weights_are_named():
    with pytest.raises(fs.InputError, match="LazyConv2d has no weights yet"):
        spatial_filters(nn.LazyConv2d(4, 3))


def test_the_report_tells_kinds_of_kernels_apart(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), fs.NIFFConv2d(4, 4, 12, groups=4))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    text = write_report(model, tmp_path).read_text()
    assert "of 13 samples (NIFFConv2d, 4 kernels), 3.0 of 3 samples (Conv2d, 4 kernels)." in text
    assert "Kernels are cut to 5 samples" in write_report(model, tmp_path, size=5).read_text()


def test_components_are_an_svds():
    values = torch.randn(30, 3, 3)
    components, explained = principal_components(values, 4)
    centred = values.flatten(1).double() - values.flatten(1).double().mean(0)
    _, s, v = np.linalg.svd(centred.numpy(), full_matrices=False)
    np.testing.assert_allclose(explained, (s**2 / (s**2).sum())[:4], rtol=1e-4)
    np.testing.assert_allclose(np.abs((components.flatten(1).double().numpy() * v[:4]).sum(1)), 1, atol=1e-4)
    assert len(principal_components(torch.ones(4, 3))[0]) == 0


@pytest.mark.parametrize("grid", [(7, 5), (8, 6)], ids=str)
@pytest.mark.parametrize("kind", ["niff", "cf"])
def test_spectrum_of_a_layer_of_frequencies_is_its_networks(grid, kind):
    layer = fs.NIFFConv2d(1, 2, grid) if kind == "niff" else fs.CFConv2d(1, 2, grid)
    (filters,) = spatial_filters(layer)
    spectrum = torch.fft.ifftshift(filters.spectra, (1, 2))[..., : grid[1] // 2 + 1]
    assert torch.allclose(spectrum, layer.sample_spectrum().detach()[:, 0], atol=1e-5)


def test_spectra_of_plain_kernels():
    conv = nn.Conv1d(1, 2, 3)
    (filters,) = spatial_filters(conv)
    turned = torch.roll(torch.flip(conv.weight.detach()[:, 0], (1,)), -1, 1)  # as a convolution, the present tap first
    assert torch.allclose(torch.fft.ifftshift(filters.spectra, 1), torch.fft.fft(turned), atol=1e-6)


def test_filters_of_every_kind_of_layer():
    model = nn.ModuleDict(
        {
            "flex": fs.FlexConv2d(1, 2, 9),
            "causal": fs.FlexConv1d(1, 2, 6, causal=True),
            "niff": fs.NIFFConv2d(2, 2, 8),
            "dilated": nn.Conv1d(1, 3, 3, dilation=2),
            "point": nn.Conv2d(2, 2, 1),
            "even": nn.Conv2d(1, 1, 4, padding="same"),
        }
    )
    found = {one.layer: one for one in spatial_filters(model)}
    assert {name: one.grid for name, one in found.items()} == {
        "flex": (9, 9),
        "causal": (11,),
        "niff": (9, 9),
        "dilated": (5,),
        "even": (5, 5),
    }
    assert not found["causal"].kernels[:, 6:].any()  # the present in the middle, no future
    assert torch.equal(found["dilated"].kernels[:, ::2], model["dilated"].weight.detach().flatten(0, 1))
    assert all(one.grid == (7,) * len(one.grid) for one in spatial_filters(model, 7))
    with pytest.raises(fs.InputError, match="odd number"):
        spatial_filters(model, 8)
    with pytest.raises(fs.InputError, match="no kernel size yet"):
        spatial_filters(fs.NIFFConv2d(1, 1))


def test_stages():
    assert stage_of("conv") == "conv"
    assert stage_of("network.blocks.3.conv1.0") == "network.blocks.3"
    model = nn.ModuleDict({"layer1": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), "layer2": nn.Conv2d(2, 1, 5)})
    stages = by_stage(spatial_filters(model))
    assert {name: len(one.kernels) for name, one in stages.items()} == {"layer1": 6, "layer2": 2}
    assert list(by_stage(spatial_filters(model), lambda name: "all")) == ["all (3x3)", "all (5x5)"]


def test_no_kernels_are_lost_between_stages():
    model = nn.ModuleDict(
        {"layer1": nn.ModuleList([nn.Conv2d(1, 3, 3), nn.Conv2d(1, 4, 5), fs.NIFFConv2d(1, 2, 4), fs.NIFFConv2d(1, 2, 5)])}
    )
    for size in (None, 7):
        filters = spatial_filters(model, size)
        stages = by_stage(filters, lambda layer: "all")
        assert sum(len(one.kernels) for one in stages.values()) == 11
        assert all(one.kernels.shape[0] == one.spectra.shape[0] for one in stages.values())


def test_layers_of_zeros_and_even_axes():
    conv = nn.Conv2d(1, 2, 3)
    nn.init.zeros_(conv.weight)
    (row,) = table(conv)
    assert all(np.isnan(row[key]) for key in ("size", "mass_3", "mass_5", "mass_7"))
    with pytest.raises(fs.InputError, match="axes of odd size"):
        mass_ratio(torch.ones(1, 4, 4))


def test_table_is_one_for_pandas():
    pandas = pytest.importorskip("pandas")
    conv = nn.Conv2d(1, 2, 3)
    with torch.no_grad():
        conv.weight[0] = 0
        conv.weight[1] = torch.eye(3)
    frame = pandas.DataFrame(table(nn.Sequential(conv)))
    assert frame.loc[0, "zeros"] == 1
    assert frame.loc[0, "size"] == 3
    assert frame.loc[0, "mass_7"] == 1
    stages = by_stage(spatial_filters(nn.Sequential(conv)))
    rows = mass_table(stages)
    assert [(row["window"], row["kernels"]) for row in rows] == [(1, 1), (3, 1)]
    assert abs(rows[0]["mean"] - 1 / 3) < 1e-6
    rows = component_table(by_stage(spatial_filters(nn.Conv2d(2, 8, 3))))
    assert [row["component"] for row in rows if row["of"] == "kernels"] == list(range(1, 10))
    assert {row["of"] for row in rows} == {"kernels", "real", "imaginary"}
    assert sigma_table(by_stage(spatial_filters(nn.Sequential(nn.Conv1d(1, 1, 3))))) == []


@pytest.mark.parametrize("kind", ["images", "series"])
def test_report_is_one_file_with_its_pictures(kind, tmp_path):
    if kind == "images":
        model, _ = fs.to_niff(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)), size="small")
        model(torch.randn(1, 1, 12, 12))
    else:
        model = fs.FlexTCN(depth=1, width=4, kernel_size=30)
    text = write_report(model, tmp_path / "new", title="a <title>").read_text()
    assert "a &lt;title&gt;" in text
    assert text.count("data:image/png;base64,") == (5 if kind == "images" else 4)
    assert "<link" not in text
    assert not any(one in text for one in ("http://", "https://", 'src="http'))


def test_report_of_a_layer_of_zeros(tmp_path):
    model = nn.Conv2d(1, 2, 3)
    nn.init.zeros_(model.weight)
    assert write_report(model, tmp_path).is_file()


def test_command_line(tmp_path):
    model = fs.FlexTCN(depth=1, width=4, kernel=functools.partial(fs.kernels.MAGNet, hidden=4), kernel_size=20)
    fs.save(model, tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "flexseq.analysis"]
    for source in (tmp_path, tmp_path / "model.safetensors"):
        done = subprocess.run([*command, str(source), "--out", str(tmp_path / "out")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(tmp_path / "out" / "report.html")
    failed = subprocess.run([*command, str(tmp_path / "nothing"), "--out", str(tmp_path)], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.strip().endswith("no such file")


def test_nothing_to_report(tmp_path):
    with pytest.raises(fs.InputError, match="no convolutions of more than one tap"):
        write_report(nn.Linear(2, 2), tmp_path)
    with pytest.raises(fs.InputError, match=r"once it is finished"):
        load_model(tmp_path)


def test_causal_kernels_are_reported_in_samples_up_to_the_current_one(tmp_path):
    model = fs.FlexTCN(1, 2, depth=2, width=4, kernel_size=64, mask_sigma=0.3)
    rows = [row for row in table(model) if row["kind"] == "FlexConv1d"]
    assert {row["grid"] for row in rows} == {"64"}
    crop = model.blocks[0].conv1.sample_kernel().shape[-1]
    for row, layer in zip(rows, [conv for block in model.blocks for conv in (block.conv1, block.conv2)], strict=True):
        kernels = layer.sample_kernel(crop=False).detach().flatten(0, 1).abs()
        shares = kernels.flip(1).cumsum(1) / kernels.sum(1, keepdim=True)
        assert row["size"] == pytest.approx(float((shares >= 0.95 - 1e-6).int().argmax(1).add(1).double().mean()))
        assert row["mass_5"] == pytest.approx(float(shares[:, 4].mean()), abs=1e-4)
        assert row["size"] < crop + 5
    text = write_report(model, tmp_path).read_text()
    assert "of 64 samples (FlexConv1d" in text
    assert "of 127" not in text
    assert "square" not in text
    assert "red above" not in text
    assert "within the last samples, up to the current one" in text


def test_kernels_of_nan_are_named(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(fs.InputError, match="0 has a kernel of NaN or infinite values"):
        write_report(model, tmp_path / "rep")
    assert not (tmp_path / "rep").exists()


def test_an_estimators_file_is_reported(tmp_path):
    import numpy as np

    from flexseq.estimators import FlexTCNClassifier

    fitted = FlexTCNClassifier(depth=1, width=4, epochs=1, random_state=0).fit(np.random.default_rng(0).normal(size=(8, 1, 12)), [0, 1] * 4)
    fitted.save(tmp_path / "c")
    done = subprocess.run(
        [sys.executable, "-m", "flexseq.analysis", str(tmp_path / "c.zip"), "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "of 12 samples" in (tmp_path / "out" / "report.html").read_text()
