"""Speech Commands, and any folder in its layout: one-second clips of spoken words, raw or as MFCCs.

The layout is WORD/SPEAKER_nohash_N.wav, with testing_list.txt and validation_list.txt beside the words; other names and formats of audio
are read too. Clips are decoded once and kept as a memory-mapped array.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flexseq.data.dataset import Dataset, Split
from flexseq.data.downloads import fetch, unpack_tar
from flexseq.data.places import cache_dir, data_dir, existing_folder
from flexseq.data.splits import limited, stratified_split
from flexseq.data.standardise import standardiser
from flexseq.errors import InputError, unknown_name
from flexseq.processes import alone
from flexseq.torchaudio_import import import_torchaudio

URLS = ["http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"]
SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
PAPER_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SAMPLE_RATE = 16_000
LENGTH = 16_000  # one second
SUFFIXES = (".wav", ".flac", ".ogg", ".aif", ".aiff", ".mp3")
"""Of audio, in small letters or capitals."""
BACKGROUND = "_background_noise_"
"""The archive's folder of long recordings, which is no word."""
OVERSHOOT = 2.0
"""Samples in floating point up to here are of full scale 1, and louder ones cut off; beyond it they are of full scale 32,768."""
INDEXED = {"paths", "skipped", "short", "padded", "resampled", "of_integers", "cut_off"}
PLACES = ("SpeechCommands/speech_commands_v0.02", "SpeechCommands/speech_commands_v0.01", ".")


@dataclass(frozen=True)
class Clip:
    """One recording: its path below the folder of words, and its word."""

    path: str
    word: str


