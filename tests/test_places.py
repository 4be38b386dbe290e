"""Files and folders as they are on people's machines: full disks, links, two processes at once, schedulers' variables."""

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_bench import QUICK, _own_place, bench  # noqa: F401
from test_training import CPU, a_model, two_tones

import flexseq as fs
from flexseq.bench.plan import make_plan
from flexseq.bench.run import run
from flexseq.bench.study import claim_study, results_of
from flexseq.files import remove_unfinished, replacing, write_text
from flexseq.processes import alone, by_itself, check_devices, is_first_process
from flexseq.training.callbacks import EpochSeeds, Interruption
from flexseq.training.fit import CHECKPOINT, fit
from flexseq.training.recipe import Recipe


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"


def test_what_is_no_plain_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull), tmp_path):
        with pytest.raises(fs.InputError, match=r"cannot write .*: it is (no plain file|a folder)"):
            fs.save(fs.FlexConv1d(1, 1, 5), place)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("name", ["x" * 240 + ".safetensors", "ä" * 120 + ".st"])
def test_long_names_are_written(name, tmp_path):
    fs.save(fs.FlexConv1d(1, 1, 5), tmp_path / name)
    assert isinstance(fs.load(tmp_path / name), fs.FlexConv1d)


def test_permissions_are_those_of_the_umask_also_with_threads(tmp_path):
    before = os.umask(0o027)
    try:
        threads = [threading.Thread(target=lambda i=i: [write_text(tmp_path / f"{i}", "x") for _ in range(50)]) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {stat.S_IMODE((tmp_path / f"{i}").stat().st_mode) for i in range(6)} == {0o640}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3: file write failed")

    with pytest.raises(fs.InputError, match=r"cannot write .*a\.ckpt: the disk"), replacing(tmp_path / "a.ckpt"):
        fail()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="other"), replacing(tmp_path / "a.ckpt"):
        raise RuntimeError("other")


@pytest.mark.parametrize(
    "target", ["flexseq.training.callbacks.write_text", "flexseq.bench.results.write_text", "safetensors.torch.save_file"]
)
def test_a_full_disk_in_a_run_is_one_sentence(target, bench, tmp_path, monkeypatch):  # noqa: F811
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(target, full)
    code, _, err = bench(*QUICK, "--out", tmp_path / "run")
    assert code == 2
    assert err.strip().splitlines()[-1] == "Error: somewhere: No space left on device"


def test_a_full_standard_output_is_one_sentence():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "flexseq.bench"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr


def test_a_terminal_that_knows_ascii_alone(tmp_path):
    place = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "FLEXSEQ_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "flexseq.bench", *map(str, QUICK), "--seeds", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("out", "message"), [("", "expected the name of a folder, got none"), (".", "expected the name of a folder")])
def test_out_without_a_name(out, message, bench):  # noqa: F811
    code, _, err = bench(*QUICK, "--out", out)
    assert (code, message in err) == (2, True)


