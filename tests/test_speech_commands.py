"""A folder in Speech Commands' layout, made here: sines for words, at 8 and 16 kHz, long and short, whole and broken."""

import json

import numpy as np
import pytest
import soundfile
import torch

from flexseq import InputError
from flexseq.data import speech_commands
from flexseq.data.speech_commands import load_speech_commands

WORDS = ("on", "off")


def write_clip(path, frequency, rate=16_000, seconds=1.0, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, len(t))
    subtype = None if path.suffix == ".ogg" else "PCM_16"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * frequency * t) + noise, rate, subtype=subtype)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    for w, word in enumerate(WORDS):
        for n in range(20):
            write_clip(root / word / f"speaker{n % 4}_nohash_{n}.wav", 300 + 400 * w, seconds=1.25 if n == 3 else 1.0, seed=n)
    (root / "testing_list.txt").write_text("".join(f"{word}/speaker{n % 4}_nohash_{n}.wav\n" for word in WORDS for n in range(3)))
    (root / "validation_list.txt").write_text("".join(f"{word}/speaker{n % 4}_nohash_{n}.wav\n" for word in WORDS for n in range(3, 6)))
    return tmp_path


def root_of(folder):
    return folder / "SpeechCommands" / "speech_commands_v0.02"


def everything(dataset):
    return [part.batch(range(len(part))) for part in (dataset.train, dataset.validation, dataset.test)]


def test_raw_clips_by_the_folders_lists(folder):
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert data.shape == (1, 16_000)
    assert data.sizes == {"train": 28, "validation": 6, "test": 6}
    x, y = data.test.batch([0, 5])
    assert y.tolist() == [1, 0]  # sorted by path, off before on; classes in the order given
    spectrum = torch.fft.rfft(x[:, 0]).abs()
    assert spectrum.argmax(1).tolist() == [700, 300]  # one second, so bins are hertz: longer clips lost their end


def test_samples_are_those_of_the_files_before_standardising(folder):
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    i = data.train.indices[0]
    path = sorted(p for word in WORDS for p in root_of(folder).glob(f"{word}/*.wav"))[i]
    raw, _ = soundfile.read(path, dtype="int16")
    assert np.array_equal(data.train.inputs[i, 0], raw[:16_000])


def test_padded_clips_are_standardised_per_channel_and_dropped_ones_per_step(folder):
    write_clip(root_of(folder) / "on" / "short_nohash_0.wav", 500, seconds=0.4)
    padded = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert sum(padded.sizes.values()) == 41
    dropped = load_speech_commands(mfcc=False, folder=folder, words=WORDS, short="drop")
    assert sum(dropped.sizes.values()) == 40
    assert "1 of 41 clips are shorter than a second" in dropped.notes[0]
    x = everything(padded)[0][0]
    assert abs(x.mean()) < 1e-3
    assert abs(x.std() - 1) < 1e-2
    x = everything(dropped)[0][0]
    assert x.std((0, 1), correction=0).sub(1).abs().max() < 0.02


def test_other_rates_are_resampled_to_16_khz(folder):
    for w, word in enumerate(WORDS):
        for n in range(20):
            write_clip(root_of(folder) / word / f"speaker{n % 4}_nohash_{n}.wav", 300 + 400 * w, rate=8000, seed=n)
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    x, y = data.train.batch([0])
    assert torch.fft.rfft(x[0, 0]).abs().argmax() == 300 + 400 * y[0]


def test_mfccs_are_torchaudios(folder):
    from flexseq.torchaudio_import import import_torchaudio

    data = load_speech_commands(mfcc=True, folder=folder, words=WORDS)
    assert data.shape == (20, 161)
    raw = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    transform = import_torchaudio().transforms.MFCC(16_000, n_mfcc=20, log_mels=True, melkwargs={"n_fft": 200, "n_mels": 64})
    expected = transform(torch.from_numpy(raw.train.inputs[4, 0] / np.float32(32768)))
    torch.testing.assert_close(torch.from_numpy(np.array(data.train.inputs[4])), expected)


