"""Image datasets in their official formats, written here in miniature."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_downloads import server  # noqa: F401

from flexseq import InputError
from flexseq.data import image_formats, images, small_imagenet
from flexseq.data.augment import CropAndFlip, resize

rng = np.random.default_rng(0)


def pixels(count, *shape):
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count, classes):
    return (np.arange(count) % classes).astype(np.uint8)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def tar(folder, files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def cifar(count, label_columns, classes):
    pictures = pixels(count, 3, 32, 32)
    columns = [np.zeros(count, np.uint8)] * (label_columns - 1) + [labels(count, classes)]
    return pictures, np.concatenate([np.stack(columns, 1), pictures.reshape(count, -1)], 1).tobytes()


def official(name):
    """The official files in miniature, by name, and the first test image."""
    if name in ("mnist", "fashion_mnist"):
        files, first = {}, None
        for split, count in (("train", 100), ("t10k", 20)):
            pictures = pixels(count, 28, 28)
            first = pictures[:1] if split == "t10k" else None
            files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(idx(pictures))
            files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels(count, 10)))
        return files, first
    if name == "cifar10":
        parts = {f"data_batch_{i}.bin": cifar(20, 1, 10)[1] for i in range(1, 6)}
        pictures, parts["test_batch.bin"] = cifar(20, 1, 10)
        return {"cifar-10-binary.tar.gz": tar("cifar-10-batches-bin", parts)}, pictures[0]
    if name == "cifar100":
        _, train = cifar(1000, 2, 100)
        pictures, test = cifar(100, 2, 100)
        return {"cifar-100-binary.tar.gz": tar("cifar-100-binary", {"train.bin": train, "test.bin": test})}, pictures[0]
    train, test = pixels(100, 3, 96, 96), pixels(10, 3, 96, 96)
    parts = {"train_X.bin": train.swapaxes(2, 3).tobytes(), "train_y.bin": (labels(100, 10) + 1).tobytes()}
    parts |= {"test_X.bin": test.swapaxes(2, 3).tobytes(), "test_y.bin": (labels(10, 10) + 1).tobytes()}
    return {"stl10_binary.tar.gz": tar("stl10_binary", parts)}, test[0]


@pytest.fixture
def known(monkeypatch):
    """Put the miniature files' checksums, and an address, in the place of the official ones."""

    def know(name, files, url="http://127.0.0.1:9"):
        source = images.SOURCES[name]
        sums = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        replaced = images.Source(**{**source.__dict__, "files": sums, "urls": (f"{url}/",), "counts": None})
        monkeypatch.setitem(images.SOURCES, name, replaced)

    return know


@pytest.mark.parametrize("name", images.SOURCES)
def test_reads_official_files(name, tmp_path, known):
    files, first = official(name)
    known(name, files)
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    assert images.images_are_here(name, tmp_path)
    dataset = images.load_images(name, folder=tmp_path)
    source = images.SOURCES[name]
    size = {"mnist": 28, "fashion_mnist": 28, "stl10": 96}.get(name, 32)
    assert dataset.shape == (len(source.mean), size, size)
    assert len(dataset.classes) == {"cifar100": 100}.get(name, 10)
    x, target = dataset.test.batch([0])
    expected = (torch.from_numpy(first.copy()).float() / 255 - torch.tensor(source.mean).view(-1, 1, 1)) / torch.tensor(source.std).view(
        -1, 1, 1
    )
    torch.testing.assert_close(x[0], expected, atol=1e-5, rtol=1e-5)
    assert target.tolist() == [0]
    assert not set(dataset.train.indices) & set(dataset.validation.indices)
    assert len(dataset.validation) == round(0.1 * (len(dataset.train) + len(dataset.validation)))
    again = images.load_images(name, folder=tmp_path)  # from what was unpacked
    assert torch.equal(again.test.batch([0])[0], x)


