"""What is imported when."""

import subprocess
import sys

HEAVY = (
    "pytorch_lightning",
    "lightning",
    "sktime",
    "torchaudio",
    "matplotlib",
    "sklearn",
    "pooch",
    "soundfile",
    "typer",
    "rich",
    "pandas",
    "scipy",
)


def test_flexseq_imports_torch_and_einops_and_nothing_heavy():
    code = f"import sys, flexseq; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchaudios_python_parts_work_beside_this_torch():
    code = (
        "from flexseq.torchaudio_import import import_torchaudio; import torch; t = import_torchaudio(); "
        "print(t.functional.resample(torch.randn(800), 8000, 16000).shape, t.datasets.SPEECHCOMMANDS.__name__, import_torchaudio() is t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1600]) SPEECHCOMMANDS True"


def test_torchaudio_without_its_extension_says_so_where_it_matters():
    code = (
        "import torch\n"
        "def fail(path): raise OSError('libcudart.so.13: cannot open shared object file')\n"
        "torch.ops.load_library = fail\n"
        "from flexseq.torchaudio_import import import_torchaudio\n"
        "t = import_torchaudio()\n"
        "print(t.functional.resample(torch.randn(80), 8000, 16000).shape)\n"
        "try: t.functional.forced_align(torch.zeros(1, 4, 3), torch.zeros(1, 2, dtype=torch.int32))\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch.Size([160])\n")
    assert "forced_align needs torchaudio's compiled extension, which did not load: libcudart" in done.stdout
