"""Two processes that train together give what one gives with the whole batch."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from test_bench import _own_place, bench  # noqa: F401

import flexseq as fs
from flexseq.data.digits import load_digits
from flexseq.data.loader import EpochLoader
from flexseq.models.norms import synchronise_batch_norm
from flexseq.processes import is_first_process

STEPS = 3


def problem(kind):
    torch.manual_seed(0)
    if kind == "series":
        model = fs.FlexTCN(2, 3, depth=2, width=6, kernel_size=30, mask_sigma=0.3, dropout=0.0)
        x = torch.randn(STEPS, 8, 2, 30)
    elif kind == "sparse":
        model = fs.CFNet(2, 3, 2, 4, image_size=8, positions=60)
        x = torch.randn(STEPS, 8, 2, 8, 8)
    else:
        model = fs.FlexNet(2, 3, depth=1, width=4, image_size=8, mask_sigma=0.3, dropout=0.0)
        x = torch.randn(STEPS, 8, 2, 8, 8)
    lengths = torch.randint(5, 31, (STEPS, 8))
    return model.double(), x.double(), torch.randint(0, 3, (STEPS, 8)), lengths


def train(model, x, targets, lengths, kind):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = model(x[step], lengths[step]) if kind == "series" else model(x[step])
        F.cross_entropy(logits, targets[step]).backward()
        optimizer.step()


def work(rank, kind, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, x, targets, lengths = problem(kind)
    for layer in model.modules():
        if isinstance(layer, fs.CFConv2d):
            layer._seed += 7 * rank  # built by each process with random numbers of its own
            layer._steps += rank
            layer.kernel_size = None  # and started in eval mode, each by itself
    if kind == "sparse":
        with torch.no_grad():
            model.eval()(x[0])
        model.train()
    model = synchronise_batch_norm(model)
    half = slice(rank, None, 2)
    train(torch.nn.parallel.DistributedDataParallel(model), x[:, half], targets[:, half], lengths[:, half], kind)
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["series", "images", "sparse"])
def test_two_processes_train_as_one(kind, tmp_path):
    """Batch normalisation of each half by itself would differ in the first digit; so would halves of unequal numbers of valid steps.

    Sparse kernels draw the same positions in both.
    """
    mp.spawn(work, (kind, str(tmp_path)), nprocs=2)
    model, x, targets, lengths = problem(kind)
    train(model, x, targets, lengths, kind)
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt")
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state[name], value, atol=1e-8, rtol=0, msg=f"{name} of process {rank}")


def work_of_unequal_lengths(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = fs.FlexTCN(2, 3, depth=1, width=6, mask_sigma=0.3, variance_preserving=True, dropout=0.0)
    x = torch.randn(4, 2, 50 if rank == 0 else 30)
    if rank == 1:
        model.eval()(torch.randn(1, 2, 70))  # one process alone has a look before
    parallel = torch.nn.parallel.DistributedDataParallel(model).train()
    for _ in range(2):
        parallel(x).sum().backward()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_processes_agree_on_the_longest_kernel(tmp_path):
    mp.spawn(work_of_unequal_lengths, (str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for (name, one), other in zip(states[0].items(), states[1].values(), strict=True):
        if "running" not in name:  # statistics are of each process's half here
            assert torch.equal(one, other), name
    model = fs.FlexTCN(2, 3, depth=1, width=6)
    model.load_state_dict(states[0])
    assert model.blocks[0].conv1.kernel_size == (50,)


def test_shares_of_a_batch_are_disjoint_and_all_of_it(monkeypatch):
    split = load_digits(limit=101).train
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("flexseq.data.loader.share", lambda rank=rank: (rank, 2))
        shares.append(EpochLoader(split, 16, seed=1, shared=True).sampler.batches())
    whole = EpochLoader(split, 16, seed=1).sampler.batches()
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for one, other, batch in zip(*shares, whole, strict=True):
        assert sorted(one + other) == sorted(batch)
        assert len(one) - len(other) in (0, 1)


@pytest.mark.parametrize("task", ["digits", "digits_transfer"])
def test_the_bench_trains_with_two_processes(task, tmp_path):
    """Float64, no dropout: the first epoch's mean loss is that of one process, to what Adam makes of rounding."""
    options = [
        "--epochs",
        "2",
        "--limit",
        "200",
        "--depth",
        "1",
        "--width",
        "4",
        "--dropout",
        "0",
        "--precision",
        "64",
        "--batch-size",
        "27",
    ]
    # Without the kernel penalty: a bias that batch normalisation takes out has no other gradient, and rounding decides on its direction.
    options += ["--fine-tune-epochs", "1"] if task == "digits_transfer" else ["--kernel-penalty", "0"]
    rows = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        command = [
            sys.executable,
            "-m",
            "flexseq.bench",
            task,
            *options,
            "--devices",
            str(devices),
            "--strategy",
            "ddp",
            "--out",
            str(folder),
        ]
        ran = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[-1] == f"{folder}/result.json"
        assert ran.stdout.count("epoch 2/2") == 1  # one process speaks
        result = json.loads((folder / "result.json").read_text())
        assert result["processes"] == devices
        history = next(folder.rglob("history.csv")).read_text().splitlines()
        rows[devices] = [float(value) for value in history[1].split(",")]
    for one, two in zip(rows[1][1:5], rows[2][1:5], strict=True):  # losses and accuracies of the first epoch
        assert two == pytest.approx(one, rel=1e-5)


