"""Kernel networks fitted to pictures and kernels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_bench import _own_place, bench  # noqa: F401

import flexseq as fs
from flexseq.bench.fits import fit_function
from flexseq.bench.kernel_fits import best_njet, gabor_target, kernel_targets
from flexseq.bench.picture_fits import IMAGE_NETWORKS, PARAMETERS, network_of_size, read_picture


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_pictures_are_fitted_once_and_compared(bench, pictures, tmp_path):  # noqa: F811
    options = ["kodak_fit", "--data-dir", pictures, "--iterations", "3", "--crop", "16", "--out", "fits"]
    code, out, err = bench(*options, "--networks", "magnet,siren", "--limit", "1")
    assert code == 0, err
    assert out.splitlines()[-1] == "fits/result.json"
    code, out, err = bench(*options, "--networks", "magnet,siren")
    assert code == 0, err
    assert "1 of 2: magnet, b.png" in out  # a.png is done
    result = json.loads((tmp_path / "fits" / "result.json").read_text())
    assert result["pictures"] == ["a.png", "b.png"]
    assert result["paper_value"] is None
    one = json.loads((tmp_path / "fits" / "fits" / "magnet" / "a.png.json").read_text())
    values = read_picture(tmp_path / "fits" / "fits" / "magnet" / "a.png.fit.png", None)
    target = read_picture(pictures / "a.png", 16)
    psnr = 10 * np.log10(4 / float((values - target).square().mean()))
    assert one["psnr"] == pytest.approx(psnr, abs=0.3)  # values are rounded and clipped to be shown
    assert (tmp_path / "fits" / "fits.png").stat().st_size > 5000
    code, _, err = bench(*options, "--seed", "1")
    assert code == 2
    assert "other options" in err


def test_another_picture_of_the_same_name_is_not_taken_for_fitted(bench, pictures):  # noqa: F811
    options = ["kodak_fit", "--data-dir", pictures, "--iterations", "1", "--networks", "siren", "--out", "fits"]
    assert bench(*options)[0] == 0
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(pictures / "b.png")
    code, _, err = bench(*options)
    assert code == 2
    assert "a fit of another picture called b.png" in err
    (pictures / "a.png").unlink()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(pictures / "c.png")
    (pictures / "b.png").unlink()
    assert bench(*options)[0] == 0  # another picture comes first: it can be shown


def test_networks_are_of_equal_size():
    counts = {kernel: sum(p.numel() for p in network_of_size(kernel, 3).parameters()) for kernel in IMAGE_NETWORKS}
    assert all(abs(count - PARAMETERS) < 150 for count in counts.values()), counts


def test_a_fit_approaches_its_target():
    torch.manual_seed(0)
    target = gabor_target(4.0, 17)
    network = fs.kernels.MAGNet(2, 1)
    from flexseq.positions import tap_positions

    positions = tap_positions((17, 17))
    fitted = fit_function(network, lambda: network(positions)[0], target, iterations=150, lr=0.01)
    assert fitted.errors[-1] < 0.02 * float(target.square().mean())
    assert fitted.errors[-1] == pytest.approx(float((fitted.values - target).square().mean()))
    assert fitted.steps[-1] == 150
    assert len(fitted.steps) == len(fitted.errors)


def test_njets_cannot_fit_high_frequencies_and_can_fit_their_own():
    """Least squares, with the widths searched."""
    powers = {frequency: float(gabor_target(frequency).square().mean()) for frequency in (4, 64)}
    assert best_njet(gabor_target(4)) < 1e-4 * powers[4]
    assert best_njet(gabor_target(64)) > 0.3 * powers[64]
    layer = fs.NJetConv2d(1, 1, 33, order=3, sigma=0.21, bias=False)
    with torch.no_grad():
        layer.mask.sigma.copy_(torch.tensor([0.21, 0.4]))
    own = layer.sample_kernel(crop=False)[0, 0].detach()
    assert best_njet(own) < 1e-3 * float(own.square().mean())


def test_kernels_are_fitted_once_and_compared(bench, pictures, tmp_path):  # noqa: F811
    options = ["kernel_fit", "--iterations", "2", "--data-dir", pictures, "--out", "fits"]
    code, _, err = bench(*options)
    assert code == 0, err
    code, out, err = bench(*options)
    assert code == 0, err
    assert "about" not in out  # nothing left to fit
    result = json.loads((tmp_path / "fits" / "result.json").read_text())
    assert result["errors"]["njet"].keys() == {*kernel_targets(0), "picture a.png", "picture b.png"}
    assert result["network_parameters"]["njet"] == 57
    assert (tmp_path / "fits" / "kernels.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kodak_fit"], "kodak_fit needs --data-dir"),
        (["kodak_fit", "--data-dir", "nowhere"], "expected a folder of pictures"),
        (["kodak_fit", "--data-dir", "."], "holds no pictures"),
        (["kodak_fit", "--data-dir", "pictures", "--crop", "25"], "less than --crop 25"),
        (["kodak_fit", "--data-dir", "pictures", "--networks", "mlp"], "network"),
        (["kodak_fit", "--data-dir", "pictures", "--networks", ","], "--networks expected some of"),
        (["kodak_fit", "--data-dir", "pictures", "--iterations", "0"], "--iterations expected at least 1, got 0"),
        (["kodak_fit", "--data-dir", "pictures", "--out", "pictures"], "no empty folder"),
        (["kernel_fit", "--seeds", "0"], "--seeds expected at least 1, got 0"),
    ],
)
def test_bad_options_are_named(bench, pictures, arguments, message):  # noqa: F811
    code, _, err = bench(*arguments)
    assert code == 2
    assert message in err


def test_a_broken_picture_is_named_before_anything_is_fitted(bench, pictures, tmp_path):  # noqa: F811
    (pictures / "c.png").write_bytes(b"no picture")
    code, _, err = bench("kodak_fit", "--data-dir", pictures, "--iterations", "1", "--out", "fits")
    assert code == 2
    assert "c.png cannot be read as a picture" in err
    assert not (tmp_path / "fits").exists()
