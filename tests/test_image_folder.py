"""Pictures in folders, and the random changes to them."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import flexseq as fs
from flexseq.bench.plan import make_plan
from flexseq.bench.run import run
from flexseq.data.augment import OPERATIONS, RandAugment
from flexseq.data.image_folder import load_cats_dogs, load_image_folder, read_picture
from flexseq.training.callbacks import EpochSeeds


def picture(path, colour, size=(20, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash(path.name)) % 2**32).integers(0, 40, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


def cats_and_dogs(folder, count=20):
    for i in range(count):
        picture(folder / "Cat" / f"{i}.jpg", (200, 20, 20))
        picture(folder / "Dog" / f"{i}.jpg", (20, 20, 200))
    return folder


def test_flat_folders_are_split_and_broken_files_named(tmp_path):
    folder = cats_and_dogs(tmp_path / "PetImages")
    (folder / "Cat" / "666.jpg").touch()
    whole = (folder / "Dog" / "1.jpg").read_bytes()
    (folder / "Dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "Dog" / "Thumbs.db").write_bytes(b"no picture")
    before = list(warnings.filters)
    dataset = load_cats_dogs(str(tmp_path), size=12)
    assert warnings.filters == before
    assert sum(dataset.sizes.values()) == 40
    assert dataset.classes == ["Cat", "Dog"]
    assert dataset.shape == (3, 12, 12)
    (note,) = [note for note in dataset.notes if "cannot be read" in note]
    assert note.startswith("2 pictures cannot be read and are left out: ")
    assert "666.jpg" in note
    assert "cut.jpg" in note
    x, y = dataset.test.batch([0, 1, 2])
    assert x.shape == (3, 3, 12, 12)
    red = x[:, 0].mean((1, 2)) > x[:, 2].mean((1, 2))
    assert torch.equal(red, y == 0)


def test_train_and_val(tmp_path):
    cats_and_dogs(tmp_path / "train")
    cats_and_dogs(tmp_path / "val", 3)
    dataset = load_image_folder(str(tmp_path), size=8, limit=20)
    assert dataset.sizes == {"train": 18, "validation": 2, "test": 6}
    picture(tmp_path / "val" / "Bird" / "1.png", (0, 200, 0))
    with pytest.raises(fs.InputError, match="expected the same classes, got Bird"):
        load_image_folder(str(tmp_path), size=8)


def test_the_middle_square_is_taken(tmp_path):
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", 5).min() == 255
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    with pytest.raises(fs.InputError, match=r"b\.png cannot be read as a picture"):
        read_picture(tmp_path / "b.png", 5)


def _cats_and_a_broken_dog(folder):
    picture(folder / "Cat" / "1.jpg", (1, 1, 1))
    (folder / "Dog").mkdir()
    (folder / "Dog" / "1.jpg").touch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is empty"),
        (lambda folder: (folder / "a.txt").touch(), "holds no pictures: expected a folder of"),
        (lambda folder: picture(folder / "Cat" / "1.jpg", (1, 1, 1)), "at least two classes, got Cat alone"),
        (lambda folder: (folder / "Cat").mkdir() or (folder / "Cat" / "1.jpg").touch(), "none of its 1 pictures can be read"),
        (_cats_and_a_broken_dog, r"at least two classes, got Cat alone: 1 picture cannot be read and is left out: .*Dog/1\.jpg"),
        (lambda folder: (folder / "train").mkdir(), "holds train/, but none of val/, test/"),
    ],
)
def test_wrong_folders(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(fs.InputError, match=message):
        load_cats_dogs(str(tmp_path))


def test_three_classes_are_no_cats_and_dogs(tmp_path):
    for name in ("Bird", "Cat", "Dog"):
        for i in range(10):
            picture(tmp_path / name / f"{i}.png", (10, 10, 10))
    with pytest.raises(fs.InputError, match="pictures of two classes, got 3"):
        load_cats_dogs(str(tmp_path))
    with pytest.raises(fs.InputError, match="at least 4 px"):
        load_image_folder(str(tmp_path), size=3)


def test_random_changes_repeat_with_the_seed_and_stay_in_range():
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    images = torch.rand(32, 3, 10, 10)
    x = (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    augment = RandAugment(mean, std)
    torch.manual_seed(3)
    first = augment(x)
    torch.manual_seed(3)
    assert torch.equal(augment(x), first)
    back = first * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    assert back.min() > -1e-5
    assert back.max() < 1 + 1e-5
    assert ((first - x).abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.7
    assert torch.allclose(RandAugment(mean, std, count=0)(x), x, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
def test_operations_without_strength_change_nothing_but_the_levels(operation):
    images = torch.rand(4, 3, 8, 8)
    y = operation(images, torch.zeros(4))
    if operation.__name__ == "_autocontrast":
        assert torch.equal(y.amin((2, 3)), torch.zeros(4, 3))
        assert torch.allclose(y.amax((2, 3)), torch.ones(4, 3))
    else:
        assert torch.allclose(y, images, atol=1e-5)
        assert not torch.allclose(operation(images, torch.full((4,), 0.5)), images, atol=1e-2)


def test_shifts_move_by_halves_of_the_image():
    image = torch.zeros(1, 1, 4, 4)
    image[..., 1:3] = 1
    across = OPERATIONS[[one.__name__ for one in OPERATIONS].index("_shift_across")]
    assert torch.allclose(across(image, torch.tensor([0.5]))[0, 0, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]), atol=1e-5)


@pytest.mark.parametrize(
    ("task", "model", "network"),
    [
        ("cats_dogs", "cfnet", {"positions": 100, "depth": 2, "width": 4}),
        ("cats_dogs", "cfnet", {"conv": "conv", "depth": 2, "width": 4}),
        ("niff_imagenet", "backbone", {"backbone": "small_resnet", "conversion": "niff_full"}),
    ],
)
def test_tasks_on_folders_run(task, model, network, tmp_path):
    folder = cats_and_dogs(tmp_path / "train", 10).parent
    cats_and_dogs(tmp_path / "val", 4)
    plan = make_plan(
        task, model=model, network=network, training={"epochs": 1, "batch_size": 8}, data={"data_dir": str(folder), "size": 16}
    )
    path = run(plan, tmp_path / "run", seeds=1, device="cpu", resume=False)
    drawn = json.loads(path.read_text()).get("drawn_positions", {})
    assert [layer["drawn"] for layer in drawn.values()] == ([100, 100] if "positions" in network else [])
    assert type(fs.load(tmp_path / "run" / "model.safetensors")).__name__ == {"cfnet": "CFNet", "backbone": "Backbone"}[model]


@pytest.mark.parametrize(
    ("network", "training", "message"),
    [
        ({"gradient": "naive", "positions": 50}, {}, "--gradient naive evaluates all positions in every step"),
        ({"rate": 0.5}, {}, "expected rate=None with update='replace'"),
        ({}, {"kernel_penalty": 0.1}, "--kernel-penalty expected a network of continuous kernels, got cfnet"),
    ],
)
def test_options_that_would_do_nothing_are_refused(network, training, message, tmp_path):
    folder = cats_and_dogs(tmp_path / "PetImages", 10).parent
    with pytest.raises(fs.InputError, match=message):
        run(
            make_plan("cats_dogs", network=network, training=training, data={"data_dir": str(folder), "size": 8}),
            tmp_path / "run",
            seeds=1,
            device="cpu",
            resume=False,
        )
    assert not (tmp_path / "run").exists()


def test_a_run_of_sparse_kernels_goes_on_where_it_was(tmp_path, monkeypatch):
    """Positions are drawn by seed and step: a resumed run repeats an uninterrupted one."""
    folder = cats_and_dogs(tmp_path / "PetImages", 10).parent

    def go(name, resume=False):
        data = {"data_dir": str(folder), "size": 8}
        plan = make_plan("cats_dogs", network={"positions": 50, "depth": 2, "width": 4}, training={"epochs": 4}, data=data)
        run(plan, tmp_path / name, seeds=1, device="cpu", resume=resume)
        return fs.load(tmp_path / name / "model.safetensors")

    whole = go("whole")
    original = EpochSeeds.on_train_batch_start

    def stop(self, trainer, module, batch, index):
        if trainer.current_epoch == 2:
            raise RuntimeError("stopped")
        return original(self, trainer, module, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeeds, "on_train_batch_start", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            go("stopped")
    resumed = go("stopped", resume=True)
    assert whole.convs[0]._steps == 4
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def ramp(dtype, top):
    return (np.tile(np.linspace(0, 1, 64), (64, 1)) * top).astype(dtype)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (ramp(np.uint16, 65535), "sixteen.png"),
        (ramp(np.uint16, 65535), "sixteen.tif"),
        (ramp(np.int32, 65535), "thirtytwo.tif"),
        (ramp(np.float32, 1), "unit.tif"),
        (ramp(np.float32, 255), "bytes.tif"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_of_any_range_are_as_bright_as_bytes(values, name, tmp_path):
    Image.fromarray(ramp(np.uint8, 255)).save(tmp_path / "8.png")
    Image.fromarray(values).save(tmp_path / name)
    expected, found = (read_picture(tmp_path / file, 16).astype(float) for file in ("8.png", name))
    assert np.abs(found - expected).max() <= 1
    assert found[0].mean() == pytest.approx(127, abs=1)


@pytest.mark.parametrize("values", [ramp(np.float32, 1000), ramp(np.float32, -1), ramp(np.float32, np.nan), ramp(np.int32, 70000)])
def test_numbers_of_an_unknown_range_are_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(fs.InputError, match=r"a\.tif cannot be read as a picture: expected .* in 0 \.\. "):
        read_picture(tmp_path / "a.tif", 16)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_pictures_are_turned_as_their_camera_was(orientation, turned, suffix, tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :16] = 255  # one corner
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(image).save(tmp_path / f"a.{suffix}", exif=exif)
    found = read_picture(tmp_path / f"a.{suffix}", 8)[0]
    expected = np.rot90(image[::4, ::4, 0], turned)
    assert np.abs(found.astype(int) - expected).mean() < 12


def test_capitals_and_three_splits(tmp_path):
    for split, count in (("Train", 10), ("Val", 4), ("TEST", 3)):
        cats_and_dogs(tmp_path / split, count)
    dataset = load_image_folder(str(tmp_path), size=8)
    assert dataset.classes == ["Cat", "Dog"]
    assert dataset.sizes == {"train": 20, "validation": 8, "test": 6}
    cats_and_dogs(tmp_path / "training", 1)
    with pytest.raises(fs.InputError, match="expected one of Train/, training/, which mean the same"):
        load_image_folder(str(tmp_path), size=8)


def test_a_class_of_other_files_is_named(tmp_path):
    cats_and_dogs(tmp_path, 10)
    (tmp_path / "Bird").mkdir()
    for i in range(9):
        (tmp_path / "Bird" / f"{i}.raw").write_bytes(b"1")
    dataset = load_image_folder(str(tmp_path), size=8)
    assert dataset.classes == ["Cat", "Dog"]
    assert any("1 folders of" in note and "no classes: Bird" in note for note in dataset.notes)
    assert any("9 files of" in note and "0.raw" in note for note in dataset.notes)
