"""FlexTCNClassifier and FlexTCNRegressor beside sktime's estimators, on the problems that sktime ships.

    python benchmarks/estimators.py                          # every cell that is not there yet, then the table
    python benchmarks/estimators.py --draw                   # the table of what is there
    python benchmarks/estimators.py --tune                   # candidates for the defaults, by cross-validation of training splits alone

Official splits, default settings. Each cell is a file in --out (benchmarks/results/estimators by default), written when it is done: a
stopped table goes on, and several processes may share the folder; a cell of other settings than today's is run again. Rocket needs numba
(`pip install numba`); a cell whose package is missing is an error, one that its estimator refuses stays empty.
"""

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sktime.datasets import load_UCR_UEA_dataset
from sktime.datatypes import convert_to

from flexseq.bench.results import versions
from flexseq.estimators import FlexTCNClassifier, FlexTCNRegressor
from flexseq.files import write_text
from flexseq.processes import alone
from flexseq.words import duration

MISSING = 0.3
"""Share of values that the problems named "..., missing" lack, drawn at random in training and test."""
PROBLEMS = ["ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf", "BasicMotions", "JapaneseVowels", "PLAID", "ACSF1"]
WITH_MISSING = ["GunPoint, missing", "BasicMotions, missing"]
REGRESSIONS = ["Covid3Month"]


def rocket(seed: int) -> Any:
    from sktime.classification.kernel_based import RocketClassifier

    return RocketClassifier(random_state=seed)


def inception_time(seed: int) -> Any:
    from sktime.classification.deep_learning.inceptiontime import InceptionTimeClassifierTorch

    return InceptionTimeClassifierTorch(num_epochs=150, random_state=seed)


def neighbour(seed: int) -> Any:
    from sktime.classification.distance_based import KNeighborsTimeSeriesClassifier

    return KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="dtw")


def dummy(seed: int) -> Any:
    from sktime.classification.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def rocket_regressor(seed: int) -> Any:
    from sktime.regression.kernel_based import RocketRegressor

    return RocketRegressor(random_state=seed)


def inception_time_regressor(seed: int) -> Any:
    from sktime.regression.deep_learning.inceptiontime import InceptionTimeRegressorTorch

    return InceptionTimeRegressorTorch(num_epochs=150, random_state=seed)


def neighbour_regressor(seed: int) -> Any:
    from sktime.regression.distance_based import KNeighborsTimeSeriesRegressor

    return KNeighborsTimeSeriesRegressor(n_neighbors=1, distance="dtw")


def forest_regressor(seed: int) -> Any:
    from sktime.regression.interval_based import TimeSeriesForestRegressor

    return TimeSeriesForestRegressor(random_state=seed)


def dummy_regressor(seed: int) -> Any:
    from sktime.regression.dummy import DummyRegressor

    return DummyRegressor(strategy="mean")


CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "FlexTCN": lambda seed: FlexTCNClassifier(random_state=seed),
    "Rocket": rocket,
    "InceptionTime, 150 epochs": inception_time,
    "1-NN DTW": neighbour,
    "dummy": dummy,
}
REGRESSORS: dict[str, Callable[[int], Any]] = {
    "FlexTCN": lambda seed: FlexTCNRegressor(random_state=seed),
    "Rocket": rocket_regressor,
    "InceptionTime, 150 epochs": inception_time_regressor,
    "time series forest": forest_regressor,
    "1-NN DTW": neighbour_regressor,
    "dummy": dummy_regressor,
}
WITHOUT_SEED = ("1-NN DTW", "dummy")
SEEDS = 3


def load(problem: str, split: str) -> tuple[Any, np.ndarray]:
    """Series of an official split as sktime's users have them, and their targets."""
    name, _, missing = problem.partition(", ")
    X, y = load_UCR_UEA_dataset(name, split=split, return_X_y=True, return_type="nested_univ")
    frames = convert_to(X, "df-list")
    if len({len(frame) for frame in frames}) > 1:
        return frames, np.asarray(y)
    values = np.stack([frame.to_numpy(np.float64).T for frame in frames])
    if missing:
        values[np.random.default_rng({"train": 0, "test": 1}[split]).random(values.shape) < MISSING] = np.nan
    return values, np.asarray(y)


def cell(problem: str, name: str, seed: int) -> dict[str, Any]:
    """Fit and score one estimator; `refused` says why where it does not take the problem."""
    regression = problem in REGRESSIONS
    X, y = load(problem, "train")
    X_test, y_test = load(problem, "test")
    if regression:
        y, y_test = y.astype(float), y_test.astype(float)
    estimator = make(problem, name, seed)
    about = {"problem": problem, "estimator": name, "seed": seed, "settings": settings(estimator), "versions": versions("numba")}
    about["threads"] = torch.get_num_threads()
    refused = [what for tag, what, needed in needs(X) if needed and not estimator.get_tag(tag)]
    if refused:
        return {**about, "refused": f"{type(estimator).__name__} takes no {' and no '.join(refused)}"}
    torch.manual_seed(seed)
    began = time.perf_counter()
    estimator.fit(X, y)
    fitted = time.perf_counter()
    predicted = estimator.predict(X_test)
    ended = time.perf_counter()
    return {**about, "score": score(y_test, predicted, regression), "fit_s": fitted - began, "predict_s": ended - fitted}


