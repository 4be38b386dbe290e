"""The one place that makes sure torchmetrics, which Lightning imports too, comes in whole.

It imports torchvision where that is installed, and PyPI's torchvision does not import beside a CPU build of torch. Nothing that flexseq
uses of torchmetrics needs it.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from typing import Any


def import_torchmetrics() -> None:
    """Import torchmetrics: with torchvision where that imports, else as if that were not installed.

    Raises:
        ImportError: torchmetrics is not installed.
    """
    if "torchmetrics" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except (ImportError, RuntimeError, OSError):  # built for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    requirements: Any = importlib.import_module("lightning_utilities.core.imports")  # by which torchmetrics finds out what there is
    original = requirements._version

    def without_torchvision(name: str) -> str:
        if name == "torchvision":
            raise importlib.metadata.PackageNotFoundError(name)
        return str(original(name))

    requirements._version = without_torchvision
    modules: Any = sys.modules
    modules["torchvision"] = None  # which Python takes for a module that cannot be imported
    try:
        importlib.import_module("torchmetrics")
    finally:
        requirements._version = original
        del modules["torchvision"]