def test_out_in_the_home_folder(bench, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, _ = bench(*QUICK, "--out=~/x")
    assert code == 0
    assert (tmp_path / "home" / "x" / "result.json").is_file()
    assert not (tmp_path / "~").exists()


def test_out_that_is_a_dangling_link(bench, tmp_path):  # noqa: F811
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    code, _, err = bench(*QUICK, "--out", tmp_path / "link")
    assert code == 2
    assert "is a link to" in err
    assert "which does not exist" in err


def plan_of_digits(**training):
    return make_plan("digits", network={"depth": 1, "width": 4}, training={"epochs": 2, **training}, data={"limit": 100})


def test_a_second_process_in_a_folder_is_refused_and_takes_nothing(tmp_path):
    with alone(tmp_path / "run") as mine:
        assert mine
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "recipe.json").write_text("{}")
        code = (
            "import sys; from pathlib import Path; from flexseq.processes import alone\nwith alone(Path(sys.argv[1])) as mine: print(mine)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"
        command = [sys.executable, "-m", "flexseq.bench", *map(str, QUICK), "--resume", "--out", str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert "is being run by another process" in done.stderr
        assert (tmp_path / "run" / "recipe.json").read_text() == "{}"
    assert not list(tmp_path.glob(".*.lock"))


def test_a_folder_that_is_removed_while_it_runs(tmp_path, monkeypatch):
    original = EpochSeeds.on_train_batch_start

    def remove(self, trainer, module, batch, index):
        if trainer.current_epoch == 1 and index == 0:
            shutil.rmtree(tmp_path / "run")
        return original(self, trainer, module, batch, index)

    monkeypatch.setattr(EpochSeeds, "on_train_batch_start", remove)
    with pytest.raises(fs.InputError, match="was removed while it ran; nothing is written"):
        run(plan_of_digits(), tmp_path / "run", seeds=1, device="cpu", resume=False)
    assert not (tmp_path / "run").exists()


def test_what_a_kill_left_is_removed_on_resuming(tmp_path):
    fit(a_model(), two_tones(), Recipe(1, 80, 0.01), tmp_path, device=CPU, label=None)
    (tmp_path / ".last.0123456789ab.part.ckpt").write_bytes(b"half")
    (tmp_path / "kept.part").write_bytes(b"somebody's own")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "kept.part", CHECKPOINT]


def test_damaged_results_are_put_aside_and_made_again(tmp_path):
    run(plan_of_digits(), tmp_path / "run", seeds=1, device="cpu", resume=False)
    path = tmp_path / "run" / "result.json"
    whole = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    assert results_of(tmp_path, []) == []
    run(plan_of_digits(), tmp_path / "run", seeds=1, device="cpu", resume=True)
    assert json.loads(path.read_text())["value"] == whole["value"]
    assert (tmp_path / "run" / "result.json.altered").is_file()


@pytest.mark.parametrize("content", ["", "[]", '{"a": '])
def test_a_damaged_study_is_named(content, tmp_path):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(fs.InputError, match=r"study\.json is damaged"):
        claim_study(tmp_path, {"a": 1})


def test_a_rank_alone_says_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first_process()
    with by_itself(True):
        assert is_first_process()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(fs.InputError, match="torchrun started 2 processes, and --devices and --num-nodes ask for one"), by_itself(True):
        pass
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(fs.InputError, match="the environment's RANK expected an integer, got 'x'"):
        is_first_process()


def test_a_run_with_a_rank_in_the_environment_leaves_its_result(bench, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RANK", "1")
    code, out, _ = bench(*QUICK, "--out", tmp_path / "run")
    assert code == 0
    assert (tmp_path / "run" / "result.json").is_file()
    assert "result.json" in out


def test_several_machines_without_an_address(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(fs.InputError, match="--num-nodes 2 needs the first machine's address"):
        check_devices("cpu", 1, 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["first", "between epochs"])
def test_ctrl_c_ends_training(workers, moment, tmp_path):
    """Epochs of a moment, so that most of the time workers start and end: there Python drops what a signal raises."""
    code = f"""
import signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
from test_training import CPU, a_model, two_tones
from flexseq.training.fit import fit
from flexseq.training.recipe import Recipe
print("ready", flush=True)
fit(a_model(), two_tones(), Recipe(10_000, 80, 0.001, workers={workers}), None, device=CPU, label="training")
"""
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = iter(process.stdout.readline, "")
    wanted = 1 if moment == "first" else 4
    for line in lines:
        wanted -= "epoch" in line
        if not wanted:
            break
    time.sleep(0.03)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_training_goes_on_raising_where_a_destructor_dropped_it():
    interruption = Interruption()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruption:

            class Drops:
                def __del__(self):
                    os.kill(os.getpid(), signal.SIGINT)

            with contextlib.suppress(KeyboardInterrupt):  # it comes out of the destructor where the interpreter looks at signals later
                Drops()
            assert interruption.came
            with pytest.raises(KeyboardInterrupt):
                interruption.on_train_batch_start(None, None, None, 0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_lock_is_not_held_by_workers_that_outlive_a_kill(tmp_path):
    with alone(tmp_path / "run") as mine:
        assert mine
        pid = os.fork()
        if not pid:
            time.sleep(3)
            os._exit(0)
    with alone(tmp_path / "run") as mine:
        assert mine
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
