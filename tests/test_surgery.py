"""Putting NIFF and FlexConv into networks: the rule, the report, and the papers' counts of parameters."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import flexseq as fs
from flexseq.backbones import BACKBONES, Backbone, build_backbone
from flexseq.bench.plan import make_plan
from flexseq.surgery import to_separable


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(12, 12, 1),
        nn.Conv2d(12, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding="same", bias=False),
        nn.ConvTranspose2d(16, 4, 2, stride=2),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)),
    )


def test_the_rule_and_the_report():
    model = small()
    before = copy.deepcopy(model.state_dict())
    new, report = fs.to_niff(model, size="small")
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons == {
        "0": "the first convolution",
        "1": "",
        "2": "",
        "3": "1x1",
        "4": "stride",
        "5": "its output is not as large as its input",
        "6": "",
        "7": "transposed",
        "8": "its weight is parametrised",
    }
    assert report.replaced == ["1", "2", "6"]
    assert isinstance(new[1], fs.NIFFConv2d)
    assert new[1].groups == 8
    assert [type(part) for part in new[2]] == [fs.NIFFConv2d, nn.Conv2d]
    assert new[2][1].groups == 4
    assert new(torch.randn(1, 3, 14, 15)).shape == model(torch.randn(1, 3, 14, 15)).shape
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert report.parameters_after == sum(p.numel() for p in new.parameters())
    text = str(report)
    assert "left: stride" in text
    assert "3x3, 8 -> 12, groups 4, dilation 2" in text
    assert text.splitlines()[-1].startswith("3 of 9 convolutions replaced")
    pickle.loads(pickle.dumps(new[:8]))  # torch pickles no parametrised modules


def test_flexconv_keeps_groups_and_takes_sizes_from_inputs():
    new, report = fs.to_flexconv(small(), mask_sigma=0.3)
    assert report.replaced == ["1", "2", "6"]
    assert isinstance(new[2], fs.FlexConv2d)
    assert new[2].groups == 4
    assert new[6].bias is None
    new(torch.randn(1, 3, 14, 15))
    assert new[1].kernel_size == (15, 15)
    assert fs.to_flexconv(nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)))[1].replaced == ["1"]


def test_full_and_separable():
    new, _ = fs.to_niff(small(), full=True, size="tiny")
    assert new[6].groups == 1
    assert new[2].groups == 4
    separated, report = to_separable(small())
    assert report.replaced == ["2", "6"]
    assert [part.groups for part in separated[6]] == [16, 1]
    assert separated(torch.randn(1, 3, 14, 15)).shape[1] == 4


def test_separating_leaves_depthwise_convolutions():
    with pytest.raises(fs.InputError, match=r"1: depthwise already"):
        to_separable(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=4)))


@pytest.mark.parametrize(
    ("convert", "options", "message"),
    [
        (fs.to_flexconv, {"foo": 1}, "unknown option of to_flexconv 'foo'"),
        (fs.to_flexconv, {"groups": 1}, "unknown option of to_flexconv 'groups'"),
        (fs.to_cfconv, {"updates": "replace"}, "did you mean 'update'"),
        (fs.to_niff, {"only": ["1"]}, "only expected a regular expression or a function"),
        (fs.to_niff, {"size": "huge"}, "unknown size 'huge'"),
    ],
)
def test_bad_options(convert, options, message):
    with pytest.raises(fs.InputError, match=message):
        convert(small(), **options)
    with pytest.raises(fs.InputError, match=r"expected a torch\.nn\.Module, got str"):
        convert("x")


def test_resolution_of_a_converted_network_with_strides():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    for convert in (fs.to_cfconv, fs.to_niff, fs.to_flexconv):
        new, _ = convert(model)
        new.eval()(torch.randn(1, 1, 17, 17))  # 9 after the stride
        with fs.set_resolution(new, 2):
            assert new(torch.randn(1, 1, 34, 34)).shape[2:] == (17, 17)  # not 18


def test_biases_dtype_device_and_mode():
    model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)).double().eval()
    new, _ = fs.to_niff(model, bias=True)
    assert new[1][1].bias is not None
    assert new[1][0].real.readout.weight.dtype == torch.float64
    assert not new[1][0].training
    assert fs.to_niff(model)[0][1][1].bias is None


def test_a_filter_on_names():
    model = nn.ModuleDict({name: nn.Conv2d(4, 4, 3, padding=1) for name in ("stem", "early", "late")})
    assert fs.to_niff(model, only="^l")[1].replaced == ["late"]
    assert fs.to_niff(model, only=lambda name: name == "early")[1].replaced == ["early"]
    assert {row.reason for row in fs.to_niff(model, only="late")[1].rows} == {"the first convolution", "not chosen", ""}
    with pytest.raises(fs.InputError, match="regular expression"):
        fs.to_niff(model, only="(")


def test_a_module_in_two_places_stays_one():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), shared, nn.ReLU(), shared)
    new, report = fs.to_niff(model)
    assert new[1] is new[3]
    assert report.parameters_after == sum(p.numel() for p in new.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), r"found nothing to convert in Linear \(it has no convolutions\)"),
        (nn.Conv2d(3, 3, 3), r"nothing to convert in Conv2d \(the model: the first convolution\)"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, stride=2)), r"\(0: the first convolution; 1: stride\)"),
    ],
)
def test_nothing_to_convert(model, message):
    for convert in (fs.to_niff, fs.to_flexconv):
        with pytest.raises(fs.InputError, match=message):
            convert(model)


def test_kaiming_initialisation_has_its_variance():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3, padding=1))
    new, _ = fs.to_niff(model, init="kaiming", size=(512,))
    assert abs(new[1][1].weight.std().item() / (2 / 256) ** 0.5 - 1) < 0.05
    assert abs(new[1][0].real.linears[0].weight.std().item() / (2 / 512) ** 0.5 - 1) < 0.15
    with pytest.raises(fs.InputError, match="unknown init"):
        fs.to_niff(model, init="zeros")


# The networks of libraries, counted on torch's meta device.


def counted(name, classes, library="transformers", linear_biases=True, **options):
    pytest.importorskip(library)
    with torch.device("meta"):
        model, _ = build_backbone(name, 3, classes, library)
        new, _ = fs.to_niff(model, **options)
    total = sum(p.numel() for p in new.parameters())
    if not linear_biases:  # of the pointwise maps, which the published count has lost too
        linears = [module for name, module in new.named_modules() if isinstance(module, nn.Linear) and "classifier" not in name]
        total -= sum(module.bias.numel() for module in linears)
    return total


@pytest.mark.parametrize(
    ("name", "classes", "options", "expected"),
    [
        ("resnet18", 1000, {"size": "big"}, 3_660_360),
        ("resnet50", 1000, {"size": "big"}, 18_605_000),
        ("resnet101", 1000, {"size": "big"}, 29_187_432),
        ("resnet18", 100, {"size": "big"}, 3_198_660),
        ("resnet50", 100, {"size": "big"}, 16_760_900),
        ("resnet101", 100, {"size": "big"}, 27_343_332),
        ("resnet18", 1000, {"size": "tiny", "full": True}, 21_127_320),
        ("convnext_tiny", 1000, {"size": "big", "linear_biases": False}, 28_890_664),
        ("convnext_tiny", 100, {"size": "big"}, 28_231_684),
        ("mobilenet_v2", 1000, {"size": "small"}, 3_512_560),
    ],
)
def test_published_parameters(name, classes, options, expected):
    assert counted(name, classes, **options) == expected


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_published_parameters_of_densenet(library):
    assert counted("densenet121", 100, library, size="small") == 5_237_012


def for_small_images(name, conversion, library):
    pytest.importorskip(library)
    with torch.device("meta"):
        return sum(p.numel() for p in Backbone(3, 10, name, conversion=conversion, library=library).parameters())


@pytest.mark.parametrize(
    ("name", "conversion", "expected"),
    [
        ("resnet18", "separated", 2_810_341),
        ("resnet18", "niff_full", 20_613_546),
        ("resnet50", "baseline", 23_520_842),
        ("resnet50", "separated", 16_237_989),
        ("resnet50", "niff_full", 31_743_914),
        ("mobilenet_v2", "niff", 2_593_760),
    ],
)
def test_published_parameters_for_small_images(name, conversion, expected):
    """NIFF, Table A2."""
    assert for_small_images(name, conversion, "transformers") == expected


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize(("conversion", "expected"), [("separated", 5_121_189), ("niff", 5_555_856), ("niff_full", 9_099_098)])
def test_published_parameters_of_densenet_for_small_images(conversion, expected, library):
    """NIFF, Table A2."""
    assert for_small_images("densenet121", conversion, library) == expected


def test_the_report_says_what_padding_is_lost():
    _, report = fs.to_niff(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")))
    assert "3x3, 2 -> 2, reflect padding" in str(report)


def test_the_first_convolution_on_request():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    assert fs.to_niff(model, first=True)[1].replaced == ["0", "1"]
    assert to_separable(model, first=True)[1].replaced == ["0", "1"]


def test_published_parameters_of_the_separated_resnet():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        new, _ = to_separable(build_backbone("resnet18", 3, 100, "transformers")[0])
    assert sum(p.numel() for p in new.parameters()) == 2_865_700


# Backbone


@pytest.mark.parametrize("conversion", ["baseline", "separated", "niff", "niff_full", "niff_linear"])
def test_backbone_trains_and_comes_back_from_a_file(conversion, tmp_path):
    model = Backbone(1, 5, conversion=conversion)
    x = torch.randn(4, 1, 8, 8)
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    fs.save(model.eval(), tmp_path / "model.safetensors")
    assert torch.equal(fs.load(tmp_path / "model.safetensors")(x), model(x))


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_of_libraries_take_small_images(name):
    try:
        model = Backbone(3, 10, name, conversion="niff").eval()
    except fs.InputError as error:
        if "which is not installed here" not in str(error):
            raise
        pytest.skip(str(error))
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert max(layer.kernel_size[0] for layer in model.modules() if isinstance(layer, fs.NIFFConv2d)) >= 16


def test_resnet18_for_small_images_has_the_published_parameters():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        assert sum(p.numel() for p in Backbone(3, 10, "resnet18", library="transformers").parameters()) == 11_173_962


def test_unknown_names():
    with pytest.raises(fs.InputError, match="did you mean 'resnet18'"):
        Backbone(3, 10, "resnet-18")
    with pytest.raises(fs.InputError, match="unknown conversion"):
        Backbone(3, 10, conversion="nif")
    with pytest.raises(fs.InputError, match="unknown library"):
        Backbone(3, 10, "resnet18", library="keras")
    with pytest.raises(fs.InputError, match="expected images of shape"):
        Backbone()(torch.randn(1, 1, 8, 8))


def test_the_task_says_so_where_it_takes_its_own_network(monkeypatch, capsys):
    monkeypatch.setattr("flexseq.bench.plan.is_available", lambda name: False)
    assert make_plan("niff_cifar10").network["backbone"] == "small_resnet"
    assert "note: resnet18 needs timm, torchvision or transformers" in capsys.readouterr().out
    assert make_plan("niff_cifar10", network={"backbone": "resnet18"}).network["backbone"] == "resnet18"
    capsys.readouterr()
    assert make_plan("cifar10", model="backbone").network["backbone"] == "small_resnet"  # its own default, of which nothing is to be said
    assert not capsys.readouterr().out


class Listed(nn.Module):
    """Keeps its convolutions in a list and a dict, too, and runs those."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.steps, self.named = [self.a, (self.b,)], {"b": self.b}

    def forward(self, x):
        return self.named["b"](self.steps[1][0](self.steps[0](x)))


