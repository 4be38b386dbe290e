"""What the estimators share: settings, training, saving."""

import copy
import dataclasses
import io
import json
import math
import os
import pickle
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flexseq.arguments import from_json, to_json
from flexseq.data.dataset import Dataset, Split, as_it_is
from flexseq.data.panel import Panel, Scaling, read_panel
from flexseq.data.splits import held_out_as_it_goes
from flexseq.errors import InputError
from flexseq.estimators.inputs import GAPS, aligned, as_frames, channel_names, in_order, with_regular_steps
from flexseq.files import replacing
from flexseq.models import FlexTCN
from flexseq.saving import load as load_model
from flexseq.saving import save as save_model
from flexseq.training.fit import fit, outputs_of, pick_device
from flexseq.training.objective import Objective
from flexseq.training.recipe import Recipe

FORMAT = 1
MOST_JSON = 2**26
"""Bytes of a file's JSON."""
FITTED = {
    *("fit_time_", "_y_metadata", "_X_metadata", "_y_inner_mtype", "best_epoch_", "history_", "channels_", "step_"),
    *("target_mean_", "target_std_"),
}
"""What a file may set."""
NETWORK_SETTINGS = ("depth", "width", "kernel", "kernel_size", "mask_sigma", "dropout", "head", "causal")
"""What has to be the same for a warm start."""
STEPS, MOST_EPOCHS, FEWEST_EPOCHS = 1500, 200, 20
"""Optimiser steps that the default number of epochs aims at, and its bounds."""
LONGEST_KERNEL = 32
"""Taps of kernels by default, of longer series too: a fresh kernel network that spans a long series hardly varies within a mask of ten
steps, and all kernels start alike. The cross-validation is in benchmarks/results/estimators.md."""


