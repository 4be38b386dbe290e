"""Files of weights and constructor arguments."""

import copy
import functools
import json

import pytest
import torch
from safetensors.torch import save_file

import flexseq as fs


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
