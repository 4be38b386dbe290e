"""Long convolution against scipy in float64, its gradients, causality, equivariance and precision."""

import numpy as np
import pytest
import scipy.signal
import torch
from conftest import relative
from hypothesis import given, settings
from hypothesis import strategies as st

from flexseq import InputError
from flexseq.functional import basis_long_conv, long_conv, spectral_conv
from flexseq.functional.fft_length import fft_length

METHODS = ["direct", "fft", "overlap", "auto"]


def scipy_long_conv(x, w, bias, causal, groups):
    """y[t] = sum_j w[j] x[t - left + j], channel by channel through scipy's direct correlation of the padded signal."""
    x, w = x.numpy(), w.numpy()
    grid, taps = x.shape[2:], w.shape[2:]
    left = [k - 1 if causal else (k - 1) // 2 for k in taps]
    pads = [(0, 0), (0, 0), *[(a, k - 1 - a) for a, k in zip(left, taps, strict=True)]]
    x = np.pad(x, pads)
    per_group, out_per_group = w.shape[1], w.shape[0] // groups
    y = np.zeros((x.shape[0], w.shape[0], *grid))
    for b in range(x.shape[0]):
        for o in range(w.shape[0]):
            for i in range(per_group):
                source = x[b, o // out_per_group * per_group + i]
                y[b, o] += scipy.signal.correlate(source, w[o, i], mode="valid", method="direct")
    return torch.from_numpy(y) + bias.view(-1, *[1] * len(grid))


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    largest = {1: 40, 2: 9, 3: 5}[ndim]
    groups = draw(st.sampled_from([1, 2, 3]))
    return {
        "grid": tuple(draw(st.integers(1, largest)) for _ in range(ndim)),
        "taps": tuple(draw(st.integers(1, 2 * largest)) for _ in range(ndim)),  # even, odd, longer than the input
        "groups": groups,
        "per_group": draw(st.integers(1, 2)),
        "out_per_group": draw(st.integers(1, 2)),
        "batch": draw(st.integers(1, 3)),
        "causal": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def tensors(case, dtype=torch.float64):
    generator = torch.Generator().manual_seed(case["seed"])
    groups = case["groups"]
    x = torch.randn(case["batch"], groups * case["per_group"], *case["grid"], generator=generator, dtype=dtype)
    w = torch.randn(groups * case["out_per_group"], case["per_group"], *case["taps"], generator=generator, dtype=dtype)
    bias = torch.randn(groups * case["out_per_group"], generator=generator, dtype=dtype)
    return x, w, bias


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(METHODS))
def test_equals_scipy(case, method):
    x, w, bias = tensors(case)
    y = long_conv(x, w, bias, causal=case["causal"], groups=case["groups"], method=method)
    torch.testing.assert_close(y, scipy_long_conv(x, w, bias, case["causal"], case["groups"]), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_gradients_of_both_methods_agree(case):
    x, w, bias = tensors(case)
    gradients = []
    for method in ("direct", "fft"):
        leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
        y = long_conv(*leaves, causal=case["causal"], groups=case["groups"], method=method)
        gradients.append(torch.autograd.grad((y * torch.arange(y.numel()).view_as(y).cos()).sum(), leaves))
    for direct, fft in zip(*gradients, strict=True):
        torch.testing.assert_close(fft, direct, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("ndim", "taps", "groups"), [(1, 4, 1), (1, 9, 2), (2, 3, 1), (2, 6, 2), (3, 2, 1)])
def test_fft_gradcheck(ndim, taps, groups, causal):
    x = torch.randn(2, 2, *[5, 4, 3][:ndim], dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 2 // groups, *[taps] * ndim, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: long_conv(*a, causal=causal, groups=groups, method="fft"), (x, w, bias))


def test_only_the_gradients_that_are_asked_for_are_given():
    x, w = torch.randn(1, 2, 50), torch.randn(2, 2, 30, requires_grad=True)
    long_conv(x, w, method="fft").sum().backward()
    assert x.grad is None
    assert w.grad.shape == w.shape


@pytest.mark.parametrize("ndim", [1, 2])
def test_causal_direct_output_ignores_the_future_exactly(ndim):
    x = torch.randn(1, 3, *[20] * ndim)
    w = torch.randn(4, 3, *[9] * ndim)
    changed = x.clone()
    changed[..., 11:] += 100 * torch.randn_like(changed[..., 11:])
    before, after = (long_conv(signal, w, causal=True, method="direct") for signal in (x, changed))
    assert torch.equal(before[..., :11], after[..., :11])
    assert not torch.allclose(before[..., 11:], after[..., 11:])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_causal_fft_output_ignores_the_future_up_to_rounding(dtype, bound):
    x = torch.randn(2, 3, 4000, dtype=dtype)
    w = torch.randn(4, 3, 4000, dtype=dtype)
    w = w / w.flatten(1).norm(dim=1).view(-1, 1, 1)
    changed = x.clone()
    changed[..., 2500:] = torch.randn_like(changed[..., 2500:])
    before, after = (long_conv(signal, w, causal=True, method="fft") for signal in (x, changed))
    difference = (before[..., :2500] - after[..., :2500]).abs().max()
    assert difference < bound * max(x.abs().max(), changed.abs().max())


@pytest.mark.parametrize("method", ["direct", "fft"])
@pytest.mark.parametrize("causal", [True, False])
def test_shifted_input_gives_shifted_output(method, causal):
    x = torch.zeros(1, 2, 200, dtype=torch.float64)
    x[..., 60:90] = torch.randn(1, 2, 30, dtype=torch.float64)
    w = torch.randn(3, 2, 21, dtype=torch.float64)
    y = long_conv(x, w, causal=causal, method=method)
    shifted = long_conv(x.roll(37, -1), w, causal=causal, method=method)
    torch.testing.assert_close(shifted, y.roll(37, -1), rtol=0, atol=1e-12)


def test_float32_fft_is_precise_at_16000_steps():
    x, w = torch.randn(1, 3, 16000), torch.randn(2, 3, 16000) / 100
    exact = long_conv(x.double(), w.double(), causal=True, method="fft")
    approximate = long_conv(x, w, causal=True, method="fft")
    assert ((approximate - exact).abs().max() / exact.abs().max()) < 1e-5
    # and the float64 transform against a few outputs computed as sums
    for t in (0, 7777, 15999):
        direct = (x[0, :, : t + 1].double() * w[1, :, 15999 - t :].double()).sum()
        torch.testing.assert_close(exact[0, 1, t], direct, rtol=1e-10, atol=1e-12)


def test_half_precision_input_keeps_its_dtype():
    x, w = torch.randn(1, 2, 300).bfloat16(), torch.randn(2, 2, 300).bfloat16()
    y = long_conv(x, w, method="fft")
    assert y.dtype == torch.bfloat16
    exact = long_conv(x.double(), w.double(), method="direct")
    assert ((y.double() - exact).abs().max() / exact.abs().max()) < 0.01


def test_under_autocast_both_methods_give_its_dtype():
    x, w = torch.randn(1, 2, 100), torch.randn(2, 2, 60)
    with torch.autocast("cpu", torch.bfloat16):
        direct, fft = (long_conv(x, w, method=method) for method in ("direct", "fft"))
    assert direct.dtype == fft.dtype == torch.bfloat16
    torch.testing.assert_close(direct, fft, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("functions", [None, 33])
def test_auto_takes_ffts_for_long_kernels_and_direct_for_short_ones(functions):
    from flexseq.functional.long_conv import choose_method

    assert choose_method(torch.device("cpu"), (32, 30, 16000), (30, 30, 1288), [1287], functions) == "auto"
    assert choose_method(torch.device("cpu"), (32, 30, 16000), (30, 30, 3), [2], functions) == "direct"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300_000))
def test_fft_length_is_even_of_small_primes_and_not_much_longer(n):
    length = fft_length(n)
    assert length % 2 == 0
    assert n <= length <= max(n + 3, 1.2 * n)
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    assert length == 1


def test_fft_length_prefers_powers_of_two_to_powers_of_three():
    assert [fft_length(n) for n in (324, 846, 1000, 1025)] == [336, 896, 1024, 1152]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(3, 8)}, r"got shapes \(3, 8\)"),
        ({"w": torch.zeros(2, 2, 3)}, r"weight of shape .* got \(2, 2, 3\) for x of shape \(1, 3, 8\)"),
        ({"bias": torch.zeros(3)}, r"bias of shape \(2,\), got \(3,\)"),
        ({"method": "ftt"}, r"unknown method 'ftt': did you mean 'fft'"),
        ({"x": torch.zeros(1, 3, 0)}, r"at least one sample"),
        ({"groups": 2}, r"groups=2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    given_arguments = {"x": torch.zeros(1, 3, 8), "w": torch.zeros(2, 3, 3), "bias": None, "method": "auto", "groups": 1} | arguments
    x, w, bias = (given_arguments.pop(name) for name in ("x", "w", "bias"))
    with pytest.raises(InputError, match=message):
        long_conv(x, w, bias, **given_arguments)


@pytest.mark.parametrize("method", ["direct", "fft", "overlap"])
def test_an_empty_batch_gives_an_empty_output(method):
    assert long_conv(torch.zeros(0, 2, 10), torch.zeros(3, 2, 5), method=method).shape == (0, 3, 10)


def test_forward_mode_is_refused_not_wrong_and_second_derivatives_are_the_direct_methods():
    x, w = torch.randn(1, 2, 20), torch.randn(2, 2, 9)
    with pytest.raises(RuntimeError):
        torch.func.jvp(lambda x: long_conv(x, w, method="fft"), (x,), (x,))
    x.requires_grad_()
    seconds = []
    for method in ("fft", "direct"):
        (gradient,) = torch.autograd.grad(long_conv(x, w, method=method).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-2)
    tangent = torch.func.jvp(lambda x: long_conv(x, w, method="direct"), (x.detach(),), (x.detach(),))[1]
    torch.testing.assert_close(tangent, long_conv(x.detach(), w, method="direct"))


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(["fft", "overlap", "auto"]), st.integers(1, 5))
def test_kernels_given_as_mixes_equal_those_formed(case, method, functions):
    x, w, bias = tensors(case)
    generator = torch.Generator().manual_seed(case["seed"])
    basis = torch.randn(functions, *case["taps"], generator=generator, dtype=torch.float64)
    weight = torch.randn(*w.shape[:2], functions, generator=generator, dtype=torch.float64)
    results = []
    for mixed in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, basis, weight, bias)]
        options = {"causal": case["causal"], "groups": case["groups"]}
        if mixed:
            y = basis_long_conv(*leaves, **options, method=method)
        else:
            y = long_conv(leaves[0], torch.tensordot(leaves[2], leaves[1], 1), leaves[3], **options, method="direct")
        results.append([y, *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y).cos()).sum(), leaves)])
    for formed, mixed in zip(*results, strict=True):
        torch.testing.assert_close(mixed, formed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["fft", "overlap"])