def test_whole_records_that_are_too_few_are_noticed(tmp_path, known, monkeypatch):
    files, _ = official("cifar10")
    known("cifar10", files)
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    assert images.SOURCES["cifar10"].counts is None
    images.load_images("cifar10", folder=tmp_path)
    counted = images.Source(**{**images.SOURCES["cifar10"].__dict__, "counts": (50_000, 10_000)})
    monkeypatch.setitem(images.SOURCES, "cifar10", counted)
    with pytest.raises(InputError, match="holds 100 training images of cifar10, of 50,000: truncated or altered"):
        images.load_images("cifar10", folder=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_fetches_official_files(name, tmp_path, known, server):  # noqa: F811
    served, url = server
    files, _ = official(name)
    known(name, files, url)
    for file, data in files.items():
        (served / file).write_bytes(data)
    dataset = images.load_images(name, folder=tmp_path / "data", download=True)
    assert len(dataset.test) == 20


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: data[:50] + b"x" + data[51:]], ids=["truncated", "altered"])
def test_damaged_archive_is_kept_aside_and_not_used(name, damage, tmp_path, known, capsys):
    files, _ = official(name)
    known(name, files)
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    victim = next(iter(files))
    (tmp_path / victim).write_bytes(damage(files[victim]))
    with pytest.raises(InputError, match=f"nor {victim}; give another folder, or --download"):
        images.load_images(name, folder=tmp_path)
    assert (tmp_path / f"{victim}.altered").read_bytes() == damage(files[victim])
    assert not (tmp_path / victim).exists()
    assert "its SHA-256 is not the known one" in capsys.readouterr().out


def test_labels_and_pixels_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1000))[:12] + b"broken deflate stream" * 3)
    with pytest.raises(InputError, match=r"cannot be read|truncated or altered"):
        image_formats.read_idx(tmp_path / "a", 3)
    with pytest.raises(InputError, match="a label of -1, of 10 classes"):
        image_formats.checked_labels(np.array([3, -1]), 10, tmp_path)


def test_digits_are_not_taken_for_clothes(tmp_path, known, server):  # noqa: F811
    clothes, _ = official("fashion_mnist")
    known("fashion_mnist", clothes)
    digits, _ = official("mnist")
    known("mnist", digits)
    for file, data in digits.items():
        (tmp_path / file).write_bytes(data)
    assert images.images_are_here("mnist", tmp_path)
    assert not images.images_are_here("fashion_mnist", tmp_path)
    with pytest.raises(InputError, match="holds mnist, whose files have the names of fashion_mnist's; give another folder, or --download"):
        images.load_images("fashion_mnist", folder=tmp_path)
    served, url = server
    known("fashion_mnist", clothes, url)
    for file, data in clothes.items():
        (served / file).write_bytes(data)
    for _ in range(2):  # each leaves the other's files alone
        assert images.load_images("fashion_mnist", folder=tmp_path, download=True).source == str(tmp_path / "fashion_mnist")
        assert images.load_images("mnist", folder=tmp_path).source == str(tmp_path)


def test_images_without_labels_are_noticed(tmp_path):
    for split, pictures, answers in (("train", 300, 100), ("t10k", 20, 20)):
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(pixels(pictures, 28, 28)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels(answers, 10)))
    with pytest.raises(InputError, match="300 training images in MNIST's format, but 100 labels"):
        image_formats.read_mnist(tmp_path)


def test_truncated_records_are_refused(tmp_path, known):
    files, _ = official("cifar10")
    known("cifar10", files)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(files["cifar-10-binary.tar.gz"])
    images.load_images("cifar10", folder=tmp_path)
    batch = tmp_path / "cifar10" / "cifar-10-batches-bin" / "data_batch_3.bin"
    batch.write_bytes(batch.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"data_batch_3\.bin holds 61,453 bytes, which is no whole number of records of 3,073"):
        images.load_images("cifar10", folder=tmp_path)


def test_folder_with_another_layout(tmp_path):
    (tmp_path / "something.txt").write_text("")
    with pytest.raises(InputError, match=r"holds neither cifar-10-batches-bin/data_batch_1\.bin nor cifar-10-binary\.tar\.gz"):
        images.load_images("cifar10", folder=tmp_path)
    assert not images.images_are_here("cifar10", tmp_path)
    with pytest.raises(InputError, match=r"holds no train_data_batch_1\.npz"):
        small_imagenet.load_small_imagenet(16, folder=tmp_path)


