"""The tasks: their data, recipe, network and published figures. To add one, add it to TASKS."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flexseq.bench.recipes import DIGITS, SPEECH_MFCC, SPEECH_RAW, TaskRecipe
from flexseq.data.dataset import Dataset


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Args:
        name, description: for the list of tasks.
        needs: what data it takes, and where from.
        is_here: folder or None -> whether that data is on this machine.
        load: keyword options -> the dataset.
        options: which of the data options `load` takes.
        defaults: how it trains, and the arguments of its network.
        paper: published accuracy by the network's row, such as "FlexTCN-magnet-6".
        paper_samples: how many samples the paper's data has in all,
        paper_options: and how it was made: its figures stand beside runs on such data, and on no other.
    """

    name: str
    description: str
    needs: str
    is_here: Callable[[str | None], bool]
    load: Callable[..., Dataset]
    options: tuple[str, ...]
    defaults: TaskRecipe
    paper: dict[str, float] = field(default_factory=dict)
    paper_samples: int = 0
    paper_options: dict[str, Any] = field(default_factory=dict)


def _load_digits(**options: Any) -> Dataset:
    from flexseq.data.digits import load_digits

    return load_digits(**options)


def _load_speech(mfcc: bool, *, data_dir: str | None = None, words: str | None = None, **options: Any) -> Dataset:
    from flexseq.data.speech_commands import load_speech_commands

    chosen = None if words is None else tuple(word.strip() for word in words.split(",") if word.strip())
    return load_speech_commands(mfcc=mfcc, folder=data_dir, words=chosen, **options)


def _speech_is_here(folder: str | None) -> bool:
    from flexseq.data.speech_commands import is_here

    return is_here(folder)


def _speech(name: str, description: str, *, mfcc: bool, defaults: TaskRecipe, paper: dict[str, float]) -> Task:
    return Task(
        name=name,
        description=description,
        needs="Speech Commands v0.02 (2.3 GB, fetched on first use) or any folder in its layout (--data-dir)",
        is_here=_speech_is_here,
        load=lambda **options: _load_speech(mfcc, **options),
        options=("data_dir", "download", "words", "split", "short", "limit"),
        defaults=defaults,
        paper=paper,
        paper_samples=34_975,
        paper_options={"split": "paper", "short": "drop"},
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            name="digits",
            description="scikit-learn's 1,797 handwritten digits as sequences of 64 steps",
            needs="nothing: comes with scikit-learn",
            is_here=lambda folder: True,
            load=_load_digits,
            options=("limit",),
            defaults=DIGITS,
        ),
        _speech(
            "speech_mfcc",
            "ten spoken words as 20 MFCCs over 161 steps",
            mfcc=True,
            defaults=SPEECH_MFCC,
            # FlexConv, Table 2, column SC
            paper={
                "CKCNN-2": 0.9527,
                "CKTCN-fourier-2": 0.9565,
                "CKTCN-gabor-2": 0.9666,
                "CKTCN-magnet-2": 0.9701,
                "FlexTCN-magnet-2": 0.9710,
                "FlexTCN-magnet-4": 0.9773,
                "FlexTCN-magnet-6": 0.9767,
                "FlexTCN-siren-6": 0.9583,
                "FlexTCN-fourier-6": 0.9762,
                "FlexTCN-gabor-6": 0.9735,
            },
        ),
        _speech(
            "speech_raw",
            "ten spoken words as 16,000 raw samples",
            mfcc=False,
            defaults=SPEECH_RAW,
            # FlexConv, Table 2, column SC_raw
            paper={
                "CKCNN-2": 0.7166,
                "CKTCN-fourier-2": 0.7490,
                "CKTCN-gabor-2": 0.7810,
                "CKTCN-magnet-2": 0.8069,
                "FlexTCN-magnet-2": 0.8803,
                "FlexTCN-magnet-4": 0.9045,
                "FlexTCN-magnet-6": 0.9173,
                "FlexTCN-siren-6": 0.8573,
                "FlexTCN-fourier-6": 0.9102,
                "FlexTCN-gabor-6": 0.9150,
            },
        ),
    )
}