@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize(("grid", "taps", "causal"), [((300,), (90,), True), ((301,), (41,), False), ((24, 19), (7, 8), False)])
def test_in_many_pieces(monkeypatch, method, groups, grid, taps, causal):
    """Signals and frequencies a few at a time, as long ones are."""
    monkeypatch.setattr(spectral_conv, "WORKING_SET", 1)
    monkeypatch.setattr(spectral_conv, "PART", 1)
    float64 = {"dtype": torch.float64, "requires_grad": True}
    for out_channels in (5, 10):  # as many as come in, and more
        x, basis = torch.randn(3, 5, *grid, **float64), torch.randn(4, *taps, **float64)
        weight, bias = torch.randn(out_channels, 5 // groups, 4, **float64), torch.randn(out_channels, **float64)
        options = {"causal": causal, "groups": groups}
        kernel = torch.tensordot(weight, basis, 1)
        expected = long_conv(x, kernel, bias, **options, method="direct")
        wave = torch.arange(expected.numel()).view_as(expected).cos()
        gradients = torch.autograd.grad((expected * wave).sum(), (x, basis, weight, bias), retain_graph=True)
        for y in (long_conv(x, kernel, bias, **options, method=method), basis_long_conv(x, basis, weight, bias, **options, method=method)):
            torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
            ours = torch.autograd.grad((y * wave).sum(), (x, basis, weight, bias), retain_graph=True)
            for one, reference in zip(ours, gradients, strict=True):
                torch.testing.assert_close(one, reference, rtol=1e-10, atol=1e-10)


def test_gradients_are_float32_also_when_autocast_is_still_on():
    x, w = torch.randn(2, 3, 200, requires_grad=True), torch.randn(4, 3, 150, requires_grad=True)
    exact = torch.autograd.grad(long_conv(x, w, method="fft").sum(), (x, w))
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(long_conv(x, w, method="fft").float().sum(), (x, w))
    for gradient, reference in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-3)


def test_outputs_do_not_depend_on_the_batch_they_are_in():
    x, basis, weight = torch.randn(16, 5, 3000), torch.randn(7, 400), torch.randn(5, 5, 7)
    together = basis_long_conv(x, basis, weight, causal=True)
    alone = torch.cat([basis_long_conv(one[None], basis, weight, causal=True) for one in x])
    assert ((together - alone).abs().max() / together.abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [2, 4, 8, 12, 16])
def test_half_precision_is_right_for_few_channels_and_many_taps(channels, dtype):
    """On CPUs with AMX oneDNN's own convolutions are not."""
    torch.manual_seed(0)
    for taps in ((8,), (16,), (40,), (64,), (3, 32), (16, 16)):
        x, weight = torch.randn(2, channels, *(n + 9 for n in taps)), torch.randn(6, channels, *taps)
        expected = long_conv(x.double(), weight.double(), method="direct")
        y = long_conv(x.to(dtype), weight.to(dtype), method="direct")
        assert y.dtype == dtype
        assert relative(y.double(), expected) < 0.02
        with torch.autocast("cpu", dtype):
            assert relative(long_conv(x, weight, method="direct").double(), expected) < 0.02