def test_paper_split_is_stratified(folder):
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS, split="paper")
    assert data.sizes == {"train": 28, "validation": 6, "test": 6}
    for part in (data.validation, data.test):
        assert np.bincount(part.targets[part.indices]).tolist() == [3, 3]


def test_limit_is_in_proportion(folder):
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS, split="paper", limit=20)
    assert sum(data.sizes.values()) == 20


def test_folder_of_words_itself_is_found(folder):
    assert load_speech_commands(mfcc=False, folder=root_of(folder), words=WORDS).sizes["train"] == 28


def test_second_run_decodes_nothing_and_reads_a_memory_map(folder, monkeypatch):
    load_speech_commands(mfcc=True, folder=folder, words=WORDS)
    monkeypatch.setattr(speech_commands, "_read", lambda path: pytest.fail("decoded again"))
    data = load_speech_commands(mfcc=True, folder=folder, words=WORDS)
    assert isinstance(data.train.inputs, np.memmap)
    write_clip(root_of(folder) / "on" / "speaker0_nohash_0.wav", 500)  # a file that changed is another dataset
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        load_speech_commands(mfcc=True, folder=folder, words=WORDS)


def test_broken_clips_are_named_counted_and_left_out(folder):
    on = root_of(folder) / "on"
    (on / "a_nohash_0.wav").write_bytes(b"")
    (on / "b_nohash_0.wav").write_bytes(b"RIFFnothing of the kind")
    soundfile.write(on / "c_nohash_0.wav", np.zeros(0), 16_000)
    soundfile.write(on / "d_nohash_0.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert sum(data.sizes.values()) == 40
    note = data.notes[0]
    assert note.startswith("4 of 44 clips could not be read")
    for name, reason in (("a", "empty file"), ("b", "no readable audio"), ("c", "no samples"), ("d", "NaN")):
        assert f"on/{name}_nohash_0.wav ({reason}" in note


def test_nothing_but_broken_clips_is_an_error(folder):
    for path in (root_of(folder) / "on").glob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no clip of on in .* could be used: on/\S+ \(empty file\).* and 15 more"):
        load_speech_commands(mfcc=True, folder=folder, words=WORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": ("on", "of")}, r"unknown word .* 'of': did you mean 'off'"),
        ({"words": ("on",)}, "two or more different words, got on"),
        ({"split": "list"}, "unknown split 'list': did you mean 'lists'"),
        ({"short": "crop"}, "unknown short 'crop'"),
        ({"words": None}, "does not hold the paper's word 'yes'; give --words, of off, on"),
    ],
)
def test_bad_options_are_named(folder, options, message):
    with pytest.raises(InputError, match=message):
        load_speech_commands(mfcc=False, folder=folder, **{"words": WORDS, **options})


def test_missing_lists_are_named(folder):
    (root_of(folder) / "testing_list.txt").unlink()
    with pytest.raises(InputError, match=r"testing_list\.txt does not exist; --split paper"):
        load_speech_commands(mfcc=False, folder=folder, words=WORDS)


def test_a_folder_without_words_is_named(tmp_path):
    (tmp_path / "readme").write_text("")
    with pytest.raises(InputError, match=r"holds no WORD/SPEAKER_nohash_N\.wav or other audio"):
        load_speech_commands(mfcc=False, folder=tmp_path, words=WORDS)