def test_a_table_on_two_devices(tmp_path):
    code = """
import sys
from flexseq.bench import tables
from flexseq.bench.cli import main
from flexseq.bench.tables import Column, Row, Table
small = {"depth": 1, "width": 4}
rows = (Row("a", "flextcn", small), Row("b", "flextcn", {**small, "kernel": "siren"}))
tables.TABLES["table1"] = Table("A table", (Column("digits", "digits"),), rows)
main()
"""
    (tmp_path / "table.py").write_text(code)
    command = [sys.executable, str(tmp_path / "table.py"), "table1", "--limit", "200", "--epochs", "1", "--devices", "2", "--device", "cpu"]
    ran = subprocess.run([*command, "--out", str(tmp_path / "t")], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("epoch 1/1") == 2  # one process speaks
    assert ran.stdout.splitlines()[-1] == f"{tmp_path}/t/table.md"
    for row in ("a", "b"):
        assert json.loads((tmp_path / "t" / "runs" / "digits" / row / "seed-0" / "result.json").read_text())["processes"] == 2


def test_two_machines_train_as_one(tmp_path):
    """Each runs the same command; here both are this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["digits", "--limit", "200", "--epochs", "1", "--depth", "1", "--width", "4", "--device", "cpu", "--num-nodes", "2"]
    command = [sys.executable, "-m", "flexseq.bench", *command, "--out", str(tmp_path / "run")]
    rendezvous = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    second = subprocess.Popen(command, env={**rendezvous, "NODE_RANK": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.run(command, env={**rendezvous, "NODE_RANK": "0"}, capture_output=True, text=True, timeout=240)
    said, _ = second.communicate(timeout=60)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, said
    assert "epoch 1/1" in first.stdout
    assert "epoch 1/1" not in said
    assert json.loads((tmp_path / "run" / "result.json").read_text())["processes"] == 2


def test_the_first_of_slurms_processes(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not is_first_process()
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert is_first_process()


def test_a_process_may_have_nothing_to_validate(tmp_path):
    """Five series train and validate: one validates."""
    command = ["archive", "--problem", "GunPoint", "--limit", "5", "--epochs", "2", "--depth", "1", "--width", "4", "--batch-size", "4"]
    command += ["--devices", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    ran = subprocess.run([sys.executable, "-m", "flexseq.bench", *command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best_validation"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "100000"], "--devices expected at most"),
        (["--devices", "0"], "expected at least 1, got 0"),
        (["--devices", "2", "--batch-size", "1"], "--batch-size expected batches of at least 2 samples"),
        (["--strategy", "fsdp"], "unknown strategy"),
    ],
)
def test_bad_options_are_named(bench, arguments, message, monkeypatch):  # noqa: F811
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    code, _, err = bench("digits", "--epochs", "1", "--limit", "200", "--device", "cpu", *arguments)
    assert code == 2
    assert message in err
