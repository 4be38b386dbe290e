"""All kernels of a network are made together before its forward pass, after one read from the device."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from conftest import relative
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import flexseq as fs
from flexseq import positions
from flexseq.nn import forward_pass, kernel_making
from flexseq.training.cuda_graphs import GraphedNetwork, crops_to_capture
from flexseq.training.parameters import kernel_penalty

READING = {"tolist", "item", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu", "__array__"}
READING_OPERATORS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::unique"}


class FunctionReads(TorchFunctionMode):
    """Counts the methods of tensors with which the host waits for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        name = getattr(function, "__name__", "")
        if name in READING:
            self.found.append(name)
        return function(*arguments, **(options or {}))


class OperatorReads(TorchDispatchMode):
    """Counts the operators, of whatever calls them."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name() in READING_OPERATORS:
            self.found.append(function.name())
        return function(*arguments, **(options or {}))


def sequential():
    return nn.Sequential(
        fs.FlexConv1d(2, 6, 40, causal=True), nn.ReLU(), fs.FlexConv1d(6, 6, 40, causal=True, mask_sigma=0.3), fs.CKConv1d(6, 3, 31)
    )


def converted():
    torch.manual_seed(0)
    return fs.to_flexconv(fs.CIFARResNet(depth=20), kernel_size=9)[0]


NETWORKS = {
    "FlexTCN": (lambda: fs.FlexTCN(depth=2, width=8), (3, 1, 50)),
    "FlexNet": (lambda: fs.FlexNet(depth=2, width=6, image_size=12), (3, 3, 12, 12)),
    "converted": (converted, (2, 3, 16, 16)),
    "Sequential": (sequential, (3, 2, 40)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_one_read_for_a_step_with_its_penalties(name, training):
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(shape)
    model(x).mean().backward()  # finds the sizes, and what the outermost module is
    model.train(training)
    with FunctionReads() as functions, OperatorReads() as operators:
        loss = model(x).square().mean() + 0.1 * kernel_penalty(model)
        if name != "Sequential":  # SIREN has no known highest frequency
            loss = loss + fs.alias_penalty(model)
        loss.backward()
    assert functions.found == ["tolist"]
    assert operators.found == []


@pytest.mark.parametrize("name", NETWORKS)
def test_one_read_in_inference(name):
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(shape)
    model(x)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        with FunctionReads() as functions, OperatorReads() as operators:
            y = model(x)
    assert functions.found == ["tolist"]
    assert operators.found == []
    assert torch.equal(y, expected)


def without_dropout(name):
    """A network in float64 that knows its sizes, and an input."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    model(x)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, x


