"""NIFF layers: against the original's arrays, scipy, and the papers' own way of computing them."""

import warnings

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from conftest import Golden, relative
from torch import nn

import flexseq as fs
from flexseq.functional.circular_conv import circular_conv, half_grid, mirrored, of_real, resample
from flexseq.nn.frequency import ComplexBatchNorm, FLCPool1d, FLCPool2d, FrequencyAvgPool, FrequencyFLCPool, FrequencyLinear
from flexseq.positions import bin_frequencies


@pytest.mark.parametrize("size", ["small", "big"])
def test_depthwise_golden(size):
    case = Golden(f"niff_depthwise_{size}")
    layer = fs.NIFFConv2d(6, 6, groups=6, kernel=size).eval()
    fs.compat.load_niff(layer, case.state)
    assert relative(layer(case.arrays["x"]), case.arrays["y"]) < 1e-5


def test_full_golden():
    case = Golden("niff_full")
    layer = fs.NIFFConv2d(6, 4, kernel="tiny").eval()
    fs.compat.load_niff(layer, case.state)
    assert relative(layer(case.arrays["x"]), case.arrays["y"]) < 1e-5


def test_pointwise_golden_is_a_spatial_1x1():
    case = Golden("niff_pointwise")
    weight, x = case.state["mlp.weight"].flatten(1), case.arrays["x"]
    assert relative(F.conv2d(x, weight[..., None, None]), case.arrays["y"]) < 1e-5
    layer = FrequencyLinear(6, 10, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    spectrum = torch.fft.rfftn(x, dim=(2, 3), norm="forward")
    y = torch.fft.irfftn(layer(spectrum), s=x.shape[2:], dim=(2, 3), norm="forward")
    assert relative(y, case.arrays["y"]) < 1e-5


def test_depthwise_then_pointwise_golden():
    case = Golden("niff_depthwise_then_pointwise")
    pair = nn.Sequential(fs.NIFFConv2d(6, 6, groups=6, kernel="small"), nn.Conv2d(6, 10, 1, bias=False)).eval()
    fs.compat.load_niff(pair, case.state)
    assert relative(pair(case.arrays["x"]), case.arrays["y"]) < 1e-5


def test_loading_says_what_does_not_fit():
    case = Golden("niff_depthwise_small")
    with pytest.raises(fs.InputError, match=r"widths; they differ in imaginary\.linears\.0\.bias"):
        fs.compat.load_niff(fs.NIFFConv2d(6, 6, groups=6, kernel="big"), case.state)
    with pytest.raises(fs.InputError, match=r"widths; they differ in imaginary\.readout\.bias"):
        fs.compat.load_niff(fs.NIFFConv2d(3, 4, kernel="tiny"), Golden("niff_full").state)
    pair = nn.Sequential(fs.NIFFConv2d(6, 6, groups=6), nn.Conv2d(6, 10, 1))
    with pytest.raises(fs.InputError, match="nothing for the bias"):
        fs.compat.load_niff(pair, Golden("niff_depthwise_then_pointwise").state)
    with pytest.raises(fs.InputError, match="no place for extra"):
        fs.compat.load_niff(fs.NIFFConv2d(6, 6, groups=6), {**case.state, "extra": torch.ones(1)})
    with pytest.raises(fs.InputError, match="got Linear"):
        fs.compat.load_niff(nn.Linear(2, 2), case.state)


def whole_complex(layer, x):
    """As the paper computes it: the networks on the whole grid, complex transforms, the real part of the result."""
    frequencies = bin_frequencies(x.shape[2:], x.shape[2:], dtype=x.dtype)
    weight = torch.complex(layer.real(frequencies), layer.imaginary(frequencies))
    weight = weight.unflatten(0, (layer.out_channels, layer.in_channels // layer.groups))
    axes = list(range(2, x.ndim))
    spectrum = torch.fft.fftn(x, dim=axes)
    rows = spectrum.unflatten(1, (layer.groups, -1))
    columns = weight.unflatten(0, (layer.groups, -1))
    product = torch.einsum("bgi...,goi...->bgo...", rows, columns).flatten(1, 2)
    return torch.fft.ifftn(product, dim=axes).real


GRIDS = [(8,), (7,), (1,), (8, 6), (7, 5), (5, 8), (1, 1), (1, 6)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_half_spectrum_equals_the_whole_complex_one(grid, groups):
    kind = fs.NIFFConv1d if len(grid) == 1 else fs.NIFFConv2d
    layer = kind(4, 4, groups=groups).double()
    x = torch.randn(3, 4, *grid, dtype=torch.float64)
    assert relative(layer(x), whole_complex(layer, x)) < 1e-12


@pytest.mark.parametrize("grid", [(8, 6), (7, 5)], ids=str)
def test_circular_equals_scipys_wrap_mode(grid):
    layer = fs.NIFFConv2d(2, 2, groups=2, kernel="cifar").double().eval()
    x = torch.randn(1, 2, *grid, dtype=torch.float64)
    y = layer(x).detach()
    kernel = layer.sample_kernel().detach()
    for c in range(2):
        # Of an even axis scipy has the middle at n // 2, one further than torch's padding="same".
        origin = [-1 if n % 2 == 0 else 0 for n in grid]
        expected = scipy.ndimage.correlate(x[0, c].numpy(), kernel[c, 0].numpy(), mode="wrap", origin=origin)
        np.testing.assert_allclose(y[0, c].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [8, 7])
def test_linear_equals_a_zero_padded_convolution(size):
    layer = fs.NIFFConv1d(2, 2, groups=2, kernel="cifar", linear=True).double()
    x = torch.randn(1, 2, size, dtype=torch.float64)
    y = layer(x)
    kernel = layer.sample_kernel().detach().numpy()
    for c in range(2):
        # y[t] = sum_j w[j] x[t - (n - 1) // 2 + j], zeros outside
        expected = [
            sum(kernel[c, 0, j] * x[0, c, s].item() for j in range(size) if 0 <= (s := t - (size - 1) // 2 + j) < size) for t in range(size)
        ]
        np.testing.assert_allclose(y[0, c].detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("padding", ["zero", "reflect", "circular"])
def test_padding_surrounds_by_half_the_size(padding):
    layer = fs.NIFFConv2d(2, 2, groups=2, padding=padding).double()
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    y = layer(x)
    assert layer.kernel_size == (6, 5)
    assert layer.sample_kernel().shape == (2, 1, 12, 9)
    mode = {"zero": "constant", "reflect": "reflect", "circular": "circular"}[padding]
    plain = fs.NIFFConv2d(2, 2, groups=2).double()
    plain.load_state_dict(layer.state_dict())
    plain.kernel_size = (12, 9)
    assert relative(y, plain(F.pad(x, (2, 2, 3, 3), mode=mode))[:, :, 3:9, 2:7]) < 1e-12


def test_circular_conv_gradients():
    for grid in ((5, 6), (4, 5), (1, 4), (4, 1), (6,), (5,)):
        for groups, channels in ((1, (4, 2)), (2, (4, 1)), (2, (2, 1))):
            x = torch.randn(2, 2, *grid, dtype=torch.float64, requires_grad=True)
            spectrum = torch.randn(*channels, *half_grid(grid), dtype=torch.complex128, requires_grad=True)
            torch.autograd.gradcheck(lambda x, s, groups=groups: circular_conv(x, s, groups=groups), (x, spectrum))


def test_circular_conv_refuses_other_shapes():
    with pytest.raises(fs.InputError, match=r"spectrum of shape \(out_channels, in_channels / groups, 4, 3\) with groups=1, got"):
        circular_conv(torch.randn(1, 2, 4, 4), torch.randn(2, 2, 4, 4, dtype=torch.complex64))


def test_every_network_of_kernels_serves():
    x = torch.randn(1, 2, 9, 8)
    for kernel in [*fs.nn.niff.SIZES, *fs.kernels.KERNELS, (5, 7), [3]]:
        layer = fs.NIFFConv2d(2, 4, kernel=kernel)
        assert layer(x).shape == (1, 4, 9, 8)
        assert torch.isfinite(layer(x)).all()
    with pytest.raises(fs.InputError, match="did you mean 'small'"):
        fs.NIFFConv2d(2, 2, kernel="smal")


@pytest.mark.parametrize(("size", "expected"), [("tiny", 2 * 8 + 8), ("small", 24 + 8 * 4 + 4), ("big", 48 + 17 * 128 + 129 * 32)])
def test_parameters(size, expected):
    last = {"tiny": 8, "small": 4, "big": 32}[size]
    layer = fs.NIFFConv2d(6, 6, groups=6, kernel=size)
    assert sum(p.numel() for p in layer.parameters()) == 2 * (expected + (last + 1) * 6)


def test_spectrum_is_kept_in_eval_until_something_changes():
    layer, x = fs.NIFFConv2d(3, 3, groups=3).eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        first = layer(x)
        kept = layer.cache.entry
        assert kept is not None
        assert torch.equal(layer(x), first)
        assert layer.cache.entry is kept
        layer.real.readout.weight.data.mul_(1.5)  # behind autograd's back, as averages of weights do
        changed = layer(x)
        assert not torch.equal(changed, first)
        assert layer.cache.entry is not kept
    fresh = fs.NIFFConv2d(3, 3, groups=3)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(x), layer(x))
    assert torch.allclose(layer(x), changed, atol=1e-6)
    layer.train()
    assert layer.cache.entry is None


def band_limited(size, ratio=1):
    """Cosines below the Nyquist frequency of `size` samples, sampled `ratio` times as densely."""
    t = torch.arange(size * ratio, dtype=torch.float64) / (size * ratio)
    rows = torch.cos(2 * torch.pi * 2 * t + 1) + 0.3
    columns = torch.sin(2 * torch.pi * 3 * t) + 0.5 * torch.cos(2 * torch.pi * t)
    return (rows[:, None] * columns)[None, None]


def test_finer_inputs_give_the_same_outputs_at_the_same_places():
    layer = fs.NIFFConv2d(1, 1, kernel="big").double()
    with torch.no_grad():
        coarse = layer(band_limited(8))
        with fs.set_resolution(layer, 2) as unchanged:
            fine = layer(band_limited(8, 2))
            assert not unchanged
            kernel = layer.sample_kernel()
        assert layer.ratio == 1
    assert relative(fine[..., ::2, ::2], coarse) < 1e-9
    spectrum = torch.fft.fft2(kernel).abs()[0, 0]
    assert spectrum[5:12].max() < 1e-9 * spectrum.max()  # nothing above training's highest frequency, 4
    assert spectrum[:, 5:12].max() < 1e-9 * spectrum.max()


def test_the_highest_frequency_is_at_other_sizes_what_it_is_in_training():
    layer = fs.NIFFConv1d(1, 1, 8, kernel="big").double()
    with torch.no_grad():
        there = layer.sample_spectrum()[0, 0, 4].real
        with fs.set_resolution(layer, 2):
            assert torch.allclose(layer.sample_spectrum()[0, 0, 4].real, there)


def test_sizes_that_strides_have_rounded_need_no_warning():
    layer = fs.NIFFConv2d(1, 1, 4)
    with torch.no_grad(), fs.set_resolution(layer, 2), warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(1, 1, 7, 8))


def test_nothing_passes_above_the_nyquist_frequency_of_training():
    layer = fs.NIFFConv1d(1, 1, 8, kernel="big").double()
    t = torch.arange(16, dtype=torch.float64) / 16
    with torch.no_grad(), fs.set_resolution(layer, 2):
        assert layer(torch.cos(2 * torch.pi * 6 * t)[None, None]).abs().max() < 1e-12
        assert layer(torch.cos(2 * torch.pi * 3 * t)[None, None]).abs().max() > 1e-3


def test_larger_inputs_keep_frequencies_per_sample_and_say_so():
    layer = fs.NIFFConv1d(1, 1, 8).double().eval()
    x = torch.randn(1, 1, 16, dtype=torch.float64)
    with torch.no_grad(), pytest.warns(UserWarning, match="NIFFConv1d is for inputs of 8 samples and runs on 16"):
        layer(x)
    wave = torch.cos(2 * torch.pi * torch.arange(16, dtype=torch.float64) / 4)[None, None]
    with torch.no_grad():
        assert relative(layer(wave)[..., :8], layer(wave[..., :8])) < 1e-12
        fs.set_resolution(layer, 2)
        assert layer.sample_kernel().shape == (1, 1, 16)


def test_ratio_and_size_are_in_the_state_dict():
    layer = fs.NIFFConv2d(1, 1)
    layer(torch.randn(1, 1, 6, 5))
    fs.set_resolution(layer, 1.5)
    fresh = fs.NIFFConv2d(1, 1)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.kernel_size == (6, 5)
    assert fresh.ratio == 1.5
    with pytest.raises(fs.InputError, match="no kernel size yet"):
        fs.set_resolution(fs.NIFFConv2d(1, 1), 2)


def test_published_frequencies_on_odd_sizes():
    assert bin_frequencies((7,), (7,), as_published=True).sort().values.tolist() == [[-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5]]
    assert bin_frequencies((7,), (7,)).sort().values.tolist() == [[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]]
    layer, published = (fs.NIFFConv1d(1, 1, 7, as_published=flag) for flag in (False, True))
    published.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer.sample_kernel(), published.sample_kernel())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "mirror"}, "unknown padding 'mirror'"),
        ({"padding": "zero", "linear": True}, "padding=None with linear=True"),
        ({"groups": 3}, "multiple of groups=3, got 4"),
        ({"kernel": ()}, "widths of at least 1"),
        ({"kernel_size": 0}, "kernel_size to be 1 or more"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(fs.InputError, match=message):
        fs.NIFFConv2d(4, 4, **options)


def test_half_precision():
    layer, x = fs.NIFFConv2d(2, 2).half(), torch.randn(1, 2, 9, 8)
    y = layer(x.half())
    assert y.dtype == torch.float16
    assert relative(y.float(), layer.float()(x)) < 0.05
    with pytest.raises(fs.InputError, match=r"expected input of torch\.float32"):
        layer(x.half())


@pytest.mark.parametrize("size", [4, 16])
def test_training_after_a_first_call_in_inference_mode(size):
    """Indices and positions are kept from call to call, the former for all layers."""
    layer, x = fs.NIFFConv2d(2, 2, groups=2), torch.randn(1, 2, size, size + 1)
    with torch.inference_mode():
        layer.eval()(x)
    layer.train()(x).sum().backward()
    fs.NIFFConv2d(2, 2, groups=2)(x).sum().backward()
    layer.eval()(x.requires_grad_()).sum().backward()


def test_grids_are_checked():
    layer = fs.NIFFConv2d(2, 2, 8)
    for grid in (8, (8,), (8, 0), (8, 2.5)):
        with pytest.raises(fs.InputError, match="grid expected 2 sizes of at least 1"):
            layer.sample_kernel(grid)
    with pytest.raises(fs.InputError, match="at least one sample"):
        layer(torch.randn(1, 2, 0, 8))
    with pytest.raises(fs.InputError, match="kernel expected a size"):
        fs.NIFFConv2d(2, 2, kernel=8)


def test_odd_sizes_and_a_size_of_one():
    layer = fs.NIFFConv2d(2, 2, groups=2)
    x = torch.randn(1, 2, 1, 1)
    weight = layer(x) / x  # of a single sample a kernel is a number: the real network's at frequency 0
    assert torch.allclose(weight.flatten(), layer.real(torch.zeros(2, 1, 1)).flatten(), atol=1e-6)


# Frequency-domain companions


@pytest.mark.parametrize("size", [8, 7, 6, 1, 2])
def test_flc_pooling_is_fft_cropping(size):
    x = torch.randn(2, 3, size, 5, dtype=torch.float64)
    y = FLCPool2d()(x)
    new = (size + 1) // 2, 3
    assert y.shape[2:] == new
    # As the authors do: the middle of the shifted spectrum, and the real part of its inverse.
    spectrum = torch.fft.fftshift(torch.fft.fft2(x, norm="forward"), (2, 3))
    top, left = (size // 2) - new[0] // 2, 5 // 2 - new[1] // 2
    low = spectrum[:, :, top : top + new[0], left : left + new[1]]
    expected = torch.fft.ifft2(torch.fft.ifftshift(low, (2, 3)), norm="forward").real
    assert torch.allclose(y, expected)


def test_resampling_there_and_back():
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    assert torch.allclose(resample(resample(x, (10, 14)), (5, 7)), x)
    assert torch.allclose(resample(resample(x, (12, 9)), (5, 7)), x)
    even = torch.randn(6, dtype=torch.float64)
    assert torch.allclose(resample(even, (12,))[::2], even)
    with pytest.raises(fs.InputError, match="size of 1 or more"):
        resample(x, 0)


def test_pooling_removes_what_would_alias():
    t = torch.arange(16, dtype=torch.float64) / 16
    high = torch.cos(2 * torch.pi * 6 * t)[None, None]
    assert high[..., ::2].abs().max() > 0.5
    assert FLCPool1d()(high).abs().max() < 1e-12


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (6, 9), (5, 7), (1, 2)], ids=str)
def test_pooling_a_spectrum_is_pooling_in_space(grid):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    pool = FrequencyFLCPool(grid)
    spectrum = of_real(pool(torch.fft.rfftn(x, dim=(2, 3), norm="forward")), pool.pooled_grid)
    y = torch.fft.irfftn(spectrum, s=pool.pooled_grid, dim=(2, 3), norm="forward")
    assert torch.allclose(y, FLCPool2d()(x), atol=1e-12)


def test_pools_take_their_own_domain_alone():
    x = torch.randn(1, 2, 8, 8)
    with pytest.raises(fs.InputError, match=r"FLCPool2d expected real samples, got torch\.complex64; FrequencyFLCPool takes spectra"):
        FLCPool2d()(torch.fft.rfft2(x))
    with pytest.raises(fs.InputError, match=r"half spectra of shape \(8, 5\), got \(8, 8\)"):
        FrequencyFLCPool((8, 8))(torch.complex(x, x))
    with pytest.raises(fs.InputError, match="complex spectrum"):
        FrequencyFLCPool((8, 8))(x)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("ratio", [2, 3])
def test_circular_padding_at_another_resolution(size, ratio):
    """A band-limited signal sampled more finely; an even one, padded, is whole periods, and gives the same at the old samples."""
    layer = fs.NIFFConv1d(1, 1, size, padding="circular").double().eval()
    coarse = torch.randn(1, 1, size, dtype=torch.float64)
    if size % 2 == 0:  # without the highest frequency, which an even grid cannot tell from its opposite
        spectrum = torch.fft.rfft(coarse)
        spectrum[..., -1] = 0
        coarse = torch.fft.irfft(spectrum, n=size)
    fine = resample(coarse, (size * ratio,))
    expected = layer(coarse)
    with fs.set_resolution(layer, ratio), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = layer(fine)
    assert layer.sample_kernel().shape[2] == size + 2 * (size // 2)
    assert y.shape[2] == size * ratio
    if size % 2 == 0:
        assert relative(y[..., ::ratio], expected) < 1e-9


def test_average_pool_of_a_spectrum():
    x = torch.randn(2, 3, 5, 4)
    assert torch.allclose(FrequencyAvgPool()(torch.fft.rfftn(x, dim=(2, 3), norm="forward")), x.mean((2, 3)), atol=1e-6)
    with pytest.raises(fs.InputError, match="complex spectrum"):
        FrequencyAvgPool()(x)


def test_frequency_linear_with_bias_is_a_spatial_1x1():
    layer, x = FrequencyLinear(3, 4), torch.randn(2, 3, 5, 6)
    expected = F.conv2d(x, layer.weight[..., None, None], layer.bias)
    y = torch.fft.irfftn(layer(torch.fft.rfftn(x, dim=(2, 3), norm="forward")), s=(5, 6), dim=(2, 3), norm="forward")
    assert relative(y, expected) < 1e-5


def test_companions_come_back_from_files(tmp_path):
    for module in (FLCPool2d(), FLCPool1d(), FrequencyAvgPool(), FrequencyLinear(2, 3), ComplexBatchNorm(2)):
        fs.save(module, tmp_path / "module.safetensors")
        assert type(fs.load(tmp_path / "module.safetensors")) is type(module)


def test_complex_batch_norm_of_parts_that_are_multiples_of_each_other():
    z = torch.randn(64, 1, 4)
    assert torch.isfinite(torch.view_as_real(ComplexBatchNorm(1, eps=1e-12)(torch.complex(1e4 * z, 1e4 * z)))).all()


def test_complex_batch_norm_whitens():
    mixed = torch.randn(4000, 2, 2, dtype=torch.float64)
    z = torch.complex(mixed[..., 0] * 3 + 1, mixed[..., 0] + 0.5 * mixed[..., 1] - 2)[..., None]
    norm = ComplexBatchNorm(2, eps=0.0).double()
    y = norm(z) * 2**0.5
    parts = torch.stack([y.real, y.imag])[..., 0].permute(2, 0, 1)
    covariance = torch.stack([torch.cov(part) for part in parts]) * (1 - 1 / 4000)
    assert torch.allclose(covariance, torch.eye(2, dtype=torch.float64).expand(2, 2, 2), atol=1e-9)
    for _ in range(200):
        norm(z)
    assert torch.allclose(norm.eval()(z) * 2**0.5, y, atol=1e-3)


def test_half_grid_and_mirror():
    x = torch.randn(6, 5)
    spectrum = torch.fft.fftn(x)
    assert torch.allclose(mirrored(spectrum, 2), spectrum.conj(), atol=1e-5)
    assert torch.fft.rfftn(x).shape == half_grid((6, 5))


@pytest.mark.parametrize("grid", [(6, 8), (15, 15)], ids=str)
@pytest.mark.parametrize("options", [{"groups": 4}, {"groups": 4, "linear": True}, {"padding": "reflect"}, {"bias": True}], ids=str)
def test_every_kind_compiles_whole_and_works_in_half_precision(options, grid):
    """The contract of the layers (tests/test_layer_contract.py) for what its full layers do not reach: on small maps by matrices, too."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, x = fs.NIFFConv2d(4, 4, grid, **options), torch.randn(2, 4, *grid)
    expected = layer(x)
    if not options.get("linear"):
        assert torch._dynamo.explain(layer)(x).graph_break_count == 0
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert relative(y.float(), expected) < 0.02
    assert relative(layer.bfloat16()(x.bfloat16()).float(), expected) < 0.2
