"""A kernel's size: exact in every dtype, part of what copying and averaging carry, from a training batch."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

import flexseq as fs
from flexseq.nn.sizes import KernelSize, decode, encode

LAZY = {
    "FlexConv1d": lambda: fs.FlexConv1d(2, 2, mask_sigma=0.3, variance_preserving=True),
    "FlexConv2d": lambda: fs.FlexConv2d(2, 2, mask_sigma=0.3, variance_preserving=True),
    "CKConv1d": lambda: fs.CKConv1d(2, 2, variance_preserving=True),
    "NIFFConv1d": lambda: fs.NIFFConv1d(2, 2),
    "NIFFConv2d": lambda: fs.NIFFConv2d(2, 2),
    "CFConv1d": lambda: fs.CFConv1d(2, 2, positions=1.0),
    "CFConv2d": lambda: fs.CFConv2d(2, 2, positions=1.0),
}
every_lazy = pytest.mark.parametrize("make", LAZY.values(), ids=LAZY)


def signal(layer, size, batch=2):
    return torch.randn(batch, 2, *(size,) * layer.ndim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [(1,), (1001, 7), (2**31 - 1, 16_001, 3)])
@pytest.mark.parametrize("ratio", [1.0, 1 / 3, 2.0])
def test_a_code_is_exact_in_every_dtype(dtype, size, ratio):
    for settled in (False, True):
        value = KernelSize(size, settled, ratio)
        assert decode(encode(value, len(size)).to(dtype).tolist(), len(size)) == value


@pytest.mark.parametrize("decay", [0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_of_equal_codes_is_the_code_and_of_different_ones_is_none(decay, dtype):
    one, other = (encode(KernelSize((size,), True), 1).to(dtype) for size in (1001, 511))
    average = one.clone()
    for _ in range(200):
        average = decay * average + (1 - decay) * one
    assert decode(average.tolist(), 1) == KernelSize((1001,), True)
    assert decode(torch.lerp(one, other, 0.5).tolist(), 1) is None
    assert decode(torch.lerp(encode(KernelSize(), 1).to(dtype), one, 0.5).tolist(), 1) is None


@every_lazy
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_state_dict_keeps_size_and_resolution(make, dtype):
    layer, other = make(), make()
    layer(signal(layer, 31))
    fs.set_resolution(layer, 1.7)
    other.load_state_dict({name: tensor.to(dtype) for name, tensor in layer.state_dict().items()})
    assert (other.kernel_size, other.ratio) == (layer.kernel_size, 1.7)
    if hasattr(layer, "_seed"):
        assert (other._seed, other._steps) == (layer._seed, layer._steps)


@every_lazy
def test_the_first_training_batch_decides_not_an_eval_pass_before_it(make):
    layer = make().eval()
    with torch.no_grad():  # Lightning's sanity check of longer validation series
        layer(signal(layer, 25))
    assert layer.kernel_size == (25,) * layer.ndim
    layer.train()(signal(layer, 15)).sum().backward()
    assert layer.kernel_size == (15,) * layer.ndim
    if not isinstance(layer, fs.nn.cfconv.CFConv | fs.nn.niff.NIFFConv):
        layer.eval()(signal(layer, 25))
        assert layer.kernel_size == (15,) * layer.ndim


@every_lazy
def test_a_given_size_stays(make):
    layer = make()
    layer.kernel_size = (9,) * layer.ndim
    other = type(layer)(2, 2, 9)
    for one in (layer, other):
        if not isinstance(one, fs.nn.cfconv.CFConv):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one(signal(one, 15))
        assert one.kernel_size == (9,) * one.ndim


def trained(make):
    layer = make()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    x = signal(layer, 15)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    return layer, x


def by_parameters(source, target):
    for p, q in zip(source.parameters(), target.parameters(), strict=True):
        q.data.copy_(p)


def by_parameters_and_buffers(source, target):
    by_parameters(source, target)
    for p, q in zip(source.buffers(), target.buffers(), strict=True):
        q.copy_(p)


def by_state_dict(source, target):
    for p, q in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        q.copy_(p)


@every_lazy
@pytest.mark.parametrize("copy_into", [by_parameters, by_parameters_and_buffers, by_state_dict])
def test_a_copy_made_before_the_first_input_can_be_brought_up_to_date(make, copy_into):
    torch.manual_seed(1)
    fresh = make()
    copied = copy.deepcopy(fresh)
    source, x = trained(lambda: fresh)
    if copy_into is by_parameters and isinstance(source, fs.nn.cfconv.CFConv):
        return  # its kernel is a buffer
    copy_into(source, copied)
    assert torch.equal(copied.eval()(x), source.eval()(x))


@every_lazy
@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model_made_before_the_first_input(make, use_buffers):
    fresh = make()
    averaged = torch.optim.swa_utils.AveragedModel(fresh, use_buffers=use_buffers)
    source, x = trained(lambda: fresh)
    for _ in range(3):
        averaged.update_parameters(source)
    assert averaged.module.kernel_size == source.kernel_size
    torch.testing.assert_close(averaged.eval()(x), source.eval()(x), rtol=1e-4, atol=1e-5)


def test_timm_style_average_of_everything_that_floats():
    model = nn.Sequential(LAZY["FlexConv1d"](), LAZY["NIFFConv1d"]())
    average = copy.deepcopy(model)
    x = torch.randn(2, 2, 1001)
    model(x)
    for _ in range(60):
        for ema, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            ema.copy_(0.9 * ema + 0.1 * value)
    assert [layer.kernel_size for layer in average] == [(1001,), (1001,)]
    assert (average.eval()(x) - model.eval()(x)).abs().max() < 0.02 * model(x).abs().max()


def test_weights_loaded_before_the_first_input_are_not_scaled_again():
    layer, x = trained(LAZY["FlexConv1d"])
    other = LAZY["FlexConv1d"]()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), layer.eval()(x))
    unsized = LAZY["FlexConv1d"]()
    later = LAZY["FlexConv1d"]()
    later.load_state_dict(unsized.state_dict())
    assert torch.equal(later(x), unsized(x))
    assert later.sample_kernel().square().sum((1, 2)).allclose(torch.ones(2), atol=1e-4)


def test_threads_scale_a_fresh_model_once():
    torch.manual_seed(0)
    expected = fs.FlexTCN(1, 2, depth=2, width=8, mask_sigma=0.3, variance_preserving=True).eval()
    models = [copy.deepcopy(expected) for _ in range(8)]
    x = torch.randn(2, 1, 40)
    expected(x)
    for model in models:
        start = threading.Barrier(6)

        def work(model=model, start=start):
            start.wait()
            model(x)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for p, q in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("state", [[-5.0, 1.0], [5.5, 1.0], [5.0, float("nan")], [5.0, 0.0], [float("inf"), 1.0], [5.0, 1.0, 2.0]])
def test_states_from_before_the_code_are_checked(state):
    layer = fs.FlexConv1d(1, 1)
    old = {name: tensor for name, tensor in layer.state_dict().items() if name != "kernel_size_code"}
    layer.load_state_dict({**old, "_extra_state": torch.tensor([21.0, 2.0], dtype=torch.float64)})
    assert (layer.kernel_size, layer.ratio) == ((21,), 2.0)
    with pytest.raises(fs.InputError, match="FlexConv1d expected a state of"):
        layer.load_state_dict({**old, "_extra_state": torch.tensor(state)})


def test_codes_that_are_none_are_refused():
    layer = fs.FlexConv1d(1, 1, 9)
    code = layer.kernel_size_code
    for bad in (code * float("nan"), code - 1, code + 0.3, code[:5], code * 0 + 15):
        with pytest.raises(fs.InputError, match="kernel_size_code to hold a kernel size for 1 axes"):
            fs.FlexConv1d(1, 1).load_state_dict({**layer.state_dict(), "kernel_size_code": bad})


def test_states_of_cfconv_from_before_the_code_are_read():
    layer = fs.CFConv2d(2, 3, 8, positions=16, seed=2**52 + 1)
    layer(torch.randn(1, 2, 8, 8)).sum().backward()
    old = {name: tensor for name, tensor in layer.state_dict().items() if name not in ("kernel_size_code", "state_values", "_extra_state")}
    old["state"] = layer.state.clone()
    old["_extra_state"] = torch.tensor([8, 8, 1.0, 2**52 + 1, 1], dtype=torch.float64)
    other = fs.CFConv2d(2, 3, positions=16)
    other.load_state_dict(old)
    assert (other.kernel_size, other._seed, other._steps) == ((8, 8), 2**52 + 1, 1)
    assert torch.equal(other.state, layer.state)


def test_the_meta_device_and_weights_that_come_later():
    for build in (
        lambda: fs.FlexTCN(1, 2, depth=1, kernel_size=20, mask_sigma=0.3, variance_preserving=True),
        lambda: fs.FlexNet(depth=1, width=4, image_size=8, mask_sigma=0.5),
        lambda: fs.CKCNN(depth=1),
        lambda: nn.Sequential(fs.NIFFConv1d(1, 2, 9), fs.CFConv1d(2, 2, 9, positions=1.0)),
    ):
        with torch.device("meta"):
            model = build()
        real = build()
        model.load_state_dict(real.state_dict(), assign=True)
        x = torch.randn(1, 3, 8, 8) if isinstance(model, fs.FlexNet) else torch.randn(1, 1, 20 if hasattr(model, "head") else 9)
        assert torch.equal(model.eval()(x), real.eval()(x))


def test_channels_last():
    for layer in (fs.CFConv2d(2, 2, 8, positions=1.0), fs.FlexConv2d(2, 2, 9), fs.NIFFConv2d(2, 2, 8)):
        x = torch.randn(1, 2, 8, 8)
        expected = layer.eval()(x)
        torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), expected)