def test_modules_in_lists_and_dicts_are_the_new_ones():
    model = Listed()
    new, report = fs.to_niff(model, size="small")
    assert report.replaced == ["b"]
    assert new.steps[1][0] is new.b
    assert new.named["b"] is new.b
    assert isinstance(new.b[0], fs.NIFFConv2d)
    new(torch.randn(1, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in new.parameters())
    assert isinstance(model.b, nn.Conv2d)
    assert isinstance(model.steps[1][0], nn.Conv2d)


def test_a_method_that_somebody_keeps_is_refused():
    model = Listed()
    model.shortcut = [model.b.forward]
    with pytest.raises(fs.InputError, match="to_niff cannot convert b: something keeps its method forward"):
        fs.to_niff(model)


def three(*, tie_bias=False):
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
    model[2].weight = model[1].weight
    if tie_bias:
        model[2].bias = model[1].bias
    return model


@pytest.mark.parametrize("convert", [fs.to_niff, fs.to_flexconv])
@pytest.mark.parametrize("tie_bias", [False, True])
def test_layers_that_shared_a_weight_share_their_kernel(convert, tie_bias):
    new, report = convert(three(tie_bias=tie_bias), bias=True)
    assert report.replaced == ["1", "2"]
    one, other = (dict(layer.named_parameters()) for layer in new[1:])
    shared = sum(one[name] is other[name] for name in one)
    assert shared == len(one) - (not tie_bias)
    assert report.parameters_after == sum(p.numel() for p in new.parameters())
    new(torch.randn(1, 4, 8, 8)).sum().backward()


def test_a_weight_shared_with_a_layer_that_stays_is_left_alone():
    model = three()
    model[1].stride = (2, 2)
    _, report = fs.to_niff(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), *model))
    assert {row.name: row.reason for row in report.rows}["4"] == "its weight is shared with 3"
    with pytest.raises(fs.InputError, match="1: its weight is shared with 2"):
        fs.to_cfconv(three())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda conv: nn.utils.weight_norm(conv), "its weight is parametrised"),
        (lambda conv: nn.utils.spectral_norm(conv), "its weight is parametrised"),
        (lambda conv: nn.utils.parametrizations.weight_norm(conv), "its weight is parametrised"),
        (lambda conv: nn.utils.prune.l1_unstructured(conv, "weight", 0.3), "its weight is parametrised"),
        (lambda conv: nn.utils.prune.l1_unstructured(conv, "bias", 0.3), "it is pruned"),
        (lambda conv: conv.register_state_dict_post_hook(lambda *arguments: None), "it has hooks on its state_dict"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weights_that_something_else_makes_are_left_alone_by_name(change, reason):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    change(model[1])
    model(torch.randn(1, 3, 6, 6))
    new, report = fs.to_niff(model, size="small")
    assert [row.reason for row in report.rows] == ["the first convolution", reason, ""]
    torch.testing.assert_close(new[1](x := torch.randn(1, 8, 6, 6)), model[1](x))
    new(torch.randn(1, 3, 6, 6)).sum().backward()


def test_hooks_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    seen = []
    model[1].register_forward_hook(lambda module, given, output: seen.append(type(module).__name__) or 2 * output)
    model[1].register_forward_pre_hook(lambda module, given: seen.append("pre"))
    model[1].register_full_backward_hook(lambda module, *gradients: seen.append("backward"))
    new, _ = fs.to_flexconv(model)
    y = new(torch.randn(1, 3, 6, 6, requires_grad=True))
    y.sum().backward()
    assert seen == ["pre", "FlexConv2d", "backward"]


class Rep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def reparameterize(self):
        return self.conv.weight


def test_convolutions_that_are_to_be_merged_are_left_alone():
    _, report = fs.to_niff(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Rep(), nn.Conv2d(3, 3, 3, padding=1)))
    assert [row.reason for row in report.rows] == ["the first convolution", "Rep.reparameterize takes its weight", ""]


