"""Studies of many runs: tables, sweeps over sizes."""

import json
import subprocess
import sys

import pytest
from test_bench import _own_place, bench  # noqa: F401

from flexseq.bench import study, sweep, tables
from flexseq.bench.plan import make_plan
from flexseq.bench.tables import TABLES, Column, Row, Table
from flexseq.bench.tasks import TASKS
from flexseq.errors import InputError
from flexseq.files import write_text
from flexseq.processes import alone

FAST = ["--limit", "150", "--epochs", "1"]
SMALL = {"depth": 1, "width": 4}


@pytest.fixture
def digits_table(monkeypatch):
    """A table on data that is everywhere, under the name of one that the command line knows."""
    columns = (Column("8 px", "digits_transfer", "value_at_source"), Column("change", "digits_transfer", "change_at_target", signed=True))
    rows = (
        Row("a", "flexnet", SMALL, {"alias_penalty": "none"}, {"8 px": "86.5 ± 0.1"}),
        Row("b", "flexnet", {**SMALL, "kernel": "siren"}, {}, {}),
    )
    monkeypatch.setitem(tables.TABLES, "table4", Table("A table", columns, rows))


def test_a_table_accumulates_and_can_be_drawn_again(bench, tmp_path, digits_table):  # noqa: F811
    options = [*FAST, "--fine-tune-epochs", "1", "--out", "t"]
    code, _, err = bench("table4", *options, "--rows", "b")
    assert code == 0, err
    code, out, err = bench("table4", *options, "--seeds", "2")
    assert code == 0, err
    assert "1 of 4 runs are finished" in out
    cells = {path.parent.relative_to(tmp_path / "t" / "runs") for path in (tmp_path / "t" / "runs").rglob("seed-*/result.json")}
    assert len(cells) == 4
    data = json.loads((tmp_path / "t" / "table.json").read_text())
    first = data["rows"][0]["figures"]["8 px"]
    results = [
        json.loads((tmp_path / "t" / "runs" / "digits_transfer" / "a" / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)
    ]
    assert first["values"] == [result["value_at_source"] for result in results]
    assert first["paper"] == "86.5 ± 0.1"
    assert [result["seed"] for result in results] == [0, 1]
    before = (tmp_path / "t" / "table.md").read_text()
    assert "(86.5 ± 0.1)" in before
    (tmp_path / "t" / "table.md").unlink()
    code, out, _ = bench("table4", "--draw", "--out", "t")
    assert code == 0
    assert (tmp_path / "t" / "table.md").read_text() == before
    assert "epoch 1/1" not in out
    for picture in ("table.png", "digits_transfer_sizes.png"):
        assert (tmp_path / "t" / picture).stat().st_size > 5000
    code, _, err = bench("table4", *options[:-4], "--fine-tune-epochs", "2", "--out", "t")  # other options than what is there
    assert code == 2
    assert "a study with other options (training: " in err


def test_a_table_of_a_task_without_transfer(bench, tmp_path, monkeypatch):  # noqa: F811
    rows = (Row("a", "flextcn", SMALL, {}, {"digits": "99.0"}), Row("b", "ckcnn", SMALL))
    monkeypatch.setitem(tables.TABLES, "table1", Table("A table", (Column("digits", "digits"),), rows))
    code, _, err = bench("table1", *FAST, "--out", "t")
    assert code == 0, err
    text = (tmp_path / "t" / "table.md").read_text()
    assert "(99.0)" in text
    assert text.count("| 0 | 1 |") == 2
    assert (tmp_path / "t" / "table.png").stat().st_size > 5000


def test_a_run_that_fails_does_not_stop_the_others(bench, tmp_path, digits_table, monkeypatch):  # noqa: F811
    good, bad = (tables.TABLES["table4"].rows[0], Row("broken", "flexnet", SMALL, {"alias_penalty": "none", "lr": 1e30}))
    monkeypatch.setitem(tables.TABLES, "table4", Table("A table", tables.TABLES["table4"].columns, (bad, good)))
    code, _, err = bench("table4", *FAST, "--fine-tune-epochs", "1", "--out", "t")
    assert code == 2
    assert "1 of 2 runs failed: the training loss became" in err
    assert "(digits_transfer/broken/seed-0)" in err
    assert (tmp_path / "t" / "runs" / "digits_transfer" / "a" / "seed-0" / "result.json").is_file()


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    place = tmp_path / "runs" / "x"
    with alone(place) as first:
        assert first
        code = "import sys; from pathlib import Path; from flexseq.processes import alone\n"
        code += "with alone(Path(sys.argv[1])) as mine: print(mine)"
        other = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True)
        assert other.stdout.strip() == "False"
    with alone(place) as again:
        assert again