def alone(model):
    """A copy whose layers make their kernels by themselves."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_those_of_layers_by_themselves(name, monkeypatch):
    model, x = without_dropout(name)
    other = alone(model)
    seed = torch.randn(model(x).shape, dtype=torch.float64)
    (model(x) * seed).sum().backward()
    monkeypatch.setattr(forward_pass, "follow", lambda module: None)
    monkeypatch.setattr(fs.nn.FlexConv1d, "stacking_key", lambda self: None)
    monkeypatch.setattr(fs.nn.FlexConv2d, "stacking_key", lambda self: None)
    (other(x) * seed).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    others = [p.grad for p in other.parameters() if p.grad is not None]
    assert len(gradients) == len(others) > 20
    largest = max(float(grad.abs().max()) for grad in others)
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True)) < 1e-10 * largest


def test_crops_of_many_lengths_are_padded_with_zeros_that_count_nothing():
    torch.manual_seed(0)
    layers = [fs.FlexConv2d(2, 3, 15, mask_sigma=sigma).double() for sigma in (0.1, 0.2, 0.45, 0.9)]
    keeps = forward_pass.read_crops(layers)
    assert len({tuple(keep) for keep in keeps}) == 4
    for layer, keep, kernel in zip(layers, keeps, kernel_making.make_kernels(layers, keeps), strict=True):
        basis = layer.basis(keep)
        torch.testing.assert_close(kernel.basis, basis, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(torch.tensordot(kernel.weight, basis, 1), layer.sample_kernel())
    batches = kernel_making._basis_batches(layers, keeps)
    assert [batch.members for batch in batches] == [[0, 1, 2, 3]]
    whole = batches[0].whole({})
    length = keeps[0][0][1] - keeps[0][0][0]
    assert torch.equal(whole[0, :, length**2 :], torch.zeros_like(whole[0, :, length**2 :]))


def test_layers_of_very_different_sizes_are_not_padded_to_the_longest():
    groups = kernel_making._of_similar_size({0: 100, 1: 9_000, 2: 10_000, 3: 90, 4: 2_000}, 32, 2**20)
    assert groups == [[1, 2], [4], [0, 3]]
    assert kernel_making._of_similar_size(dict.fromkeys(range(8), 10_000), 32, 2**20) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_penalty_may_be_differentiated_apart_from_the_loss():
    model, x = fs.FlexTCN(depth=1, width=4, dropout=0.0).double(), torch.randn(2, 1, 30, dtype=torch.float64)
    model(x)
    other = copy.deepcopy(model)
    loss, penalty = model(x).square().sum(), kernel_penalty(model)
    loss.backward()
    penalty.backward()
    (other(x).square().sum() + kernel_penalty(other)).backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_two_forward_passes_and_then_two_backward_passes():
    model = sequential().double()
    first, second = torch.randn(2, 3, 2, 40, dtype=torch.float64)
    model(first)
    losses = [model(first).sum(), model(second).sum()]
    for loss in losses:
        loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (model(first).sum() + model(second).sum()).backward()
    for a, b in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_that_are_computed_again_in_the_backward_pass(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = sequential()

        def forward(self, x):
            return checkpoint(self.layers[:2], self.layers[0].__class__ and x, use_reentrant=reentrant).relu()

    torch.manual_seed(0)
    model, x = Checkpointed(), torch.randn(3, 2, 40, requires_grad=True)
    plain = copy.deepcopy(model.layers[:2])
    for _ in range(3):  # the first finds the outermost module
        model.zero_grad()
        model(x).sum().backward()
    plain(x).relu().sum().backward()
    for a, b in zip(model.layers[:2].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_whole_network_that_is_computed_again_in_the_backward_pass():
    model, x = fs.FlexTCN(depth=1, width=4, dropout=0.0), torch.randn(2, 1, 30, requires_grad=True)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint(model, x, use_reentrant=False).sum().backward()
    for a, b in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(a.grad, b)


def test_a_layer_that_did_not_run_has_no_gradient():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = fs.FlexConv1d(1, 2, 20), fs.FlexConv1d(1, 2, 20)

        def forward(self, x):
            return self.used(x)

    model, x = Half(), torch.randn(1, 1, 20)
    for _ in range(3):
        model.zero_grad()
        model(x).sum().backward()
    assert all(p.grad is not None for p in model.used.parameters())
    assert all(p.grad is None for p in model.unused.parameters())


def test_a_parameter_that_changes_within_the_forward_pass():
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = fs.FlexConv1d(1, 1, 41, causal=True)
            self.widest = 0.05

        def forward(self, x):
            with torch.no_grad():
                self.conv.mask.sigma.fill_(self.widest)
            return self.conv(x)

    model, x = Clamped(), torch.randn(1, 1, 41)
    for widest in (0.05, 0.1, 0.5):
        model.widest = widest
        y = model(x)
        assert relative(y, copy.deepcopy(model.conv)(x)) < 1e-6


def test_a_pass_that_was_interrupted_is_forgotten():
    class Failing(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.conv, self.error = fs.FlexConv1d(1, 1, 11), error

        def forward(self, x):
            y = self.conv(x)
            if self.error is not None:
                raise self.error
            return y

    for error in (ValueError("no"), KeyboardInterrupt()):
        model, x = Failing(None), torch.randn(1, 1, 11)
        model(x)
        model.error = error
        with pytest.raises(type(error)):
            model(x)
        with torch.no_grad():
            model.conv.kernel_network.readout.weight.mul_(2)
        assert relative(model.conv(x), copy.deepcopy(model.conv)(x)) < 1e-6
        other = fs.FlexTCN(depth=1, width=4)
        other(x)
        with FunctionReads() as functions:
            other(x)
        assert functions.found == ["tolist"]


def test_copies_and_pickles_prepare_their_own_passes():
    model, x = sequential(), torch.randn(3, 2, 40)
    model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(x)  # looks at the sizes once
        with FunctionReads() as functions:
            y = other(x)
        assert functions.found == ["tolist"]
        assert relative(y, model(x)) < 1e-6
    with torch.no_grad():
        other[0].mask.sigma.mul_(2)
    assert relative(other(x), model(x)) > 1e-3


def test_gradients_of_gradients_through_a_pass():
    torch.manual_seed(0)
    model, x = sequential()[:2].double(), torch.randn(1, 2, 12, dtype=torch.float64)
    model(x)

    def penalized(model):
        (gradient,) = torch.autograd.grad(model(x).square().sum(), [model[0].mask.sigma], create_graph=True)
        return gradient.square().sum()

    parameter, step = model[0].kernel_network.filters[0].mu, 1e-6
    (slope,) = torch.autograd.grad(penalized(model), [parameter])
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[3, 0] += sign * step
        values.append(penalized(model).item())
        with torch.no_grad():
            parameter[3, 0] -= sign * step
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope[3, 0].item(), rel=1e-4)


def test_frozen_parameters_and_functional_calls():
    model, x = sequential(), torch.randn(3, 2, 40)
    model(x)
    model[0].kernel_network.requires_grad_(False)
    model(x).sum().backward()
    assert all(p.grad is None for p in model[0].kernel_network.parameters())
    assert model[0].mask.sigma.grad is not None
    doubled = {name: 2 * value if "readout" in name else value for name, value in model.named_parameters()}
    y = torch.func.functional_call(model, doubled, (x,))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in other.named_parameters():
            if "readout" in name:
                value.mul_(2)
    assert relative(y, other(x)) < 1e-6
    assert relative(model(x), y) > 1e-2


def test_a_second_user_of_the_kernels_after_a_step_gets_new_ones():
    model, x = sequential(), torch.randn(3, 2, 40)
    model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    assert float(kernel_penalty(model)) == pytest.approx(float(kernel_penalty(copy.deepcopy(model))), rel=1e-6)


def test_a_network_within_data_parallel_where_there_is_no_gpu():
    model, x = sequential(), torch.randn(3, 2, 40)
    y = model(x)
    wrapped = nn.DataParallel(model)
    for _ in range(2):
        assert relative(wrapped(x), y) < 1e-6


def test_a_layer_that_did_not_run_is_not_prepared_until_it_runs_again(monkeypatch):
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.which = nn.ModuleList(fs.FlexConv1d(1, 2, 20) for _ in range(3)), [0, 1]

        def forward(self, x):
            return sum(self.layers[i](x) for i in self.which)

    model, x = Either(), torch.randn(1, 1, 20)
    prepared = []
    original = kernel_making.make_kernels
    monkeypatch.setattr(
        forward_pass, "make_kernels", lambda layers, keeps, **options: prepared.append(len(layers)) or original(layers, keeps)
    )
    counts = []
    for which in ([0, 1], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [2]):
        model.which = which
        prepared.clear()
        y = model(x)
        counts.append(list(prepared))
        assert relative(y, sum(copy.deepcopy(model.layers[i])(x) for i in which)) < 1e-6
        prepared.clear()
    assert counts == [[1, 1], [3], [2], [2, 1], [3], [3]]


def test_a_compiled_network_is_not_prepared_twice(monkeypatch):
    model, x = fs.FlexTCN(depth=1, width=4), torch.randn(2, 1, 30)
    model(x)
    prepared = []
    original = forward_pass._prepared
    monkeypatch.setattr(forward_pass, "_prepared", lambda layers, root: prepared.append(root) or original(layers, root))
    compiled = torch.compile(model.eval(), backend="eager")
    torch.testing.assert_close(compiled(x), copy.deepcopy(model)(x))
    assert model not in prepared


@pytest.mark.parametrize("name", NETWORKS)
def test_rounded_crops_give_the_same_values_and_read_nothing(name):
    model, x = without_dropout(name)
    expected = model(x)
    slopes = torch.autograd.grad(expected.square().sum() + kernel_penalty(model), list(model.parameters()))
    keeps = {}
    for layer, keep in crops_to_capture(model).items():  # as if they had been rounded up by more
        ends = [stop for _, stop in layer._all_taps()]
        more = [(3, 0)] * layer.ndim if layer.causal else [(2, 2)] * layer.ndim
        keeps[layer] = [(max(0, a - i), min(end, b + j)) for (a, b), end, (i, j) in zip(keep, ends, more, strict=True)]
    assert list(keeps.values()) != forward_pass.read_crops(list(keeps))
    with FunctionReads() as functions, OperatorReads() as operators, forward_pass.fixed_crops(keeps):
        y = model(x)
        own = torch.autograd.grad(y.square().sum() + kernel_penalty(model), list(model.parameters()))
    assert functions.found == operators.found == []
    torch.testing.assert_close(y, expected)
    scale = max(float(slope.abs().max()) for slope in slopes)
    for a, b in zip(own, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10 * scale)


def test_crops_that_are_rounded_up_have_few_sizes():
    causal = {1000 - positions.rounded_up([(start, 1000)], (1000,), causal=True)[0][0] for start in range(1000)}
    assert len(causal) <= 36
    for start in range(0, 500, 7):
        ((low, high),) = positions.rounded_up([(start, 1001 - start)], (1001,), causal=False)
        assert 0 <= low <= start
        assert low == 1001 - high
        assert 500 - low <= 1.25 * (500 - start) + 1


def test_training_with_cuda_graphs_where_there_is_no_gpu_says_so_and_trains_the_same():
    torch.manual_seed(0)
    model = fs.FlexTCN(depth=1, width=4, dropout=0.0)
    x = torch.randn(2, 1, 30)
    model(x)
    network = GraphedNetwork(model)
    with pytest.warns(UserWarning, match="no CUDA graph is used: the input is on the CPU"):
        y, penalty = network(x)
    other = copy.deepcopy(model)
    torch.testing.assert_close(y, other(x))
    torch.testing.assert_close(penalty, kernel_penalty(other))


def test_sizes_that_another_process_wrote_are_read_at_once():
    model, x = fs.FlexTCN(depth=2, width=4), torch.randn(2, 1, 30)
    model(x)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.mul_(1)  # as DistributedDataParallel's broadcast, at every step
    with FunctionReads() as functions:
        model(x)
    assert functions.found == ["tolist", "tolist"]  # of the sizes, and of the masks


def test_hooks_of_parameters_run_once():
    model, x = sequential(), torch.randn(3, 2, 40)
    model(x)
    other = copy.deepcopy(model)
    parameter = model[0].kernel_network.readout.weight
    calls = []
    parameter.register_hook(lambda grad: calls.append(1) or 2 * grad)
    for one in (model, other):
        one(x).sum().backward()
    assert calls == [1]
    torch.testing.assert_close(parameter.grad, 2 * other[0].kernel_network.readout.weight.grad)


def test_parameters_that_are_made_from_each_other():
    model, x = sequential()[:1].double(), torch.randn(2, 2, 40, dtype=torch.float64)
    model(x)
    a = model[0].kernel_network.linears[0].weight.detach().clone().requires_grad_()
    names = [f"0.kernel_network.linears.{i}.weight" for i in (0, 1)]
    torch.func.functional_call(model, {names[0]: a, names[1]: 0.5 * a}, (x,)).sum().backward(retain_graph=True)
    apart = [a.detach().clone().requires_grad_(), (0.5 * a).detach().requires_grad_()]
    torch.func.functional_call(model, dict(zip(names, apart, strict=True)), (x,)).sum().backward()
    torch.testing.assert_close(a.grad, apart[0].grad + 0.5 * apart[1].grad)


@pytest.mark.parametrize("what", ["a pass without gradients", "frozen then", "readouts frozen then", "eval mode"])
def test_a_penalty_has_a_gradient_whatever_ran_before(what):
    model, x = fs.FlexTCN(depth=1, width=4), torch.randn(2, 1, 30)
    model(x)
    if what in ("a pass without gradients", "eval mode"):
        model.train(what != "eval mode")
        with torch.no_grad():
            model(x)
    else:
        frozen = [p for name, p in model.named_parameters() if what == "frozen then" or "readout" in name]
        for parameter in frozen:
            parameter.requires_grad_(False)
        model(x)
        for parameter in frozen:
            parameter.requires_grad_(True)
    kernel_penalty(model).backward()
    convs = [conv for block in model.blocks for conv in (block.conv1, block.conv2)]
    assert all(conv.kernel_network.readout.weight.grad is not None and conv.mask.sigma.grad is not None for conv in convs)


def test_models_are_freed():
    references = []
    for backward in (False, True):
        model = fs.FlexTCN(depth=1, width=4)
        for _ in range(2):
            y = model(torch.randn(2, 1, 30)).sum() + kernel_penalty(model)
            if backward:
                y.backward()
        references += [weakref.ref(module) for module in model.modules()]
        del model, y
    gc.collect()
    assert not any(reference() for reference in references)


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_wanted_within_a_pass_without(outer):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = fs.FlexConv1d(1, 2, 20)

        def forward(self, x):
            with torch.inference_mode(False), torch.enable_grad():
                self.conv(torch.ones(1, 1, 20)).sum().backward()
            return self.conv(x)

    model, x = Inner().eval(), torch.randn(1, 1, 20)
    for _ in range(3):
        model.zero_grad()
        with outer():
            model(x)
        assert all(p.grad is not None for p in model.parameters())


def test_an_interrupted_evaluation_leaves_nothing_behind():
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.stops = fs.FlexConv1d(1, 1, 11), False

        def forward(self, x):
            if self.stops:
                raise KeyboardInterrupt
            return self.conv(x)

    model, x = Interrupted(), torch.randn(1, 1, 11)
    model(x)
    model.eval().stops = True
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(x)
    model.conv(x).sum().backward()
    assert model.conv.kernel_network.readout.weight.grad is not None


@pytest.mark.parametrize("first", ["the same graph", "a penalty"])
def test_blocks_are_computed_again_after_another_backward_pass(first):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(fs.FlexConv1d(2, 2, 20) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return x

    model, x = Checkpointed().double(), torch.randn(2, 2, 20, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    model.zero_grad()
    y = model(x)
    if first == "a penalty":
        kernel_penalty(model).backward()
        y.sum().backward()
    else:
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
    plain = copy.deepcopy(model)
    plain.zero_grad()
    z = plain.layers[2](plain.layers[1](plain.layers[0](x)))
    (z.sum() + (kernel_penalty(plain) if first == "a penalty" else z.square().sum())).backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("how", ["trace", "vmap", "a layer by itself"])
def test_what_a_compiled_pass_was_given_is_not_used_later(how):
    torch._dynamo.reset()
    model, x = fs.FlexTCN(depth=1, width=4, dropout=0.0).eval(), torch.randn(2, 1, 40)
    model(x)
    torch.compile(model, backend="eager")(x)
    with torch.no_grad():
        for block in model.blocks:
            block.conv1.mask.sigma.mul_(3)
            block.conv2.mask.sigma.mul_(3)
    if how == "a layer by itself":
        own = model.blocks[0].conv1
        values = torch.compile(own, backend="eager")(x)
    elif how == "trace":
        own = model
        values = torch.jit.trace(model, x, check_trace=False)(x)
    else:
        own = model.blocks[0].conv1.double()
        x = x.double()
        parameters = {name: value[None] for name, value in own.named_parameters()}
        own.method = "direct"
        (values,) = torch.vmap(lambda given: torch.func.functional_call(own, given, (x,)))(parameters)
    torch.testing.assert_close(values, copy.deepcopy(own)(x), rtol=1e-4, atol=1e-5)