class FlexTCNEstimator:
    """FlexTCN behind sktime's interface; a mixin for its classifiers and regressors, which keep settings as attributes.

    What outlives sktime's `reset` at the start of every fit, for warm starts, has two underscores in its name.
    """

    depth: int
    width: int
    kernel: Any
    kernel_size: int | None
    mask_sigma: float | None
    dropout: float
    head: str
    epochs: int | None
    batch_size: int | None
    lr: float
    early_stopping: bool
    validation_fraction: float
    patience: int
    warm_start: bool
    random_state: Any
    device: str
    verbose: bool
    gaps: str
    causal: bool
    channels_: list[Any] | None
    step_: float | None

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to a panel of series and their targets, as all of sktime's estimators.

        Args:
            X: a panel in any of sktime's formats. Channels and time stamps that have names are used by them.
            y: (series,); of a Series or DataFrame whose labels are the series' in X, each goes to its own.

        Raises:
            InputError: channels that not all series have; what else `X` and `y` cannot be.
        """
        self._check_settings()
        X, labels = as_frames(X)
        y = np.asarray(y) if isinstance(y, list | tuple) else y
        if np.iscomplexobj(y):
            raise InputError(f"y expected real numbers, got {np.asarray(y).dtype}")
        parent: Any = super()
        return parent.fit(X, aligned(y, labels))

    def predict(self, X: Any) -> Any:
        """What the network says of each series of a panel, in its order; see `fit`."""
        parent: Any = super()
        return parent.predict(as_frames(X)[0])

    def score(self, X: Any, y: Any) -> float:
        """How good predictions for a panel are, given the true targets, which are aligned as in `fit`."""
        frames, labels = as_frames(X)
        parent: Any = super()
        return parent.score(frames, aligned(y, labels))

    def _panel_to_fit(self, frames: list[Any]) -> Panel:
        frames = in_order(frames, None)
        self.channels_ = channel_names(frames[0])
        frames, self.step_ = with_regular_steps(frames, self.gaps)
        return read_panel(frames)

    def _panel_to_predict(self, frames: list[Any]) -> Panel:
        frames = in_order(frames, None if channel_names(frames[0]) is None else self.channels_)
        return read_panel(with_regular_steps(frames, self.gaps, self.step_)[0])

    def _before(self, frames: list[Any], outputs: int, classes: tuple[Any, ...] = ()) -> tuple[Panel, dict[str, Any]]:
        """The panel to train on, and what an earlier fit left for a warm start: of the same channels, classes and network."""
        panel = self._panel_to_fit(frames)
        network = {name: repr(getattr(self, name)) for name in NETWORK_SETTINGS}
        signature = (panel.values.shape[1], outputs, classes, network)
        kept = self.__dict__.get("_kept__for_warm_start") if self.warm_start else None
        if kept is None or kept["signature"] != signature:
            kept = {}
        return panel, {**kept, "signature": signature}

    def _train(
        self, panel: Panel, before: dict[str, Any], targets: np.ndarray, aim: Objective, outputs: int, kind: str, **more: Any
    ) -> None:
        """Fit the network to a panel and its targets, indices of classes or scaled numbers; `more` is kept for a warm start too."""
        device = pick_device(self.device)
        scaling = before.get("scaling") or Scaling.of(panel, compress=True)
        split = self._split(panel, scaling.inputs(panel), targets)
        training, validating = self._hold_out(targets, kind)
        recipe = self._recipe(len(training))
        dataset = Dataset(
            type(self).__name__,
            "fit",
            _part(split, training),
            _part(split, validating),
            _part(split, validating),
            [str(i) for i in range(outputs)],
            (scaling.channels, panel.values.shape[2]),
            kind=kind,
        )
        stops = self.early_stopping and len(validating) > 0
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # the user's own random numbers are left alone
            torch.manual_seed(recipe.seed)
            if "network" in before:
                network = copy.deepcopy(before["network"])  # should training fail, the earlier one is still there
            else:
                network = self._network(scaling.channels, outputs, int(panel.lengths.max()))
            fitted = fit(
                network,
                dataset,
                recipe,
                None,
                device=device,
                label=type(self).__name__ if self.verbose else None,
                aim=aim,
                patience=self.patience if stops else None,
            )
        if stops:
            network.load_state_dict(fitted.best_weights)
            if self.verbose:
                done = f"stopped after epoch {len(fitted.rows)} of {recipe.epochs}"
                print(f"{type(self).__name__}: {done}; the weights are those of epoch {fitted.best_epoch}")
        self.network_ = network.cpu().eval()
        self.scaling_ = scaling
        self.history_ = fitted.rows
        self.best_epoch_ = fitted.best_epoch
        if self.warm_start:
            kept = {"network": self.network_, "scaling": scaling, "signature": before["signature"], **more}
            self.__dict__["_kept__for_warm_start"] = kept

    def _outputs(self, frames: list[Any]) -> Tensor:
        """What the network gives for a panel: (series, outputs), on the CPU."""
        panel = self._panel_to_predict(frames)
        split = self._split(panel, self.scaling_.inputs(panel), np.zeros(len(panel.values), np.int64))
        device = pick_device(self.device)
        try:
            batches = [outputs.cpu() for outputs, _ in outputs_of(self.network_, split, device=device, batch_size=self._batch_size(256))]
        finally:
            self.network_.cpu()
        return torch.cat(batches).double()

    def _network(self, channels: int, outputs: int, length: int) -> FlexTCN:
        size = int(self.kernel_size) if self.kernel_size is not None else min(length, LONGEST_KERNEL)
        sigma = self.mask_sigma
        if sigma is None:  # ten steps; a quarter of shorter kernels, the papers' 0.075 of long ones
            sigma = min(0.5, max(0.075, 20 / size))
        options: dict[str, Any] = {"kernel": self.kernel, "kernel_size": size, "mask_sigma": sigma, "dropout": self.dropout}
        options["causal"] = self.causal
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*starts with a single one.*")  # series of a few steps have no more
            return FlexTCN(channels, outputs, int(self.depth), int(self.width), head=self.head, **options)

    def _recipe(self, samples: int) -> Recipe:
        batch_size = self._batch_size(samples)
        epochs = self.epochs if self.epochs is None else int(self.epochs)
        if epochs is None:
            epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(STEPS / math.ceil(samples / batch_size))))
        return Recipe(epochs=epochs, batch_size=batch_size, lr=self.lr, gradient_clip=1.0, seed=self._seed())

    def _batch_size(self, samples: int) -> int:
        return int(self.batch_size) if self.batch_size is not None else min(64, max(16, samples // 10))

    def _seed(self) -> int:
        from sklearn.utils import check_random_state

        try:
            return int(check_random_state(self.random_state).randint(2**31))
        except ValueError as error:
            raise InputError(f"random_state expected an integer, a RandomState or None, got {self.random_state!r}") from error

    def _hold_out(self, targets: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Positions that train, and that decide when to stop.

        Where a class is too small to be split, the share is drawn without regard to classes, and classes of one member train; where there
        are fewer than five series, none are held out and training does not stop early. Both are warned of.
        """
        everything = np.arange(len(targets))
        if not self.early_stopping:
            return everything, everything[:0]
        if len(targets) < 5:
            warnings.warn(f"{len(targets)} series are too few to hold any out: training does not stop early", stacklevel=5)
            return everything, everything[:0]
        groups = targets if kind == "classification" else np.zeros(len(targets), np.int64)
        try:
            training, validating, in_proportion = held_out_as_it_goes(groups, self.validation_fraction, seed=self._seed())
        except InputError as error:
            warnings.warn(f"{error}: training does not stop early", stacklevel=5)
            return everything, everything[:0]
        if not in_proportion:
            message = "a class is too small to be in both splits: the validation split is drawn without regard to classes"
            warnings.warn(message, stacklevel=5)
        return training, validating

    def _check_settings(self) -> None:
        for name in ("depth", "width", "epochs", "batch_size", "patience", "kernel_size"):
            value = getattr(self, name)
            if value is None and name in ("epochs", "batch_size", "kernel_size"):
                continue
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise InputError(f"{name} expected an integer of at least 1, got {value!r}")
        if not isinstance(self.validation_fraction, (float, np.floating)) or not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction expected a share between 0 and 1, got {self.validation_fraction!r}")
        if not isinstance(self.causal, bool | np.bool_):
            raise InputError(f"causal expected true or false, got {self.causal!r}")
        if self.gaps not in GAPS:
            raise InputError(f"gaps expected close or fill, got {self.gaps!r}")
        if self.head not in ("last", "mean"):
            raise InputError(f"head expected last or mean, got {self.head!r}")

    @staticmethod
    def _split(panel: Panel, inputs: np.ndarray, targets: np.ndarray) -> Split:
        whole = bool((panel.lengths == inputs.shape[2]).all())
        return Split(inputs, targets, np.arange(len(inputs)), as_it_is, None if whole else panel.lengths)

    # Saving: sktime's zip, but the object is safetensors and JSON.

    def save(self, path: str | os.PathLike | None = None, serialization_format: str = "flexseq") -> Any:
        """Write the estimator to a zip file, as sktime does, with the network as safetensors and all else as JSON.

        Args:
            path: where to; ".zip" is added to a name without it, and an existing file is replaced, whole or not at all. None for a pair of
                class and bytes in memory.
            serialization_format: accepted as sktime's estimators do; there is one format.

        Returns:
            The open zip file, or the pair.

        Raises:
            InputError: a setting that JSON cannot hold (a lambda as `kernel`, a RandomState); several targets at once.
        """
        data = self._as_bytes()
        if path is None:
            return type(self), data
        path = Path(path)
        path = path if path.suffix == ".zip" else path.with_name(f"{path.name}.zip")
        with replacing(path) as part:
            part.write_bytes(data)
        return zipfile.ZipFile(path)

    def _as_bytes(self) -> bytes:
        estimator: Any = self  # sktime's part of it
        if getattr(self, "_is_vectorized", False):
            raise InputError(f"{type(self).__name__} cannot save an estimator of several targets; fit and save one for each")
        fitted = bool(getattr(self, "_is_fitted", False))
        settings = to_json(self._settings_to_save({name: _plain_number(v) for name, v in estimator.get_params(deep=False).items()}))
        about: dict[str, Any] = {"format": FORMAT, "class": type(self).__name__, "settings": settings}
        about["fitted"] = self._fitted_as_json() if fitted else None
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("_metadata", pickle.dumps(type(self)))  # what sktime.base.load looks for; `load` here does not read it
            file.writestr("flexseq.json", json.dumps(about, indent=1))
            if fitted and hasattr(self, "network_"):
                with tempfile.TemporaryDirectory() as folder:
                    save_model(self.network_, Path(folder) / "model.safetensors")
                    file.write(Path(folder) / "model.safetensors", "model.safetensors")
        return buffer.getvalue()

    def _settings_to_save(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings of types that JSON keeps."""
        return settings

    @classmethod
    def _settings_as_saved(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `_settings_to_save`."""
        return settings

    def _fitted_as_json(self) -> dict[str, Any]:
        estimator: Any = self
        shared = {name: _plain(getattr(estimator, name)) for name in ("fit_time_", "_y_metadata", "_X_metadata", "_y_inner_mtype")}
        if hasattr(self, "network_"):
            shared |= {"scaling_": dataclasses.asdict(self.scaling_), "best_epoch_": self.best_epoch_, "history_": self.history_}
            names = self.channels_
            shared |= {"channels_": names if names is None or _plain(names) == names else None, "step_": self.step_}
        return shared

    def _fitted_from_json(self, fitted: dict[str, Any]) -> None:
        scaling = fitted.pop("scaling_", None)
        if scaling is not None:
            self.scaling_ = Scaling(**scaling)
            self.scaling_.check()
        unknown = fitted.keys() - FITTED
        if unknown:
            raise InputError(f"it sets {min(unknown)}, which no fit does")
        for name, value in {"channels_": None, "step_": None, **fitted}.items():  # files from before names have neither
            setattr(self, name, value)
        self._is_vectorized = False
        self._is_fitted = True

    @classmethod
    def load(cls, path: str | os.PathLike) -> Any:
        """Read what `save` wrote; nothing in the file is run or unpickled.

        Raises:
            FileNotFoundError: no such file.
            InputError: a file that `save` of this class did not write.
        """
        path = Path(path)
        if not path.exists() and path.suffix != ".zip":
            path = path.with_name(f"{path.name}.zip")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file of an estimator: it is {'a folder' if path.is_dir() else 'no plain file'}")
        return cls._from_bytes(path.read_bytes(), str(path))

    @classmethod
    def load_from_path(cls, serial: Any) -> Any:
        """As sktime.base.load calls it: `serial` is a path."""
        return cls.load(serial)

    @classmethod
    def load_from_serial(cls, serial: bytes) -> Any:
        """As sktime.base.load calls it: `serial` is the bytes that `save()` gave."""
        return cls._from_bytes(serial, "the bytes")

    @classmethod
    def _from_bytes(cls, data: bytes, where: str) -> Any:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                sizes = {member.filename: member.file_size for member in file.infolist()}
                if sizes.get("flexseq.json", 0) > MOST_JSON or (damaged := file.testzip()) is not None:
                    raise ValueError(f"{damaged} is damaged" if sizes.get("flexseq.json", 0) <= MOST_JSON else "flexseq.json is too large")
                about = json.loads(file.read("flexseq.json"))
                model = file.read("model.safetensors") if "model.safetensors" in sizes else None
            if not isinstance(about, dict):
                raise TypeError("flexseq.json holds no object")
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
            raise InputError(f"{where}: not an estimator that flexseq saved: {error}") from error
        if about.get("class") != cls.__name__ or about.get("format") != FORMAT:
            raise InputError(f"{where} holds a {about.get('class')} of format {about.get('format')}, not a {cls.__name__} of {FORMAT}")
        try:
            return cls._from_parts(about, model)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise InputError(f"{where}: not an estimator that flexseq saved: {' '.join(str(error).split())[:300]}") from error

    @classmethod
    def _from_parts(cls, about: dict[str, Any], model: bytes | None) -> Any:
        estimator: Any = cls(**cls._settings_as_saved(from_json(about["settings"])))
        if model is not None:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "model.safetensors").write_bytes(model)
                estimator.network_ = load_model(Path(folder) / "model.safetensors")
        if about["fitted"] is not None:
            estimator._fitted_from_json(about["fitted"])
            if model is not None:
                estimator._check_loaded()
        return estimator

    def _check_loaded(self) -> None:
        """Raise InputError where a network's channels or outputs are not those of the rest."""
        estimator: Any = self
        outputs, channels = estimator.network_.head.out_features, estimator.network_.in_channels
        wanted = len(estimator.classes_) if hasattr(estimator, "classes_") else 1
        if outputs != wanted:
            raise InputError(
                f"its network has {outputs} outputs, for {wanted} classes" if wanted > 1 else f"its network has {outputs} outputs"
            )
        if channels != estimator.scaling_.channels:
            raise InputError(f"its network has {channels} channels, and its scaling {estimator.scaling_.channels}")


def _part(split: Split, positions: np.ndarray) -> Split:
    return Split(split.inputs, split.targets, positions, split.transform, split.lengths)


def _plain_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: Any) -> Any:
    """Metadata as JSON holds it; what it cannot is left out."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else None
