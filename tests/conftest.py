"""What several tests share."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import flexseq as fs

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())


class Golden:
    """One case of arrays that the original implementation computed."""

    def __init__(self, name: str):
        self.config = INDEX[name]["config"]
        arrays = np.load(GOLDEN / f"{name}.npz")
        self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays if not key.startswith("state/")}
        self.state = {key.removeprefix("state/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith("state/")}

    def kernel(self, name: str):
        """A factory of the case's kernel network."""
        classes = {"magnet": fs.kernels.MAGNet, "gabor": fs.kernels.Gabor, "fourier": fs.kernels.Fourier, "siren": fs.kernels.SIREN}
        return functools.partial(classes[name.lower()], hidden=self.config["hidden"], layers=self.config["layers"])


@pytest.fixture
def golden():
    return Golden


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| / max |reference|."""
    assert value.shape == reference.shape
    return ((value - reference).abs().max() / reference.abs().max()).item()
