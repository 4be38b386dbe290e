"""FlexNet."""

import copy
import pickle

import pytest
import torch

import flexseq as fs
from flexseq.models.flexnet import default_factors


@pytest.mark.parametrize("options", [{}, {"conv": "ck", "kernel": "siren"}, {"conv": "conv", "kernel_size": 3}, {"kernel": "gabor"}])
def test_trains(options):
    options = options if "conv" in options else {**options, "mask_sigma": 0.3}
    model = fs.FlexNet(2, 5, 2, 6, image_size=10, **options)
    y = model(torch.randn(4, 2, 10, 10))
    assert y.shape == (4, 5)
    torch.nn.functional.cross_entropy(y, torch.arange(4)).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_widths_are_the_papers():
    assert default_factors(7) == [1, 1, 1.5, 1.5, 1.5, 2, 2]
    assert default_factors(5) == [1, 1.5, 1.5, 2, 2]
    assert [len(default_factors(depth)) for depth in range(1, 20)] == list(range(1, 20))
    assert [block.norm1.num_features for block in fs.FlexNet().blocks] == [24, 24, 36, 36, 36, 48, 48]


def test_kernel_is_as_large_as_the_image_and_odd():
    assert fs.FlexNet(depth=1).conv.kernel_size == (33, 33)
    assert fs.FlexNet(depth=1, image_size=29).conv.kernel_size == (29, 29)
    assert fs.FlexNet(depth=1, kernel_size=7).conv.kernel_size == (7, 7)


def test_copies_and_files_agree(tmp_path):
    model = fs.FlexNet(depth=2, width=6, image_size=12).eval()
    x = torch.randn(2, 3, 12, 12)
    fs.save(model, tmp_path / "model.safetensors")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fs.load(tmp_path / "model.safetensors").eval()):
        torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth to be an integer of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        ({"conv": "fourier"}, "fourier"),
        ({"conv": "conv"}, "kernel_size of at least 1"),
        ({"depth": 2, "width_factors": [1.0]}, "width_factors for 2 blocks"),
        ({"width": 2, "depth": 1, "width_factors": [0.1]}, "at least one channel"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(fs.InputError, match=message):
        fs.FlexNet(**options)


def test_another_number_of_channels_is_refused():
    with pytest.raises(fs.InputError, match=r"images of shape \(batch, 3, height, width\), got shape \(2, 1, 8, 8\)"):
        fs.FlexNet(depth=1)(torch.zeros(2, 1, 8, 8))