def make(problem: str, name: str, seed: int) -> Any:
    """An estimator with its default settings."""
    return (REGRESSORS if problem in REGRESSIONS else CLASSIFIERS)[name](seed)


def settings(estimator: Any) -> dict[str, str]:
    """All that an estimator was made with."""
    return {name: repr(value) for name, value in sorted(estimator.get_params(deep=False).items())}


def needs(X: Any) -> list[tuple[str, str, bool]]:
    """What series ask of an estimator: sktime's tag, what it is about, whether they do."""
    unequal = isinstance(X, list)
    missing = any(np.isnan(series.to_numpy(np.float64) if unequal else series).any() for series in X)
    channels = X[0].shape[1] if unequal else X.shape[1]
    return [
        ("capability:unequal_length", "series of unequal lengths", unequal),
        ("capability:missing_values", "missing values", missing),
        ("capability:multivariate", "series of several channels", channels > 1),
    ]


def score(true: np.ndarray, predicted: Any, regression: bool) -> float:
    """The root mean squared error, or the share of right answers."""
    if regression:
        return float(np.sqrt(np.mean((np.asarray(predicted, float).ravel() - true) ** 2)))
    return float(np.mean(np.asarray(predicted).astype(str) == true.astype(str)))


def is_done(path: Path, estimator: Any) -> bool:
    """Whether a cell is finished, with the settings that its estimator has today."""
    return path.is_file() and json.loads(path.read_text())["settings"] == settings(estimator)


def run(cells: list[tuple[str, str, int]], out: Path) -> None:
    """Every cell that is not there yet."""
    todo = [which for which in cells if not is_done(place(out, *which), make(*which))]
    print(f"{len(cells) - len(todo)} of {len(cells)} cells are finished; they are kept in {out}", flush=True)
    began = time.perf_counter()
    for position, which in enumerate(todo):
        path = place(out, *which)
        with alone(path) as mine:
            if not mine or is_done(path, make(*which)):
                continue
            done = cell(*which)
            write_text(path, json.dumps(done, indent=1) + "\n")
        left = (time.perf_counter() - began) / (position + 1) * (len(todo) - position - 1)
        said = f"refused: {done['refused']}" if "refused" in done else f"{done['score']:.4f}, fit {duration(done['fit_s'])}"
        print(f"{position + 1} of {len(todo)}, about {duration(left)} left: {', '.join(map(str, which))}: {said}", flush=True)


def place(out: Path, problem: str, name: str, seed: int) -> Path:
    """The file of a cell."""
    return out / f"{problem}--{name}--{seed}.json".replace(" ", "_").replace(",", "")