def test_a_run_that_another_process_finished_meanwhile_is_not_run_again(tmp_path, monkeypatch, capsys):
    ran = []

    def run(plan, place, **_):
        ran.append(place.name)
        for name in ("a", "b"):
            write_text(tmp_path / "runs" / name / "result.json", "{}")

    monkeypatch.setattr(study, "run", run)
    plan = make_plan("digits")
    study.run_cells([study.Cell("a", plan), study.Cell("b", plan)], tmp_path, device="cpu", draw=lambda: tmp_path)
    assert ran == ["a"]
    assert "b was finished by another process meanwhile" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table4", "--rows", "c"], "--rows expected some of a, b, got c"),
        (["table4", "--tasks", "digits"], "--tasks expected some of digits_transfer, got digits"),
        (["table4", "--draw"], "holds no finished run of table4"),
        (["table4", "--seeds", "0"], "--seeds expected at least 1, got 0"),
        (["digits", "--sweep"], "--sweep needs a transfer task, got digits"),
        (["table4", "--download"], "table4 has no option --download"),
        (["--out", "x", "table4", "--rows", "c"], "--rows expected some of a, b, got c"),
        (["tabel4"], "did you mean 'table4'"),
        (["digits_transfer", "--sweep", "--source", "8,x"], "--source expected pixels"),
        (["digits_transfer", "--source", "8,9"], "one size without --sweep"),
        (["digits_transfer", "--sweep", "--source", "8", "--target", "2"], "at least 4 px, got 2"),
    ],
)
def test_bad_options_are_named(bench, digits_table, arguments, message):  # noqa: F811
    code, _, err = bench(*arguments)
    assert code == 2
    assert message in err


def test_rows_of_the_tables_of_sequences_are_models():
    row = make_plan("smnist", model="FlexTCN-siren-4", network={"width": 8})
    assert row.as_json() == make_plan("smnist", model="flextcn", network={"depth": 4, "kernel": "siren", "width": 8}).as_json()
    wanted = {f"FlexTCN-{kernel}-{depth}" for kernel in ("magnet", "siren", "fourier", "gabor") for depth in (2, 4, 6)}
    rows = {row.name: row for row in TABLES["table1"].rows}
    assert wanted < rows.keys()
    assert rows["FlexTCN-siren-4"].on_request
    assert sum(not row.on_request for row in rows.values()) == 11  # the paper's ten and TCN
    with pytest.raises(InputError, match="unknown model 'CKTCN-gabr-2': did you mean 'CKTCN-gabor-2'"):
        make_plan("smnist", model="CKTCN-gabr-2")


def test_every_row_of_every_table_can_be_planned():
    for table in TABLES.values():
        for row in table.rows:
            assert row.paper.keys() <= {column.title for column in table.columns}
            for task in table.tasks:
                plan = make_plan(task, model=row.model, network=row.network, training=row.training)
                assert plan.model == row.model
                quick = make_plan(task, model=row.model, network=row.network, training=row.training, quick=True)
                assert quick.recipe.epochs < plan.recipe.epochs