def imagenet(folder, size):
    for name, count in [*((f"train_data_batch_{i}.npz", 200) for i in range(1, 11)), ("val_data.npz", 1000)]:
        data = pixels(count, 3 * size * size)
        np.savez(folder / name, data=data, labels=np.arange(count) % 1000 + 1 if count == 1000 else rng.permutation(1000)[:200] + 1)
    return data


def test_small_imagenet_is_unpacked_once_and_mapped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "held_out", lambda targets, share: (np.arange(len(targets))[5:], np.arange(5)))  # too small to stratify
    folder = tmp_path / "archives"
    folder.mkdir()
    test = imagenet(folder, 8)
    with pytest.raises(InputError, match=r"train_data\.npz"):  # one archive at 8 px
        small_imagenet.load_small_imagenet(8, folder=folder)
    with pytest.raises(InputError, match=r"train_data_batch_1\.npz.* of 16 px"):  # those that are there have 8
        small_imagenet.load_small_imagenet(16, folder=folder)
    monkeypatch.setattr(small_imagenet, "_imagenet_archives", lambda base, size: (sorted(base.glob("train*")), base / "val_data.npz"))
    dataset = small_imagenet.load_small_imagenet(8, folder=folder)
    assert isinstance(dataset.train.inputs, np.memmap)
    assert dataset.shape == (3, 8, 8)
    assert np.array_equal(np.asarray(dataset.test.inputs[7]).ravel(), test[7])
    assert dataset.test.targets[7] == 7
    assert "unpacking" in capsys.readouterr().out
    small_imagenet.load_small_imagenet(8, folder=folder)
    assert "unpacking" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_imagenet_is_kept_aside_and_not_used(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "archives"
    folder.mkdir()
    imagenet(folder, 16)
    victim = folder / "train_data_batch_3.npz"
    data = victim.read_bytes()
    half = len(data) // 2
    broken = data[:-50] if damage == "truncated" else data[:half] + bytes(byte ^ 255 for byte in data[half : half + 9]) + data[half + 9 :]
    victim.write_bytes(broken)
    message = "holds no train_data_batch_3.npz of 16 px" if damage == "truncated" else "train_data_batch_3.npz cannot be read: Bad CRC"
    with pytest.raises(InputError, match=message):
        small_imagenet.load_small_imagenet(16, folder=folder)
    assert not victim.exists()
    assert victim.with_name(f"{victim.name}.altered").read_bytes() == broken
    assert f"kept as {victim}.altered, not used" in capsys.readouterr().out


def test_crops_are_pieces_of_the_padded_image():
    x = torch.arange(1.0, 1 + 2 * 3 * 6 * 5).view(2, 3, 6, 5).repeat(40, 1, 1, 1)
    fill = torch.tensor([-1.0, -2.0, -3.0])
    y = CropAndFlip(2, fill)(x)
    assert y.shape == x.shape
    seen = set()
    for image, crop in zip(x, y, strict=True):
        padded = fill.view(3, 1, 1).expand(3, 10, 9).clone()
        padded[:, 2:8, 2:7] = image
        places = {
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(crop.flip(-1) if flip else crop, padded[:, top : top + 6, left : left + 5])
        }
        assert len(places) == 1
        seen |= places
    assert len(seen) > 20
    assert {flip for _, _, flip in seen} == {False, True}


def test_crops_follow_the_seed():
    x, augment = torch.randn(8, 3, 9, 9), CropAndFlip(4, torch.zeros(3))
    torch.manual_seed(5)
    first = augment(x)
    torch.manual_seed(5)
    assert torch.equal(augment(x), first)
    assert not torch.equal(augment(x), first)


def test_resizing_is_antialiased():
    stripes = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 1, 32, 32)  # at Nyquist: nothing of it is left at half the size
    assert resize(stripes, 16)[..., 2:-2].abs().max() < 0.05
    assert F.interpolate(stripes, (16, 16), mode="bilinear").shape == (1, 1, 16, 16)
    assert resize(stripes, 32) is stripes
    with pytest.raises(InputError, match="at least 4 px was expected, got 3"):
        resize(stripes, 3)