def load_speech_commands(
    *,
    mfcc: bool,
    folder: str | Path | None = None,
    download: bool = False,
    words: tuple[str, ...] | None = None,
    split: str | None = None,
    short: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Speech Commands as (1, 16000) raw samples, or as (20, 161) MFCCs.

    Args:
        mfcc: MFCCs instead of samples: torchaudio's, 20 coefficients of 64 log mel bands, n_fft 200.
        folder: what holds the words, or torchaudio's root above it; by default a folder in the user's cache, filled by a download.
        download: fetch the archive into `folder` if the words are not there.
        words: classes, in this order; the paper's ten by default.
        split: "paper", stratified 70/15/15, the default for the paper's words; "lists", the folder's own lists, the default for others.
        short: "drop" clips under a second, the default for the paper's words; "pad" them with zeros at their end, the default for others.
            Longer clips lose their end.
        limit: use at most this many clips, each word in proportion.

    Returns:
        The dataset. Standardised per time step where short clips are dropped, as in the papers, and per channel where they are padded: at
        the zero tails statistics of a single step would explode.

    Raises:
        InputError: no such folder, words, lists; no clip of a word that could be read.
    """
    given = words is not None
    words = words or PAPER_WORDS
    of_the_paper = set(words) == set(PAPER_WORDS)
    split = split or ("paper" if of_the_paper else "lists")
    short = short or ("drop" if of_the_paper else "pad")
    for argument, value, known in (("split", split, ("paper", "lists")), ("short", short, ("drop", "pad"))):
        if value not in known:
            raise unknown_name(argument, value, known)
    if len(words) < 2 or len(set(words)) != len(words):
        raise InputError(f"words expected two or more different words, got {','.join(words)}")

    root = _folder_of_words(folder, download)
    clips, others = _list_clips(root, words, given)
    targets = np.array([words.index(clip.word) for clip in clips])
    clips = [clips[i] for i in limited(targets, limit)]

    store = _decoded(root, clips, drop_short=short == "drop")
    index = json.loads((store / "index.json").read_text())
    targets = np.array([words.index(path.partition("/")[0]) for path in index["paths"]])
    missing = [word for i, word in enumerate(words) if i not in targets]
    if missing:
        raise InputError(f"no clip of {', '.join(missing)} in {root} could be used: {_listed(index['skipped'] + index['short'])}")
    inputs = np.load(store / "audio.npy", mmap_mode="r")[: len(targets), None]
    if mfcc:
        inputs = np.load(_mfccs(store, inputs), mmap_mode="r")

    notes: list[str] = []
    if split == "paper":
        indices = stratified_split(targets)
    else:
        indices = _split_by_lists(root, index["paths"], [clip.path for clip in clips], notes)
    per = "step" if short == "drop" else "channel"
    transform = standardiser(inputs, indices[0], per=per)
    train, validation, test = (Split(inputs, targets, part, transform) for part in indices)
    if others:
        notes.append(f"{len(others)} files were left out, which are no audio by their names ({', '.join(SUFFIXES)}): {_listed(others)}")
    if index["skipped"]:
        notes.append(f"{len(index['skipped'])} of {len(clips)} clips could not be read and were left out: {_listed(index['skipped'])}")
    if index["short"]:
        notes.append(f"{len(index['short'])} of {len(clips)} clips are shorter than a second and were left out")
    if index["padded"]:
        notes.append(
            f"{index['padded']} of {len(clips)} clips are shorter than a second and end in zeros, which is what the last time step, "
            "where the logits are, sees first: --head mean learns sooner"
        )
    if index["of_integers"]:
        notes.append(f"{index['of_integers']} of {len(clips)} clips hold floating point numbers up to 32,768 and were divided by that")
    if index["cut_off"]:
        notes.append(f"{index['cut_off']} of {len(clips)} clips go beyond full scale and were cut off there")
    if index["resampled"]:
        notes.append(f"{index['resampled']} of {len(clips)} clips were resampled to 16 kHz")
    options = {"words": list(words), "split": split, "short": short, "standardised_per": per}
    name = "speech_mfcc" if mfcc else "speech_raw"
    return Dataset(name, str(root), train, validation, test, list(words), inputs.shape[1:], notes, options)


def is_here(folder: str | Path | None = None) -> bool:
    """Whether a folder holds Speech Commands' layout, without asking anyone to fetch it."""
    base = data_dir("speech_commands") if folder is None else Path(folder)
    return any(_holds_words(base / place) for place in PLACES)


def _holds_words(folder: Path) -> bool:
    try:
        return any(path.suffix.lower() in SUFFIXES for path in folder.glob("*/*"))
    except OSError:  # not ours to read
        return False


def _folder_of_words(folder: str | Path | None, download: bool) -> Path:
    if folder is None:
        base, download = data_dir("speech_commands"), True
    else:
        base = Path(folder).expanduser() if download else existing_folder(folder)
    if not is_here(base):
        if download:
            archive = fetch(URLS, SHA256, base)
            print(f"unpacking {archive}", flush=True)
            unpack_tar(archive, base / PLACES[0])
        else:
            raise InputError(
                f"{base} holds no WORD/SPEAKER_nohash_N.wav or other audio in folders of words, nor does {base / PLACES[0]}; "
                "give another folder, or --download to fetch it there"
            )
    return next(base / place for place in PLACES if _holds_words(base / place))


def _list_clips(root: Path, words: tuple[str, ...], given: bool) -> tuple[list[Clip], list[str]]:
    """Clips of these words, sorted by path, and the paths of other files among them."""
    folders = [place for place in root.iterdir() if place.is_dir() and not place.name.startswith(".") and place.name != BACKGROUND]
    known = sorted(place.name for place in folders if any(path.suffix.lower() in SUFFIXES for path in place.iterdir()))
    for word in words:
        if word not in known:
            if not given:
                raise InputError(f"{root} does not hold the paper's word {word!r}; give --words, of {', '.join(known)}")
            raise unknown_name(f"word in {root}:", word, known)
    clips, others = [], []
    for word in words:
        for path in sorted((root / word).iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.is_dir():
                clips.append(Clip(f"{word}/{path.name}", word))
            elif not path.name.startswith("."):
                others.append(f"{word}/{path.name}")
    return sorted(clips, key=lambda clip: clip.path), others


def _split_by_lists(root: Path, paths: list[str], found: list[str], notes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the clips at `paths` that train, validate and test; notes say which of the lists' entries name no clip among `found`."""
    named = {}
    for name in ("validation", "testing"):
        file = root / f"{name}_list.txt"
        if not file.is_file():
            raise InputError(f"{file} does not exist; --split paper makes a stratified split without it")
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        named[name] = {_below_words(line) for line in lines if line.strip()}
        words = {path.partition("/")[0] for path in found}
        nowhere = sorted(entry for entry in named[name] - set(found) if entry.partition("/")[0] in words)
        if nowhere:
            notes.append(f"{len(nowhere)} entries of {file.name} name no clip that is there: {_listed(nowhere)}")
    of_validation = np.array([path in named["validation"] for path in paths])
    of_test = np.array([path in named["testing"] for path in paths])
    parts = [np.flatnonzero(part) for part in (~of_validation & ~of_test, of_validation & ~of_test, of_test)]
    if not all(len(part) for part in parts):
        raise InputError(
            f"the lists in {root} leave {', '.join(str(len(part)) for part in parts)} of {len(paths)} usable clips "
            "to train, validate and test; use --split paper, or --short pad where short clips were dropped"
        )
    return parts[0], parts[1], parts[2]


def _below_words(line: str) -> str:
    """A list's entry as WORD/NAME, whatever leads to it: "./on/a.wav", "C:\\data\\on\\a.wav", "/data/on/a.wav"."""
    return "/".join(line.strip().replace("\\", "/").split("/")[-2:])


def _decoded(root: Path, clips: list[Clip], *, drop_short: bool) -> Path:
    """A folder with audio.npy, (clips, 16000) 16-bit samples, and index.json; made unless it is there.

    16 bits are what the recordings have; resampled ones are rounded to them.
    """
    key = hashlib.sha256(f"3 {root.resolve()} {drop_short}".encode())
    for clip in clips:
        try:
            status = (root / clip.path).stat()
            key.update(f"{clip.path} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:  # a dangling link, say: `_read` says so
            key.update(f"{clip.path}\n".encode())
    store = cache_dir() / "decoded" / f"speech-{key.hexdigest()[:16]}"
    if _is_whole(store, len(clips)):
        return store
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=store.parent, prefix=".speech.part"))
    except OSError as error:
        raise InputError(
            f"cannot keep decoded audio in {store.parent} ({error.strerror}); set FLEXSEQ_CACHE to a folder to write into"
        ) from error
    try:
        _decode(root, clips, part, drop_short)
        part.chmod(0o755)
        with alone(store, wait=True):
            if not _is_whole(store, len(clips)):  # else another process was faster
                shutil.rmtree(store, ignore_errors=True)
                part.rename(store)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return store


def _is_whole(store: Path, clips: int) -> bool:
    """Whether a folder holds what `_decode` wrote; one that was damaged is made anew."""
    try:
        index = json.loads((store / "index.json").read_text())
        audio = np.load(store / "audio.npy", mmap_mode="r")
        return index.keys() == INDEXED and audio.shape == (clips, LENGTH) and audio.dtype == np.int16
    except (OSError, ValueError, EOFError, AttributeError):
        return False


def _decode(root: Path, clips: list[Clip], store: Path, drop_short: bool) -> None:
    audio = np.lib.format.open_memmap(store / "audio.npy", mode="w+", dtype=np.int16, shape=(len(clips), LENGTH))
    paths: list[str] = []
    skipped: list[str] = []
    short: list[str] = []
    padded = resampled = of_integers = cut_off = 0
    for clip in _with_progress(clips, "decoding"):
        try:
            samples, rate = _read(root / clip.path)
        except InputError as error:
            skipped.append(f"{clip.path} ({error})")
            continue
        if len(samples) < LENGTH and drop_short:
            short.append(clip.path)
            continue
        padded += len(samples) < LENGTH
        resampled += rate != SAMPLE_RATE
        samples = samples[:LENGTH]
        peak = float(np.abs(samples).max(initial=0))
        if peak > OVERSHOOT:
            samples = samples / 32768
            of_integers += 1
        cut_off += bool(1 < peak <= OVERSHOOT)
        audio[len(paths), : len(samples)] = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
        paths.append(clip.path)
    audio.flush()
    (store / "index.json").write_text(
        json.dumps(
            {
                "paths": paths,
                "skipped": skipped,
                "short": short,
                "padded": padded,
                "resampled": resampled,
                "of_integers": of_integers,
                "cut_off": cut_off,
            }
        )
    )


@cache
def _resampler(rate: int) -> Any:
    return import_torchaudio().transforms.Resample(rate, SAMPLE_RATE)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """A clip's first second at 16 kHz, mono, in [-1, 1], and a little more; and the rate that it had.

    Raises:
        InputError: saying in a word or two why it cannot be used.
    """
    import soundfile
    import torch

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            samples = file.read(round(1.1 * rate), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError("empty file" if path.is_file() and path.stat().st_size == 0 else "no readable audio") from error
    if not len(samples):
        raise InputError("no samples")
    if not np.isfinite(samples).all():
        raise InputError("NaN or infinite samples")
    if np.abs(samples).max() > 32768:
        raise InputError("samples beyond 32,768")
    samples = samples.mean(1)
    if rate != SAMPLE_RATE:
        samples = _resampler(rate)(torch.from_numpy(samples)).numpy()
    return samples, rate


def _mfccs(store: Path, audio: np.ndarray) -> Path:
    """mfcc.npy, (clips, 20, 161) in float32, beside the decoded audio; made unless it is there."""
    import torch

    from flexseq.files import replacing

    path = store / "mfcc.npy"
    if _holds(path, len(audio)):
        return path
    with warnings.catch_warnings():
        # The paper's 64 bands are more than 101 frequencies can fill: the lowest are empty. So be it.
        warnings.filterwarnings("ignore", message="At least one mel filterbank")
        transform = import_torchaudio().transforms.MFCC(SAMPLE_RATE, n_mfcc=20, log_mels=True, melkwargs={"n_fft": 200, "n_mels": 64})
    shape = (len(audio), *transform(torch.zeros(LENGTH)).shape)
    with replacing(path) as part:
        features = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
        for start in _with_progress(range(0, len(audio), 256), "MFCCs"):
            batch = torch.from_numpy(audio[start : start + 256, 0].astype(np.float32) / 32768)
            features[start : start + 256] = transform(batch).numpy()
        features.flush()
    return path


def _holds(path: Path, clips: int) -> bool:
    try:
        features = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return features.ndim == 3 and len(features) == clips and features.dtype == np.float32


def _with_progress(items, description: str):
    from rich.progress import track

    return track(items, description=description, transient=True)


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