def test_kernels_that_cannot_pay_are_refused_before_anything_is_written(bench, tmp_path):  # noqa: F811
    for arguments, message in (
        (["digits", "--kernel", "siren"], "known highest frequency, got SIREN"),
        (["digits_transfer", "--model", "cifar_resnet"], "a network of continuous kernels, got cifar_resnet"),
    ):
        code, _, err = bench(*arguments, "--penalty", "magnet", "--out", "refused")
        assert code == 2
        assert message in err
        assert not (tmp_path / "refused").exists()


def test_a_sweep_that_others_run_has_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="holds no finished run of digits_transfer"):
        sweep._draw("digits_transfer", tmp_path)


def test_a_sweep_trains_once_at_each_source(bench, tmp_path):  # noqa: F811
    network = ["--depth", "1", "--width", "4"]
    options = ["digits_transfer", *FAST, "--fine-tune-epochs", "1", *network]
    code, out, err = bench(*options, "--sweep", "--source", "8", "--target", "10,12", "--penalty", "magnet", "--out", "s")
    assert code == 0, err
    assert out.count("source 8 px: epoch 1/1") == 1
    assert out.splitlines()[-1] == "s/grid.md"
    grid = json.loads((tmp_path / "s" / "grid.json").read_text())
    assert (grid["sources"], grid["targets"]) == ([8], [10, 12])
    assert (tmp_path / "s" / "grid.png").stat().st_size > 5000
    code, _, _ = bench(*options, "--source", "8", "--target", "12", "--out", "alone")
    assert code == 0
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    shared = json.loads((tmp_path / "s" / "runs" / "magnet" / "8-12" / "seed-0" / "result.json").read_text())
    for key in ("value", "value_at_source", "value_at_target_as_it_is", "accuracy_over_size"):
        assert alone[key] == shared[key]
    assert grid["grids"]["penalty magnet, as it is"] == [[[grid_value(tmp_path, 10)], [shared["change_at_target"]]]]

    code, _, err = bench(*options[:-1], "6", "--sweep", "--source", "8", "--target", "10", "--out", "s")
    assert code == 2
    assert "a study with other options (network: " in err


def test_a_sweep_of_kernels_that_cannot_pay_has_no_penalty(bench, tmp_path):  # noqa: F811
    options = ["digits_transfer", *FAST, "--fine-tune-epochs", "1", "--depth", "8", "--model", "cifar_resnet", "--target", "10"]
    code, _, err = bench(*options, "--sweep", "--out", "s")
    assert code == 0, err
    assert list(json.loads((tmp_path / "s" / "grid.json").read_text())["grids"]) == ["penalty none, as it is", "penalty none, fine-tuned"]


def grid_value(tmp_path, target):
    return json.loads((tmp_path / "s" / "runs" / "magnet" / f"8-{target}" / "seed-0" / "result.json").read_text())["change_at_target"]


def test_quick_is_a_smaller_version_of_the_recipe(bench, tmp_path):  # noqa: F811
    for task in TASKS:
        whole, quick = make_plan(task), make_plan(task, quick=True)
        assert quick.recipe.epochs < whole.recipe.epochs
        assert quick.data.get("limit", 0) <= 20_000
    assert make_plan("cifar10", quick=True, data={"limit": 50}).data["limit"] == 50
    assert make_plan("cifar10", quick=True, training={"epochs": 3}).recipe.epochs == 3


def test_kernels_start_below_nyquist_where_asked_and_only_those_with_a_limit(bench):  # noqa: F811
    assert make_plan("cifar10_transfer", quick=True).recipe.start_below_nyquist
    assert not make_plan("cifar10_transfer").recipe.start_below_nyquist
    assert not make_plan("cifar10_transfer", quick=True, network={"kernel": "siren"}).recipe.start_below_nyquist
    assert not make_plan("cifar10_transfer", quick=True, training={"alias_penalty": "none"}).recipe.start_below_nyquist
    code, _, err = bench("digits_transfer", "--kernel", "siren", "--start-below-nyquist", "--seeds", "2", "--out", "refused")
    assert code == 2
    assert "known highest frequency, got SIREN in conv" in err