@pytest.mark.parametrize("size", [(3, 3), (1, 5), (2, 2), (4, 3)])
@pytest.mark.parametrize(("groups", "dilation"), [(1, 1), (2, 1), (4, 1), (1, 2)])
def test_fitted_flexconvs_give_what_the_network_gave(size, groups, dilation):
    first = nn.Conv2d(3, 4, 3, padding=1)
    model = nn.Sequential(first, nn.Conv2d(4, 4, size, padding="same", groups=groups, dilation=dilation)).double()
    x = torch.randn(2, 3, 12, 14, dtype=torch.float64)
    new, report = fs.to_flexconv(model, init="fit", example=x)
    error = report.rows[1].error
    difference = ((new(x) - model(x)).norm() / model[1](first(x)).norm()).item()
    assert report.replaced == ["1"]
    taps = math.prod(dilation * (n - 1) + 1 for n in size)
    if taps <= 15:  # of 33 functions
        assert error < 1e-3
        assert difference < 2e-3
    assert difference < 1.5 * error + 1e-9
    assert "error of the fit" in str(report)
    sized, sized_report = fs.to_flexconv(model, init="fit", kernel_size=21)
    if taps <= 15:
        assert sized_report.rows[1].error < 1e-3
        assert ((sized(x) - model(x)).norm() / model(x).norm()).item() < 2e-3


