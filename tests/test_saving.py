"""Files of weights and constructor arguments."""

import copy
import functools
import json
import os
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import flexseq as fs
from flexseq.models.heads import SequenceHead
from flexseq.models.norms import StepNorm


def test_kernel_factories_are_saved_as_data(tmp_path):
    model = fs.FlexTCN(depth=1, kernel=functools.partial(fs.kernels.SIREN, omega_0=12.5))
    fs.save(model, tmp_path / "m.safetensors")
    assert fs.load(tmp_path / "m.safetensors").blocks[0].conv1.kernel_network.omega_0 == 12.5


def test_a_lambda_is_refused_and_nothing_is_written(tmp_path):
    model = fs.FlexTCN(depth=1, kernel=lambda *a, **k: fs.kernels.SIREN(*a, **k))
    with pytest.raises(fs.InputError, match="cannot save the argument <function"):
        fs.save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_module_of_someone_else_is_refused(tmp_path):
    class Mine(fs.FlexTCN):
        pass

    for module in (torch.nn.Linear(1, 1), Mine(depth=1)):
        with pytest.raises(fs.InputError, match="is not a class of flexseq"):
            fs.save(module, tmp_path / "m.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    fs.save(fs.FlexTCN(depth=1), path)
    before = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        fs.save(fs.FlexTCN(depth=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_loaded_model_is_in_eval_mode_and_has_its_dtype(tmp_path):
    fs.save(fs.FlexTCN(depth=1).double(), tmp_path / "m.safetensors")
    model = fs.load(tmp_path / "m.safetensors")
    assert not model.training
    assert model.head.weight.dtype == torch.float64


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(fs.InputError, match="is not a safetensors file"):
        fs.load(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(fs.InputError, match=r"was not written by flexseq\.save"):
        fs.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        fs.load(tmp_path / "missing")


def test_a_file_cannot_name_code_to_run(tmp_path):
    arguments = json.dumps({"cmd": "true"})
    save_file({"a": torch.zeros(1)}, tmp_path / "evil", {"flexseq": "1", "class": "os.system", "arguments": arguments})
    with pytest.raises(fs.InputError, match=r"unknown flexseq class 'os\.system'"):
        fs.load(tmp_path / "evil")


def test_a_file_with_other_contents_is_one_sentence(tmp_path):
    def metadata(**arguments):
        return {"flexseq": "1", "class": "FlexTCN", "arguments": json.dumps(arguments)}

    save_file({"a": torch.zeros(1)}, tmp_path / "tensors", metadata(depth=1))
    save_file({"a": torch.zeros(1)}, tmp_path / "arguments", metadata(deepness=1))
    save_file({"a": torch.zeros(1)}, tmp_path / "class", {"flexseq": "1"})
    for name in ("tensors", "arguments", "class"):
        with pytest.raises(fs.InputError, match=r"does not hold a .* of this version of flexseq"):
            fs.load(tmp_path / name)
    with pytest.raises(fs.InputError, match="is not a safetensors file"):
        fs.load(tmp_path)


def test_mixed_dtypes_are_kept(tmp_path):
    model = fs.FlexTCN(depth=1).bfloat16()
    model.blocks[0].norm1.float()
    fs.save(model, tmp_path / "m.safetensors")
    loaded = fs.load(tmp_path / "m.safetensors")
    assert loaded.head.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].norm1.weight.dtype == torch.float32
    assert loaded.head.weight.requires_grad


@pytest.mark.parametrize(
    ("convert", "options"),
    [
        (fs.to_niff, {"size": "small", "only": r"blocks\.1"}),
        (fs.to_flexconv, {"kernel_size": 9, "kernel": functools.partial(fs.kernels.SIREN, omega_0=12.5)}),
        (fs.to_cfconv, {"positions": 50}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_converted_network_comes_back(convert, options, tmp_path):
    model, _ = convert(fs.CIFARResNet(depth=8), **options)
    x = torch.randn(1, 3, 8, 8)
    expected = model.eval()(x)
    fs.save(copy.deepcopy(model), tmp_path / "m.safetensors")
    other = fs.load(tmp_path / "m.safetensors")
    assert torch.equal(other(x), expected)
    fs.save(other, tmp_path / "again.safetensors")
    assert torch.equal(fs.load(tmp_path / "again.safetensors")(x), expected)


def test_a_network_converted_twice_comes_back(tmp_path):
    model, _ = fs.to_niff(fs.CIFARResNet(depth=8), size="small", only="^blocks.0")
    model, _ = fs.to_flexconv(model, kernel_size=9)
    x = torch.randn(1, 3, 8, 8)
    expected = model.eval()(x)
    fs.save(model, tmp_path / "m.safetensors")
    assert torch.equal(fs.load(tmp_path / "m.safetensors")(x), expected)


def test_conversions_that_cannot_be_repeated_are_refused(tmp_path):
    model, _ = fs.to_niff(fs.CIFARResNet(depth=8), size="small", only=lambda name: "0" in name)
    with pytest.raises(fs.InputError, match="CIFARResNet was converted by to_niff, which nobody could do again: cannot save the argument"):
        fs.save(model, tmp_path / "m.safetensors")
    model, _ = fs.to_niff(torch.nn.Sequential(fs.CIFARResNet(depth=8)), size="small")
    with pytest.raises(fs.InputError, match="CIFARResNet was converted as part of Sequential"):
        fs.save(model[0], tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_patterns_are_saved_as_the_names_they_found(tmp_path):
    model, _ = fs.to_niff(fs.CIFARResNet(depth=8), size="small", only=r"(blocks\.)+[01]+")
    fs.save(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert "blocks" + chr(92) not in file.metadata()["conversions"]
    assert str(fs.load(tmp_path / "m.safetensors")) == str(model.eval())


def test_a_model_with_a_new_head_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "m.safetensors"
    model = fs.FlexTCN(1, 2, depth=1, width=8)
    fs.save(model, path)
    before = path.read_bytes()
    changes = {
        r"head\.weight is of shape \(5, 8\), its arguments make \(2, 8\)": lambda m: setattr(m, "head", SequenceHead(8, 5, "last")),
        r"head\.mode is 'mean', its arguments make 'last'": lambda m: setattr(m, "head", SequenceHead(8, 2, "mean")),
        r"blocks\.0\.dropout\.p is 0\.7, its arguments make 0\.1": lambda m: setattr(m.blocks[0].dropout, "p", 0.7),
        r"head\.bias is gone": lambda m: setattr(m, "head", torch.nn.Identity()),
        r"extra\.bias is new": lambda m: m.add_module("extra", torch.nn.Linear(1, 1)),
        r"blocks\.0\.norm1 is a StepNorm|blocks\.0\.norm1\.\w+ is gone": lambda m: setattr(m.blocks[0], "norm1", StepNorm(8)),
    }
    for message, change in changes.items():
        changed = copy.deepcopy(model)
        change(changed)
        with pytest.raises(fs.InputError, match=f"FlexTCN was changed since it was built: .*({message})"):
            fs.save(changed, path)
        assert path.read_bytes() == before


def test_what_a_model_is_wrapped_in_is_left_out(tmp_path):
    model = fs.FlexTCN(1, 2, depth=1, width=8, kernel_size=9, mask_sigma=0.5).eval()
    x = torch.randn(1, 1, 20)
    wrapped = [torch.nn.DataParallel(model), torch.optim.swa_utils.AveragedModel(model), torch.compile(model, backend="eager")]
    for one in [*wrapped, torch.nn.DataParallel(torch.compile(model, backend="eager"))]:
        fs.save(one, tmp_path / "m.safetensors")
        assert torch.equal(fs.load(tmp_path / "m.safetensors")(x), model(x))


def rewritten(path, *, arguments=None, conversions=None, tensors=None):
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if arguments is not None:
        metadata["arguments"] = json.dumps({**json.loads(metadata["arguments"]), **arguments})
    if conversions is not None:
        metadata["conversions"] = json.dumps(conversions)
    if tensors is not None:
        state |= tensors
    save_file(state, path, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": {"depth": 10**6}}, "asks for depth=1,000,000, and"),
        ({"arguments": {"depth": 999}}, "asks for depth=999, and"),
        ({"arguments": {"kernel": {"class": "MAGNet", "keywords": {"layers": 10**7}}}}, "asks for layers=10,000,000"),
        ({"arguments": {"kernel": {"class": "MAGNet", "keywords": {"hidden": 10**9}}}}, "size mismatch"),
        ({"arguments": {"width": 10**6}}, "out_channels to be an integer of at most"),
        ({"arguments": {"width": 10**4}}, "size mismatch"),
        ({"arguments": {"kernel": {"class": "MLP", "keywords": {"widths": [2] * 10**5}}}}, "list of 100,000 items"),
        ({"conversions": [["to_niff", {"only": "(a+)+$"}]]}, "pattern without repetitions"),
        ({"conversions": [["to_niff", {"only": 3}]]}, "regular expression"),
        ({"tensors": {"head.bias": torch.zeros(2, dtype=torch.complex64)}}, "written with numbers of types"),
        ({"tensors": {"head.bias": torch.zeros(2, dtype=torch.float64)}}, "written with numbers of types"),
        ({"tensors": {"head.bias": torch.zeros(2, dtype=torch.int32)}}, "written with numbers of types"),
        ({"tensors": {"blocks.0.conv1.kernel_size_code": torch.full((26,), -5.0)}}, "to hold a kernel size for 1 axes"),
    ],
    ids=str,
)
def test_files_that_ask_for_too_much_are_refused_at_once(changes, message, tmp_path):
    path = tmp_path / "m.safetensors"
    fs.save(fs.FlexTCN(1, 2, depth=1, width=8, kernel_size=9, mask_sigma=0.5), path)
    began = time.monotonic()
    with pytest.raises(fs.InputError, match=f"does not hold a FlexTCN.*{message}"):
        fs.load(rewritten(path, **changes))
    assert time.monotonic() - began < 10  # they hung


def test_an_integer_in_the_place_of_weights_is_refused_in_older_files_too(tmp_path):
    path = tmp_path / "m.safetensors"
    fs.save(fs.FlexConv1d(1, 2, 9, mask_sigma=0.5), path)
    rewritten(path, tensors={"bias": torch.zeros(2, dtype=torch.complex64)})
    with safe_open(path, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "dtypes"}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(state, path, metadata)
    with pytest.raises(fs.InputError, match=r"bias expected torch\.float32 or its like, got torch\.complex64"):
        fs.load(path)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(fs.InputError, match="is not a safetensors file: it is no plain file"):
        fs.load(tmp_path / "pipe")
