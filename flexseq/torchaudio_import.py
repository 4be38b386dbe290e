"""The one place that imports torchaudio.

Its wheels hold a compiled extension linked to CUDA, which does not load beside a CPU build of torch. What flexseq uses of it, the list
of a dataset's files, resampling and MFCCs, is Python: it works without the extension.
"""

import importlib
import sys
import types
from typing import NoReturn


def import_torchaudio() -> types.ModuleType:
    """torchaudio, with its compiled extension where that loads and without it where it does not.

    Raises:
        ImportError: torchaudio is not installed.
    """
    try:
        return importlib.import_module("torchaudio")
    except OSError as error:  # the extension's shared library wants another torch, or CUDA
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _without_extension(error)
        return importlib.import_module("torchaudio")


def _without_extension(reason: OSError) -> types.ModuleType:
    """Stands in for torchaudio._extension, saying as that module does that nothing compiled is available."""

    def fail_if_no_align(function):
        def refuse(*args, **kwargs) -> NoReturn:
            raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which did not load: {reason}")

        return refuse

    module = types.ModuleType("torchaudio._extension")
    module.__dict__.update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=fail_if_no_align)
    return module
