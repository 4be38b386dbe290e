"""CIFARResNet."""

import pytest
import torch

import flexseq as fs


def test_trains_and_halves_the_image_twice():
    model = fs.CIFARResNet(3, 5, depth=8)
    sizes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert sizes == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_shortcut_is_every_second_pixel_between_zero_channels():
    block = fs.CIFARResNet(3, 5, depth=8).blocks[1].eval()
    with torch.no_grad():
        block.norm2.weight.zero_()  # leaves the shortcut alone
    x = torch.rand(1, 16, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[..., ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("depth", [0, 2, 18, 45])
def test_depth_is_checked(depth):
    with pytest.raises(fs.InputError, match=f"6 n \\+ 2.*got {depth}"):
        fs.CIFARResNet(depth=depth)


def test_sequences_are_refused():
    with pytest.raises(fs.InputError, match=r"images of shape \(batch, 3, height, width\), got shape \(2, 3, 9\)"):
        fs.CIFARResNet()(torch.zeros(2, 3, 9))