def test_an_interrupted_decoding_leaves_nothing_behind(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speech_commands, "_read", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert not list((tmp_path / "cache" / "decoded").iterdir())


def test_index_names_every_clip(folder):
    load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    (index,) = speech_commands.cache_dir().glob("decoded/*/index.json")
    assert len(json.loads(index.read_text())["paths"]) == 40


def test_odd_names_are_read_and_dangling_links_are_left_out_by_name(folder):
    on = root_of(folder) / "on"
    write_clip(on / "bob_nohash_1 (copy).wav", 300)
    (on / "gone_nohash_0.wav").symlink_to(folder / "nowhere.wav")
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert sum(data.sizes.values()) == 41
    assert "on/gone_nohash_0.wav (no readable audio)" in data.notes[0]
    (on / "notes.txt").touch()
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert "1 files were left out, which are no audio by their names" in data.notes[0]
    assert "on/notes.txt" in data.notes[0]


def test_a_cache_that_cannot_be_written_is_named(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot keep decoded audio in .*set FLEXSEQ_CACHE"):
        load_speech_commands(mfcc=False, folder=folder, words=WORDS)


def test_workers_that_are_started_afresh_map_the_same_file(folder):
    import pickle

    split = load_speech_commands(mfcc=False, folder=folder, words=WORDS).train
    pickled = pickle.dumps(split)
    assert len(pickled) < 200_000
    other = pickle.loads(pickled)
    assert isinstance(other.inputs, np.memmap)
    assert torch.equal(other.batch([3, 1])[0], split.batch([3, 1])[0])


@pytest.mark.parametrize("written", ["{}", "./{}", "C:\\data\\{}", "/somewhere/else/{}", "  {}  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_are_read_however_they_are_written(folder, written, end):
    root = root_of(folder)
    spaced = root / "on" / "my speaker_nohash_0.wav"
    write_clip(spaced, 300)
    expected = {}
    for name in ("testing", "validation"):
        file = root / f"{name}_list.txt"
        entries = file.read_text().split() + (["on/my speaker_nohash_0.wav"] if name == "testing" else [])
        expected[name] = len(entries)
        lines = [written.format(entry) for entry in entries]
        lines = [line.replace("/", "\\") for line in lines] if "\\" in written else lines
        file.write_text("\ufeff" + end.join(lines) + end + end, newline="")
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert (len(data.test), len(data.validation)) == (expected["testing"], expected["validation"])
    assert not any("name no clip" in note for note in data.notes)
    with open(root / "testing_list.txt", "a") as file:
        file.write("on/nobody_nohash_9.wav\n")
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    (note,) = [note for note in data.notes if "name no clip" in note]
    assert "1 entries of testing_list.txt" in note
    assert "on/nobody_nohash_9.wav" in note


def test_other_formats_and_capitals_are_read(folder):
    on = root_of(folder) / "on"
    for name in ("a_nohash_0.flac", "b_nohash_0.WAV", "c.ogg", "d_nohash_x.wav"):
        write_clip(on / name, 300)
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert sum(data.sizes.values()) == 44


@pytest.mark.parametrize(("scale", "note"), [(20000.0, "divided by that"), (1.5, "were cut off there"), (0.6, None)])
def test_floating_point_samples_of_both_scales(folder, scale, note):
    wave = scale * np.sin(np.arange(16_000) / 20)
    soundfile.write(root_of(folder) / "on" / "speaker0_nohash_0.wav", wave, 16_000, subtype="FLOAT")
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    index = json.loads(next(speech_commands.cache_dir().glob("decoded/*/index.json")).read_text())
    clip = data.train.inputs[index["paths"].index("on/speaker0_nohash_0.wav"), 0] / 32768
    expected = wave / 32768 if scale > 2 else wave.clip(-1, 1)
    assert np.abs(clip - expected).max() < 1e-4
    found = [text for text in data.notes if "full scale" in text or "floating point" in text]
    assert [text.startswith("1 of ") and note in text for text in found] == ([True] if note else [])


def test_samples_of_an_unknown_scale_are_left_out_by_name(folder):
    soundfile.write(root_of(folder) / "on" / "speaker0_nohash_0.wav", np.full(16_000, 1e6), 16_000, subtype="FLOAT")
    data = load_speech_commands(mfcc=False, folder=folder, words=WORDS)
    assert any("on/speaker0_nohash_0.wav (samples beyond 32,768)" in note for note in data.notes)


@pytest.mark.parametrize("damage", ["index.json", "audio.npy", "mfcc.npy"])
def test_a_damaged_cache_is_made_anew(folder, damage):
    expected = load_speech_commands(mfcc=True, folder=folder, words=WORDS).test.batch([0, 1])[0]
    (file,) = speech_commands.cache_dir().glob(f"decoded/*/{damage}")
    content = file.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"x" + content[1:]):
        file.write_bytes(broken)
        assert torch.equal(load_speech_commands(mfcc=True, folder=folder, words=WORDS).test.batch([0, 1])[0], expected)