def test_a_trained_network_goes_on_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = fs.CIFARResNet(depth=8)
    x = torch.randn(16, 3, 16, 16)
    for _ in range(3):
        model(x)
    new, report = fs.to_flexconv(model, init="fit", example=x)
    assert max(row.error for row in report.rows if row.error is not None) < 0.01
    assert model.training
    assert new.training
    difference = (new.eval()(x) - model.eval()(x)).abs().max()
    assert difference < 0.02 * model(x).std()
    fs.save(new, tmp_path / "m.safetensors")
    torch.testing.assert_close(fs.load(tmp_path / "m.safetensors")(x), new(x))


@pytest.mark.parametrize("options", [{"full": True}, {"full": True, "linear": True}, {"full": True, "padding": "zero"}])
def test_fitted_niffs_are_near_a_full_convolution(options):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 3, 10, 9)
    new, report = fs.to_niff(model, init="fit", example=x, bias=True, size="big", **options)
    assert report.rows[1].error < 0.05
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # where edges do not count
    assert ((new(x) - model(x))[inside].norm() / model(x)[inside].norm()) < 0.1


def test_the_error_of_a_depthwise_fit_is_that_of_the_whole_kernel():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, groups=2))
    new, report = fs.to_niff(model, init="fit", example=torch.randn(1, 3, 9, 9), size="big")
    depthwise, point = new[1]
    product = point.weight[:, :, 0, 0].view(2, 3, 2, 1, 1) * depthwise.sample_kernel().view(2, 1, 2, 9, 9)
    target = torch.zeros(6, 2, 9, 9)
    target[:, :, 3:6, 3:6] = model[1].weight
    assert report.rows[1].error == pytest.approx(((product.view(6, 2, 9, 9) - target).norm() / target.norm()).item(), rel=1e-3)
    assert report.rows[1].error < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "fit"}, "expected an example with init"),
        ({"example": torch.zeros(1, 3, 8, 8)}, "expected no example without init"),
        ({"init": "fitt"}, "did you mean 'fit'"),
    ],
)
def test_bad_fits(options, message):
    for convert in (fs.to_niff, fs.to_flexconv):
        with pytest.raises(fs.InputError, match=message):
            convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)), **options)
