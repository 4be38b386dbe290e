"""The command line: what it leaves, and what it says to bad input."""

import json
import subprocess
import sys

import pytest

from flexseq.bench.cli import main
from flexseq.bench.results import summary_of

QUICK = ["digits", "--epochs", "1", "--limit", "200", "--depth", "1", "--width", "6", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bench(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flexseq.bench", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_without_a_task_it_lists_them_and_says_what_is_here(bench):
    code, out, _ = bench()
    assert code == 0
    for task in ("digits", "speech_mfcc", "speech_raw"):
        assert task in out
    here = {line.split("│")[1].strip(): line.split("│")[4].strip() for line in out.splitlines() if line.count("│") == 5}
    assert here["digits"] == "yes"
    assert here["speech_mfcc"] == here["speech_raw"] == "no"


def test_a_run_leaves_a_complete_result_and_pictures(bench, tmp_path):
    code, out, _ = bench(*QUICK, "--out", "run", "--seed", 7)
    assert code == 0
    assert out.splitlines()[-1] == "run/result.json"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    keys = {"task", "model", "parameters", "metric", "value", "value_at_best_validation", "best_validation", "paper_value", "epochs"}
    keys |= {"seconds", "seconds_per_epoch", "device", "dtype", "seed", "dataset", "versions", "recipe"}
    assert keys <= result.keys()
    assert result["seed"] == result["recipe"]["training"]["seed"] == 7
    assert result["paper_value"] is None
    assert sum(result["dataset"]["sizes"].values()) == 200
    assert sum(row["samples"] for row in result["per_class"].values()) == result["dataset"]["sizes"]["test"]
    correct = sum(row["samples"] * row["accuracy"] for row in result["per_class"].values())
    assert correct / result["dataset"]["sizes"]["test"] == pytest.approx(result["value"])
    for picture in ("curves.png", "confusion.png", "kernels.png"):
        assert (tmp_path / "run" / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_saved_weights_give_the_reported_accuracy(bench, tmp_path):
    import flexseq as fs
    from flexseq.data.digits import load_digits

    bench(*QUICK, "--out", "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    test = load_digits(limit=200).test
    x, y = test.batch(range(len(test)))
    model = fs.load(tmp_path / "run" / "model.safetensors")
    assert (model(x).argmax(1) == y).double().mean().item() == pytest.approx(result["value"])


def test_several_seeds_are_summed_up_and_continued(bench, tmp_path):
    code, _, _ = bench(*QUICK, "--seeds", 2, "--out", "runs")
    assert code == 0
    result = json.loads((tmp_path / "runs" / "result.json").read_text())
    values = [json.loads((tmp_path / "runs" / f"seed-{seed}" / "result.json").read_text())["value"] for seed in (0, 1)]
    assert result["values"] == values
    assert result["value"] == pytest.approx(sum(values) / 2)
    assert result["spread"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    code, _, err = bench(*QUICK, "--seeds", 2, "--out", "runs")
    assert code == 2
    assert "already holds a run" in err
    (tmp_path / "runs" / "result.json").unlink()
    code, out, _ = bench(*QUICK, "--seeds", 3, "--out", "runs", "--resume")
    assert code == 0
    assert "seed-0 is finished already" in out
    assert len(json.loads((tmp_path / "runs" / "result.json").read_text())["values"]) == 3


@pytest.mark.parametrize(
    ("options", "row"),
    [
        (["--model", "cktcn", "--kernel", "gabor", "--depth", "1"], "CKTCN-gabor-1"),
        (["--model", "ckcnn", "--depth", "1"], "CKCNN-1"),
        (["--model", "tcn", "--depth", "2"], "TCN-2"),
        (["--conv", "conv", "--kernel-size", "3"], "FlexTCN-conv-1"),
        (["--conv", "ck", "--kernel", "siren"], "CKTCN-siren-1"),
    ],
)
def test_every_network_runs(bench, tmp_path, options, row):
    code, _, _ = bench(*QUICK, *options, "--out", "run")
    assert code == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["model"] == row


def test_paper_values_stand_beside_the_papers_networks_alone():
    from flexseq.bench.networks import is_papers, network_arguments, row_name
    from flexseq.bench.tasks import TASKS

    for task in ("speech_mfcc", "speech_raw"):
        rows = set()
        for model, given in [("ckcnn", {})] + [("cktcn", {"kernel": k}) for k in ("fourier", "gabor", "magnet")]:
            rows.add(row_name(model, network_arguments(model, given, {})))
        for depth in (2, 4, 6):
            rows.add(row_name("flextcn", network_arguments("flextcn", {"depth": depth}, {})))
        for kernel in ("siren", "fourier", "gabor"):
            rows.add(row_name("flextcn", network_arguments("flextcn", {"kernel": kernel}, {})))
        assert rows == set(TASKS[task].paper)
        assert TASKS[task].paper_samples == 34_975
        omega_0 = TASKS[task].defaults.networks["ckcnn"]
        assert not is_papers("ckcnn", network_arguments("ckcnn", {}, {}), omega_0)
        assert is_papers("ckcnn", network_arguments("ckcnn", {}, omega_0), omega_0)
    assert is_papers("flextcn", network_arguments("flextcn", {"depth": 2, "kernel": "siren"}, {}), {})
    for changed in ({"width": 4}, {"mask_sigma": 0.5}, {"head": "mean"}, {"kernel_size": 5}):
        assert not is_papers("flextcn", network_arguments("flextcn", changed, {}), {})


def test_a_folder_that_holds_a_run_is_left_alone(bench, tmp_path):
    bench(*QUICK, "--out", "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    code, _, err = bench(*QUICK, "--out", "run")
    assert code == 2
    assert "run already holds a run" in err
    assert "--resume" in err
    code, _, err = bench(*QUICK, "--out", "run", "--resume", "--lr", "0.5")
    assert code == 2
    assert "training.lr: 0.01 there, 0.5 here" in err
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    code, out, _ = bench(*QUICK, "--out", "run", "--resume")
    assert code == 0
    assert "run is finished already" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digitz"], "unknown task 'digitz': did you mean 'digits'"),
        (["digits", "--kernel", "magnett"], "unknown kernel 'magnett': did you mean 'magnet'"),
        (["digits", "--model", "flextnc"], "unknown model 'flextnc': did you mean 'flextcn'"),
        (["digits", "--conv", "flx"], "unknown conv 'flx': did you mean 'flex'"),
        (["digits", "--model", "tcn", "--kernel", "siren"], "--model tcn has no option --kernel"),
        (["digits", "--conv", "conv", "--kernel-size", "3", "--kernel", "siren"], "--conv conv has no --kernel"),
        (["digits", "--conv", "ck", "--mask-sigma", "0.5"], "--conv ck has no --mask-sigma"),
        (["digits", "--conv", "conv", "--kernel-size", "0"], "expected a kernel_size of at least 1"),
        (["digits", "--model", "tcn", "--dropout", "2"], "TCN expected dropout in [0, 1), got 2.0"),
        (["digits", "--head", "sequence"], "one answer a sequence: --head last or mean"),
        (["digits", "--gradient-clip", "nan"], "gradient_clip expected at least 0, got nan"),
        (["digits", "--precision", "16", "--device", "cpu"], "--precision 16 needs a GPU"),
        (["digits", "--words", "a,b"], "digits has no option --words"),
        (["digits", "--device", "tpu"], "device expected auto or one of"),
        (["digits", "--precision", "8"], "unknown precision '8'"),
        (["digits", "--epochs", "0"], "epochs expected at least 1, got 0"),
        (["digits", "--limit", "5"], "--limit expected at least 10, one sample for each class, got 5"),
        (["digits", "--seeds", "0"], "--seeds expected at least 1, got 0"),
        (["digits", "--resume"], "--resume needs --out"),
        (["speech_mfcc", "--data-dir", "nowhere"], "nowhere does not exist"),
        (["speech_mfcc", "--data-dir", "."], "holds no WORD/SPEAKER_nohash_N.wav"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(bench, tmp_path, arguments, message):
    (tmp_path / "other.txt").write_text("")
    code, _, err = bench(*arguments, *([] if "--resume" in arguments else ["--out", "run"]))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_no_network_is_one_sentence(bench, monkeypatch):
    from flexseq.data import speech_commands

    monkeypatch.setattr(speech_commands, "URLS", ["http://127.0.0.1:9/speech_commands_v0.02.tar.gz"])
    code, _, err = bench("speech_raw", "--out", "run")
    assert code == 2
    assert "could not fetch speech_commands_v0.02.tar.gz from http://127.0.0.1:9" in err
    assert "digits" in err
    assert len(err.strip().splitlines()) == 1


def test_summary_needs_no_class_figures():
    result = {
        "value": 0.5,
        "value_at_best_validation": 0.5,
        "best_validation": 0.5,
        "seconds": 1,
        "seconds_per_epoch": 1,
        "seed": 0,
        "per_class": {},
    }
    summary = summary_of([result, {**result, "seed": 1, "value": 0.7}])
    assert summary["value"] == pytest.approx(0.6)
    assert "per_class" not in summary
    assert summary["seeds"] == [0, 1]


def test_it_is_a_module_that_python_runs():
    done = subprocess.run([sys.executable, "-m", "flexseq.bench", "digitz"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: unknown task 'digitz'")


def test_best_weights_give_the_accuracy_at_the_best_validation_epoch(bench, tmp_path):
    import flexseq as fs
    from flexseq.data.digits import load_digits

    bench(*QUICK, "--out", "run", "--epochs", 6, "--lr", "0.05")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best_epoch"] < 6  # else the two files hold the same
    data = load_digits(limit=200)
    model = fs.load(tmp_path / "run" / "best.safetensors")
    for split, value in ((data.test, result["value_at_best_validation"]), (data.validation, result["best_validation"])):
        x, y = split.batch(range(len(split)))
        assert (model(x).argmax(1) == y).double().mean().item() == pytest.approx(value, abs=1e-6)


def test_several_seeds_and_one_do_not_share_a_folder(bench):
    bench(*QUICK, "--seeds", 2, "--out", "runs")
    for other in (["--resume"], ["--seeds", 2, "--lr", "0.5", "--resume"], ["--seeds", 2, "--seed", 5, "--resume"]):
        code, _, err = bench(*QUICK, *other, "--out", "runs")
        assert code == 2
        assert "holds another run" in err


def test_a_run_that_failed_before_its_first_checkpoint_lets_go_of_its_folder(bench, tmp_path):
    code, _, err = bench(*QUICK, "--lr", "1e30", "--out", "run")
    assert code == 2
    assert "a lower learning rate may help" in err
    code, _, _ = bench(*QUICK, "--out", "run")
    assert code == 0
    code, _, _ = bench(*QUICK, "--lr", "1e30", "--seeds", 2, "--out", "runs")
    assert code == 2
    code, _, _ = bench(*QUICK, "--seeds", 2, "--out", "runs")
    assert code == 0


def test_an_out_that_cannot_be_is_named(bench, tmp_path):
    (tmp_path / "file").write_text("")
    for out, message in (("file", "--out expected a folder, got the file"), ("x" * 300, "cannot use")):
        code, _, err = bench(*QUICK, "--out", out)
        assert code == 2
        assert message in err


def test_a_broken_checkpoint_is_named(bench, tmp_path):
    bench(*QUICK, "--out", "run")
    (tmp_path / "run" / "result.json").unlink()
    whole = (tmp_path / "run" / "last.ckpt").read_bytes()
    (tmp_path / "run" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    code, _, err = bench(*QUICK, "--out", "run", "--resume")
    assert code == 2
    assert "last.ckpt cannot be read; remove it to start anew" in err
    (tmp_path / "run" / "recipe.json").write_text("[]")
    code, _, err = bench(*QUICK, "--out", "run", "--resume")
    assert code == 2
    assert "no readable recipe.json" in err


def test_how_padded_speech_was_prepared_is_in_the_result(bench, tmp_path):
    import numpy as np
    import soundfile

    for word in ("on", "off"):
        for n in range(10):
            path = tmp_path / "words" / word / f"s{n}_nohash_0.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.random.default_rng(n).normal(0, 0.1, 4000), 8000)
    options = ["--words", "on,off", "--split", "paper", "--epochs", 1, "--depth", 1, "--width", 4, "--out", "run"]
    code, out, err = bench("speech_mfcc", "--data-dir", "words", *options)
    assert code == 0, err
    assert "20 of 20 clips are shorter than a second and end in zeros" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    expected = {"words": ["on", "off"], "split": "paper", "short": "pad", "standardised_per": "channel"}
    assert result["dataset"]["options"] == expected
    assert result["paper_value"] is None