def results(out: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What is finished, by problem and estimator."""
    gathered: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(out.glob("[!.]*.json")):  # hidden ones are what a process leaves that was killed while it wrote
        done = json.loads(path.read_text())
        gathered.setdefault((done["problem"], done["estimator"]), []).append(done)
    return gathered


def table(problems: list[str], names: list[str], out: Path, *, decimals: int, factor: float, best: Callable[..., float]) -> list[str]:
    """A row for each problem: score and seconds of fitting for each estimator; the mean ranks below."""
    done = results(out)
    lines = ["| problem | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    worst = -math.inf if best is max else math.inf
    scores: dict[str, dict[str, float]] = {problem: {} for problem in problems}
    for problem in problems:
        cells = []
        for name in names:
            runs = [run for run in done.get((problem, name), []) if "score" in run]
            if not runs:
                cells.append("")
                if (problem, name) in done:
                    scores[problem][name] = worst
                continue
            values = [factor * run["score"] for run in runs]
            scores[problem][name] = statistics.mean(values)
            spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
            seeds = f", {len(values)} of {SEEDS} seeds" if len(values) < SEEDS and name not in WITHOUT_SEED else ""
            seconds = statistics.mean(run["fit_s"] for run in runs)
            time_taken = f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"
            cells.append(f"{statistics.mean(values):.{decimals}f}{spread} ({time_taken} s{seeds})")
        lines.append(f"| {problem} | " + " | ".join(cells) + " |")
    for label, among in (("all", names), ("the neural ones", [name for name in names if name.startswith(("FlexTCN", "InceptionTime"))])):
        known = [problem for problem in problems if all(name in scores[problem] for name in among)]
        taken = [problem for problem in known if all(math.isfinite(scores[problem][name]) for name in among)]
        rows = {"that all of them take": taken, "where refusing comes last": known if known != taken else []}
        for what, chosen in rows.items():
            if not chosen:
                continue
            ranks = {name: statistics.mean(rank(scores[problem], name, among, best) for problem in chosen) for name in among}
            cells = [f"{ranks[name]:.2f}" if name in ranks else "" for name in names]
            lines.append(f"| mean rank among {label}, {len(chosen)} problems {what} | " + " | ".join(cells) + " |")
    return lines


def rank(scores: dict[str, float], name: str, among: list[str], best: Callable[..., float]) -> float:
    """From 1, the best; the mean of their ranks for equal scores."""
    sign = 1 if best is max else -1
    better = sum(sign * scores[other] > sign * scores[name] for other in among)
    equal = sum(scores[other] == scores[name] for other in among)
    return better + (equal + 1) / 2


def draw(out: Path) -> str:
    """All tables, as Markdown."""
    parts = ["Accuracy in percent, mean ± sample standard deviation over seeds, and in brackets seconds of fitting.", ""]
    parts += table(PROBLEMS, list(CLASSIFIERS), out, decimals=1, factor=100, best=max)
    parts += ["", f"With {MISSING:.0%} of all values missing, in training and test:", ""]
    parts += table(WITH_MISSING, list(CLASSIFIERS), out, decimals=1, factor=100, best=max)
    parts += ["", "Root mean squared error:", ""]
    parts += table(REGRESSIONS, list(REGRESSORS), out, decimals=4, factor=1, best=min)
    return "\n".join(parts) + "\n"


# Candidates for the defaults.

CANDIDATES: dict[str, dict[str, Any]] = {
    "default": {},
    "kernels of 64 steps": {"kernel_size": 64},
    "kernels of 256 steps": {"kernel_size": 256},
    "lr 0.01": {"lr": 0.01},
    "dropout 0.3": {"dropout": 0.3},
    "depth 2": {"depth": 2},
    "64 channels": {"width": 64},
    "batches of 64": {"batch_size": 64},
    "masks twice as wide": {"mask_sigma": 1.0},
    "early stopping": {"early_stopping": True},
    "no early stopping": {"early_stopping": False},
}
FOLDS = 3


def tune(problems: list[str], candidates: list[str], out: Path) -> None:
    """Scores of candidate settings by cross-validation inside the training split; the test splits are not read."""
    from sklearn.model_selection import KFold, StratifiedKFold

    for problem in problems:
        regression = problem in REGRESSIONS
        X, y = load(problem, "train")
        y = y.astype(float) if regression else y
        maker, divide = (FlexTCNRegressor, KFold) if regression else (FlexTCNClassifier, StratifiedKFold)
        folds = divide(FOLDS, shuffle=True, random_state=0).split(np.zeros(len(y)), y)
        for fold, (training, validating) in enumerate(folds):
            for name in candidates:
                path = place(out, problem, name, fold)
                estimator = maker(random_state=fold, **CANDIDATES[name])
                done = {"problem": problem, "estimator": name, "seed": fold, "settings": settings(estimator)}
                with alone(path) as mine:
                    if not mine or is_done(path, estimator):
                        continue
                    began = time.perf_counter()
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        estimator.fit(_take(X, training), y[training])
                        done["score"] = score(y[validating], estimator.predict(_take(X, validating)), regression)
                    done["fit_s"] = time.perf_counter() - began
                    write_text(path, json.dumps(done, indent=1) + "\n")
                print(f"{problem}, {name}, fold {fold}: {done['score']:.4f}, {duration(done['fit_s'])}", flush=True)
    for some, decimals, factor, best in (
        ([problem for problem in problems if problem not in REGRESSIONS], 1, 100, max),
        ([problem for problem in problems if problem in REGRESSIONS], 4, 1, min),
    ):
        print("\n".join(table(some, list(CANDIDATES), out, decimals=decimals, factor=factor, best=best)) if some else "")


def _take(X: Any, positions: np.ndarray) -> Any:
    return [X[i] for i in positions] if isinstance(X, list) else X[positions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=[*PROBLEMS, *WITH_MISSING, *REGRESSIONS])
    parser.add_argument("--estimators", nargs="+", default=[*dict.fromkeys([*CLASSIFIERS, *REGRESSORS])])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", action="store_true", help="only draw what is finished")
    parser.add_argument("--tune", action="store_true", help="cross-validate candidates for the defaults instead")
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES))
    given = parser.parse_args()
    if given.tune:
        tune(
            [problem for problem in given.problems if problem not in WITH_MISSING],
            given.candidates,
            given.out or Path("runs/estimators-tuning"),
        )
        return
    out = given.out or Path(__file__).parent / "results" / "estimators"
    if not given.draw:
        cells = [
            (problem, name, seed)
            for problem in given.problems
            for name in (REGRESSORS if problem in REGRESSIONS else CLASSIFIERS)
            if name in given.estimators
            for seed in range(1 if name in WITHOUT_SEED else given.seeds)
        ]
        run(cells, out)
    print(draw(out))


if __name__ == "__main__":
    main()
