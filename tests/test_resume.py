"""A run that is killed goes on where its last epoch ended, and ends as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from test_bench import _own_place, bench  # noqa: F401

OPTIONS = [
    "digits",
    "--epochs",
    "5",
    "--limit",
    "400",
    "--depth",
    "1",
    "--width",
    "8",
    "--dropout",
    "0.3",
    "--batch-size",
    "32",
    "--device",
    "cpu",
]


def command(out, *more):
    return [sys.executable, "-u", "-m", "flexseq.bench", *OPTIONS, "--out", str(out), *more]


def environment(tmp_path):
    return {**os.environ, "FLEXSEQ_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(folder / "run"), check=True, env=environment(folder), capture_output=True)
    return folder / "run"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_in_its_third_epoch_and_resumed_ends_with_the_same_weights(uninterrupted, tmp_path, workers):
    out = tmp_path / "run"
    # In the third epoch the fourth batch waits, so that the kill falls into the middle of it however fast the machine is.
    slow = (
        "import time; from flexseq.training.callbacks import EpochSeeds\n"
        "original = EpochSeeds.on_train_batch_start\n"
        "def wait(self, trainer, module, batch, index):\n"
        "    original(self, trainer, module, batch, index)\n"
        "    if trainer.current_epoch == 2 and index == 3: print('fourth batch of the third epoch', flush=True); time.sleep(60)\n"
        "EpochSeeds.on_train_batch_start = wait\n"
        "from flexseq.bench.cli import main; main()"
    )
    arguments = command(out, "--workers", workers)[4:]  # what follows -u -m flexseq.bench
    process = subprocess.Popen([sys.executable, "-u", "-c", slow, *arguments], env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "fourth batch" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()

    resumed = subprocess.run(
        command(out, "--workers", workers, "--resume"), env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert "resuming at epoch 3 of 5" in resumed.stdout
    with open(out / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["session"]) for row in rows] == [("1", "1"), ("2", "1"), ("3", "2"), ("4", "2"), ("5", "2")]
    for name in ("model.safetensors", "best.safetensors"):
        ours, theirs = load_file(out / name), load_file(uninterrupted / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with open(uninterrupted / "history.csv") as file:
        for ours, theirs in zip(rows, csv.DictReader(file), strict=True):
            assert all(ours[key] == theirs[key] for key in ours if key not in ("seconds", "session"))


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, "--epochs", "500"), env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "epoch 1/" in line:
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "with --resume and --out (above) the same command goes on" in errors
    assert "Traceback" not in errors
    assert (out / "last.ckpt").exists()


def test_a_run_killed_while_it_took_its_folder_goes_on(bench, tmp_path):  # noqa: F811
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").touch()
    code, _, err = bench("digits", "--epochs", "1", "--limit", "200", "--depth", "1", "--width", "4", "--out", "run", "--resume")
    assert code == 0, err


TABLE = """
import os, signal, sys
from pathlib import Path
from flexseq.bench import tables
from flexseq.bench.tables import Column, Row, Table
small = {"depth": 1, "width": 4}
rows = (Row("a", "flextcn", small), Row("b", "flextcn", {**small, "kernel": "siren"}))
tables.TABLES["small"] = Table("A table", (Column("digits", "digits"),), rows)
folder, left = Path(sys.argv[1]), int(sys.argv[2])

def replace(source, target, original=os.replace):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)

os.replace = replace
given = {"training": {"epochs": 2, "batch_size": 16}, "data": {"limit": 200}, "quick": False}
tables.run_table("small", folder, rows=[], tasks=[], seeds=[0], device="cpu", draw=False, **given)
"""


def test_a_table_killed_at_any_moment_ends_as_the_same_table(tmp_path):
    def table(folder, kill_at):
        arguments = [sys.executable, "-c", TABLE, str(tmp_path / folder), str(kill_at)]
        return subprocess.run(arguments, env=environment(tmp_path), capture_output=True, text=True, check=False)

    whole = table("whole", 0)
    assert whole.returncode == 0, whole.stderr
    for kill_at in (1, 10):  # when it is about to put so many files where they belong
        assert table("killed", kill_at).returncode == -signal.SIGKILL
    ended = table("killed", 0)
    assert ended.returncode == 0, ended.stderr
    ours, theirs = tmp_path / "killed", tmp_path / "whole"
    assert (ours / "table.json").read_bytes() == (theirs / "table.json").read_bytes()
    for row in ("a", "b"):
        weights = [load_file(folder / "runs" / "digits" / row / "seed-0" / "model.safetensors") for folder in (ours, theirs)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
