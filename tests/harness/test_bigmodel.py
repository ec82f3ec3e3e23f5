"""The main driver, bigmodel, at tiny sizes: what it prints, records, resumes, refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TOOLS

from largesparse import NetworkConfig, SparseMLP, load_checkpoint, read_records, save_model
from largesparse.backends import get_backend
from largesparse.errors import ParameterError
from largesparse.harness import bigmodel, bigmodel_pipeline, presets, records, resuming
from largesparse.harness.bigmodel import NOTES
from largesparse.harness.comparison import compare_with_table_4
from largesparse.machine import environment
from largesparse.machine.exit_codes import run_command
from largesparse.model.density import hidden_connections
from largesparse.parallel.comm.nodes import Nodes
from largesparse.parallel.pipeline.plan import Machine
from largesparse.training import trainer as training_module
from largesparse.training.checkpoint import read_notes
from largesparse.training.memory import available_memory

TOOL = TOOLS / "bigmodel.py"
TINY = ["--neurons=400", "--features=100", "--samples=400", "--threads=1", "--backend=scipy"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def surroundings(cache, tmp_path, monkeypatch):
    """A cache of the module's own, an empty working folder, no launcher."""
    monkeypatch.setenv("LARGESPARSE_CACHE", str(cache))
    monkeypatch.delenv("LARGESPARSE_BACKEND", raising=False)
    for name in ("PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run the driver in this process; return exit code, standard output and error."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = run_command(lambda: bigmodel.main([*TINY, *map(str, arguments)]))
        except SystemExit as exit_:  # from argparse
            code = exit_.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def run_subprocess(*arguments, **environ):
    """Run the driver as a user does."""
    return subprocess.run(
        [sys.executable, str(TOOL), *TINY, *map(str, arguments)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def record_of(path):
    table = read_records(path)
    assert len(table) == 1
    return table.iloc[0]


def assert_refused(result, *words, usage=False):
    """Exit code 2, and one sentence on standard error."""
    code, _, err = result
    assert code == 2
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert [line for line in lines if "error: " in line] == [lines[-1]]
    assert usage or len(lines) == 1
    for word in words:
        assert word in lines[-1]


def left():
    return sorted(os.listdir("."))


# A run


@pytest.mark.parametrize(("features", "beside"), [(65536, True), (100, False)])
def test_the_paper_s_column_is_that_of_its_sizes(features, beside):
    config = NetworkConfig((features, 500_000, 500_000, 2), epsilon=10)
    values = {"neurons": 10**6, "connections": 5, "layers": 2, "epsilon": 10.0, "init_s": 0.0123}
    values |= {"train_samples": 70, "test_samples": 30, "accuracy": [None, 0.5], "loss": [1, 0.5]}
    lines = compare_with_table_4(records.new_record("bigmodel", **values), config).splitlines()
    assert lines[0].split() == ["this", "run", *(["paper,", "Table", "4"] * beside)]
    (initialised,) = [line.split()[1:] for line in lines if line.startswith("initialisation")]
    assert initialised == ["12.3", "ms", *(["1", "min"] * beside)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured on Linux")
def test_the_plan_of_a_small_run_is_near_its_peak(tmp_path):
    flags = ["--features=2000", "--epochs=2", "--backend=fused", f"--out={tmp_path / 'runs'}"]
    for size in (["--neurons=2k", "--samples=400"], ["--neurons=40k", "--samples=1400"]):
        # the first may compile some kernels
        command = [sys.executable, str(TOOLS / "bigmodel.py"), *size, *flags]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    record = read_records(tmp_path / "runs").iloc[-1]
    assert record["peak_rss_bytes"] == pytest.approx(record["planned_bytes"], rel=0.2)


def test_a_run_as_a_user_makes_it(tmp_path):
    out = tmp_path / "runs.jsonl"
    done = run_subprocess("--out", out, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    text = done.stdout
    assert "architecture 100-200-200-2: 400 neurons, 7,400 connections expected" in text
    assert re.search(r"^ *required +\d", text, re.MULTILINE)
    assert re.search(r"^ +this run$", text, re.MULTILINE)  # it has no size of the paper's
    for line in (
        r"neurons +400",
        r"active before training +400 \(100\.0%\)",
        r"active in the last epoch +400 \(100\.0%\)",
        r"connections +7,\d{3}",
        r"hidden layers +2",
        r"epsilon +10",
        r"parameters, as Table 4 counts +\S+ M",
        r"initialisation +\d\S* m?s",
        r"epoch \(median\) +\d\S* m?s",
        r"inference \(median\) +\d\S* m?s",
        r"evolution \(median\) +\d\S* m?s",
        r"training rows +280",
        r"test rows +120",
        r"mini-batch +32",
        r"updates an epoch +9",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    assert re.search(r"^inference with 2 processes: \d+\.\d m?s$", text, re.MULTILINE)
    assert re.search(r"test accuracy 0\.\d{3} after the last epoch", text)
    assert f"record appended to {out}" in text
    assert left() == ["runs.jsonl"]

    record = record_of(out)
    expected = {
        "schema": records.SCHEMA,
        "kind": "bigmodel",
        "algorithm": "sequential",
        "neurons": 400,
        "layers": 2,
        "epsilon": 10,
        "ranks": 1,
        "threads": 1,
        "backend": "scipy",
        "recipe": "width",
        "coverage": "full",
        "batch_size": 32,
        "micro_batch": 32,
        "train_samples": 280,
        "test_samples": 120,
        "seed": 0,
    }
    assert {name: record[name] for name in expected} == expected
    assert record["parameters"] == record["connections"] + 402
    # 10 (100 + 200) and 10 (200 + 200) expected, and a full output layer
    assert record["connections"] == pytest.approx(7400, abs=4 * np.sqrt(7000))
    assert [len(record[name]) for name in ("epoch_s", "inference_s", "evolution_s")] == [2, 2, 2]
    times = [record["init_s"], *record["epoch_s"], *record["inference_s"], *record["evolution_s"]]
    assert all(0 < value < 300 for value in times)
    assert [len(record[name]) for name in ("loss", "accuracy")] == [3, 3]
    assert record["active_neurons"] == [400, 400, 400]
    right = np.array(record["accuracy"]) * 120  # of the test rows
    np.testing.assert_allclose(right, right.round(), atol=1e-9)
    assert record["loss"][0] == pytest.approx(np.log(2), abs=0.01)  # the output starts near zero
    assert all(0 <= value <= 1 for value in record["accuracy"])
    assert 0 < record["peak_rss_bytes"] < 8 * record["planned_bytes"]
    assert "bigmodel.py" in record["command"] and "--processes 2" in record["command"]
    assert record["versions"]["numpy"] == np.__version__
    assert record["idle_s"] is None and record["staleness"] is None


def test_the_defaults_learn_and_records_are_appended(run):
    for seed in (0, 1):
        code, text, _ = run(
            *(
                "--neurons",
                "4k",
                "--samples",
                1500,
                "--epochs",
                5,
                "--seed",
                seed,
                "--out",
                "r.jsonl",
            )
        )
        assert code == 0
    table = read_records("r.jsonl")
    assert table["seed"].tolist() == [0, 1]
    for loss, accuracy in zip(table["loss"], table["accuracy"], strict=True):
        assert loss[-1] < 0.5 * loss[0]
        assert accuracy[-1] > 0.7  # 450 test rows: eight standard errors above chance
    assert f"{table['accuracy'][1][-1]:.3f} after the last epoch" in text


def test_the_default_output_is_in_the_working_folder(run):
    assert run("--epochs", 1)[0] == 0
    assert left() == ["runs.jsonl"]


def test_the_plan_is_printed_and_nothing_is_made(run, cache, monkeypatch):
    monkeypatch.setattr(bigmodel, "make_large_classification", lambda *a, **k: pytest.fail("ran"))
    before = sorted(path.name for path in cache.iterdir())
    code, text, err = run("--plan", "--neurons", "20M", "--micro-batch", 2, "--features", "65536")
    assert (code, err) == (0, "")
    assert "architecture 65536-5000000-5000000-5000000-5000000-2: 20,000,000 neurons" in text
    assert "40,065,538 parameters as Table 4 counts" in text
    assert "activations of a micro-batch of 2" in text
    assert re.search(r"^ *peak +\d", text, re.MULTILINE)
    assert left() == []
    assert sorted(path.name for path in cache.iterdir()) == before


@pytest.mark.parametrize(
    ("neurons", "layers", "epsilon"), [("250k", 2, 10), ("2.5M", 2, 5), ("10M", 2, 5)]
)
def test_presets_follow_the_nearest_row(run, neurons, layers, epsilon):
    text = run("--plan", "--neurons", neurons, "--features", 1000, "--micro-batch", 1)[1]
    sizes = re.search(r"architecture (\S+):", text)[1].split("-")
    assert len(sizes) == layers + 2
    assert f"epsilon {epsilon}:" in text
    text = run("--plan", "--neurons", neurons, "--layers", 5, "--epsilon", 0.5)[1]
    sizes = re.search(r"architecture (\S+):", text)[1].split("-")
    assert len(sizes) == 7
    assert "epsilon 0.5:" in text


def config_of(run, *arguments):
    shutil.rmtree("run", ignore_errors=True)
    code, _, err = run("--epochs", 1, "--checkpoint", "run", "--out", "r.jsonl", *arguments)
    assert code == 0, err
    manifest = json.loads(Path("run/manifest.json").read_text())
    return manifest["network"], manifest["training"]["config"]


def test_the_optimizer_is_in_the_plan_and_in_the_training(run):
    plans = []
    for name in ("sgd", "adamw"):
        text = run("--plan", "--neurons", "20M", "--micro-batch", 2, "--optimizer", name)[1]
        plans.append(float(re.search(r"both orders\) +(\S+) GiB", text)[1]))
    assert "moments of 10 bytes" in text and plans[1] / plans[0] == pytest.approx(30 / 24, rel=0.05)
    training = config_of(run, "--optimizer", "adamw", "--clip-norm", 2)[1]
    found = (training[name] for name in ("optimizer", "learning_rate", "weight_decay", "clip_norm"))
    # nine hundredths of the rate, for nine steps
    assert [*found] == ["adamw", pytest.approx(0.009), 0.01, 2]
    assert load_checkpoint("run").network.layers[0].updates.any()


def test_a_run_goes_on_with_the_optimizer_that_it_began_with(run, monkeypatch):
    config_of(run, "--optimizer", "sgd", "--growth", "random", "--epochs", 1)
    notes = read_notes("run")
    for name in ("optimizer", "growth"):  # as a version had it whose defaults these were
        notes[NOTES][name] = None
    for module in (resuming, bigmodel):
        monkeypatch.setattr(module, "read_notes", lambda folder: notes)
    code, text, err = run("--resume", "run", "--epochs", 2, "--out", "again.jsonl")
    assert code == 0, err
    assert "weights, velocities, both orders" in text
    record = record_of("again.jsonl")
    assert (record["optimizer"], record["growth"]) == ("sgd", "random")


def test_a_run_by_ranks_goes_on_with_the_phases_that_it_began_with(monkeypatch):
    for config, phase_one in (({}, 4), ({"evaluate_first": True}, 6)):  # the first of an older one
        monkeypatch.setattr(bigmodel, "read_training_settings", lambda folder, c=config: c)
        options = bigmodel.make_parser().parse_args([*TINY, "--epochs=6", "--resume=run"])
        bigmodel.fill_in(options, 3)
        assert bigmodel.parallel_options(options).phase_one_epochs == phase_one


def test_an_extreme_run_is_not_evaluated_before_it(run, monkeypatch):
    monkeypatch.setattr(presets, "EXTREME", 400)
    code, text, err = run("--epochs", 1, "--out", "r.jsonl", "--checkpoint", "run")
    assert code == 0, err
    record = record_of("r.jsonl")
    assert record["loss"][0] is record["accuracy"][0] is None
    assert None not in record["loss"][1:] + record["accuracy"][1:]
    assert len(record["curve"]) == 5
    assert text.count("epoch 1/1: loss") == 1 and "epoch 0" not in text
    last = f"; loss {record['loss'][1]:.4f}\n"  # no arrow from what was not measured
    assert last in text
    assert run("--resume", "run", "--out", "r.jsonl")[1].count("nothing to go on with") == 1


def test_a_curve_can_be_left_out(run, monkeypatch):
    monkeypatch.setattr(presets, "EXTREME", 400)
    assert run("--epochs", 1, "--out", "r.jsonl", "--curve-points", 0)[0] == 0
    assert record_of("r.jsonl")["curve"] == []


def test_density_and_rules_are_flags_too(run, monkeypatch):
    flags = "--density 0.05 --distribution erdos_renyi --start-factor 2 --drop-rule magnitude "
    flags += "--growth gradient --label-smoothing 0.1 --average-decay 0.9 --epochs 3"
    network, training = config_of(run, *flags.split())
    assert (network["epsilon"], network["density"]) == (None, 0.05)
    assert (training["drop"], training["growth"]) == ("magnitude", "gradient")
    trained = load_checkpoint("run").network
    assert trained.layer_connections[:-1] == hidden_connections(trained.config)
    both = run("--density", 0.1, "--epsilon", 2, "--epochs", 1)
    assert_refused(both, "--epsilon", "not allowed with", usage=True)
    assert_refused(run("--resume", "run", "--growth", "random"), "--growth random", "was gradient")
    notes = read_notes("run")
    del notes[NOTES]["growth"]  # of a version without the flag
    monkeypatch.setattr(resuming, "read_notes", lambda folder: notes)
    assert_refused(run("--resume", "run", "--growth", "topology"), "was not given")
    flags = ("--plan", "--neurons", "20M", "--growth", "gradient", "--growth-candidates")
    few, many = (run(*flags, candidates)[1] for candidates in (1, 40))
    few, many = (float(re.search(r"or evolution.* (\S+) GiB", text)[1]) for text in (few, many))
    assert many > 5 * few


def test_coverage_leaves_no_neuron_idle_at_first(run):
    for coverage in ("random", "full"):
        out = coverage + ".jsonl"
        options = ["--epsilon", 1, "--layers", 4, "--epochs", 1, "--coverage", coverage]
        code, text, _ = run("--out", out, "--checkpoint", coverage, *options)
        assert code == 0
        active = record_of(out)["active_neurons"]
        assert active == load_checkpoint(coverage).history["active_neurons"]
        assert (active[0] > 380) == (coverage == "full")
        shown = re.search(r"^active before training +(.*%\))", text, re.MULTILINE)
        assert shown[1] == f"{active[0]} ({active[0] / 400:.1%})"
    refused = run("--resume", "random", "--neurons", 400, *options)
    assert_refused(refused, "--coverage full", "was random")


def test_the_recipe_of_the_paper(run):
    network, training = config_of(run, "--recipe", "paper")
    assert network["recipe"] == "paper"
    assert training["learning_rate"] == 0.01
    assert training["dropout"] == 0.4
    assert training["schedule"] == "constant"
    assert (training["optimizer"], training["growth"]) == ("sgd", "random")
    for recipe in (network, training):
        assert recipe["seed"] == 0
    assert (training["momentum"], training["weight_decay"], training["zeta"]) == (0.9, 2e-4, 0.3)
    assert record_of("r.jsonl")["recipe"] == "paper"


def test_the_recipe_for_width_and_what_is_given(run):
    network, training = config_of(run)
    assert network["recipe"] == "width"
    assert (training["optimizer"], training["growth"]) == ("adamw", "gradient")
    assert training["learning_rate"] == pytest.approx(0.009)  # nine steps
    # a hundredth of the nine steps, and half of it for mini-batches of 32
    assert config_of(run, "--optimizer", "sgd")[1]["learning_rate"] == pytest.approx(0.045)
    given = "--learning-rate 0.25 --dropout 0.1 --momentum 0.5 --weight-decay 0.001 --zeta 0.2"
    given += " --batch-size 50 --micro-batch 25 --seed 3 --alpha 0.25 --recipe paper"
    given += " --optimizer nesterov --growth random"
    network, training = config_of(run, *given.split())
    expected = {
        "learning_rate": 0.25,
        "dropout": 0.1,
        "momentum": 0.5,
        "weight_decay": 0.001,
        "zeta": 0.2,
        "batch_size": 50,
        "micro_batch": 25,
        "seed": 3,
        "optimizer": "nesterov",
        "growth": "random",
    }
    assert {name: training[name] for name in expected} == expected
    assert (network["seed"], network["alpha"]) == (3, 0.25)


# Resuming


def test_a_run_that_is_cut_off_is_resumed_to_the_same_result(run, monkeypatch):
    arguments = ["--epochs", 4, "--dropout", 0.1, "--batch-size", 64]
    assert run(*arguments, "--out", "whole.jsonl")[0] == 0

    save = training_module.save_checkpoint

    def save_and_stop(trainer, folder):
        save(trainer, folder)
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "save_checkpoint", save_and_stop)
        code, _, err = run(*arguments, "--out", "cut.jsonl", "--checkpoint", "run")
    assert code == 130
    assert "Traceback" not in err
    assert load_checkpoint("run").epoch == 2
    code, text, err = run(*arguments, "--out", "resumed.jsonl", "--resume", "run")
    assert code == 0, err
    whole, resumed = record_of("whole.jsonl"), record_of("resumed.jsonl")
    assert resumed["loss"] == whole["loss"]
    assert resumed["accuracy"] == whole["accuracy"]
    assert [len(resumed[name]) for name in ("epoch_s", "evolution_s")] == [4, 4]
    assert f"-> {whole['loss'][-1]:.4f}" in text
    assert left() == ["resumed.jsonl", "run", "whole.jsonl"]


def test_a_resumed_run_can_be_longer(run):
    """With the paper's recipe the learning rate does not depend on the number of epochs."""
    common = ["--recipe", "paper"]
    assert run(*common, "--epochs", 3, "--out", "long.jsonl")[0] == 0
    assert run(*common, "--epochs", 1, "--checkpoint", "run", "--out", "short.jsonl")[0] == 0
    resume = ["--epochs", 3, "--resume", "run", "--checkpoint", "run"]
    assert run(*common, *resume, "--out", "longer.jsonl")[0] == 0
    assert record_of("longer.jsonl")["loss"] == record_of("long.jsonl")["loss"]
    assert load_checkpoint("run").epoch == 3


def test_a_run_that_is_complete_is_not_recorded_again(run):
    common = ["--resume", "run", "--out", "r.jsonl"]
    assert run("--epochs", 2, "--checkpoint", "run", "--out", "r.jsonl")[0] == 0
    code, text, err = run(*common)
    assert (code, err) == (0, "") and text.count("\n") == 1
    assert "trained its 2 epochs, and the record is in r.jsonl" in text and "More --epochs" in text
    record = record_of("r.jsonl")  # the only one
    Path("r.jsonl").unlink()  # as where it was ended right before its record
    assert run(*common)[0] == 0
    again = record_of("r.jsonl")
    assert (again["loss"], again["epoch_s"]) == (record["loss"], record["epoch_s"])
    assert run(*common, "--epochs", 3)[0] == 0
    assert len(Path("r.jsonl").read_text().splitlines()) == 2


def test_a_resumed_run_keeps_its_backend(run, monkeypatch, caplog):
    assert run("--epochs", 1, "--checkpoint", "run", "--out", "a")[0] == 0  # with scipy
    monkeypatch.setenv(environment.BACKEND, "fused")
    assert bigmodel.main(["--resume=run", "--epochs=2", "--out=b"]) == 0
    assert record_of("b")["backend"] == "scipy" and not caplog.records
    assert bigmodel.main(["--resume=run", "--epochs=3", "--backend=fused", "--out=c"]) == 0
    assert record_of("c")["backend"] == "fused"
    assert "'scipy' and goes on with 'fused'" in caplog.text


def test_what_cannot_be_resumed_is_refused(run):
    assert run("--epochs", 1, "--checkpoint", "run", "--out", "r.jsonl")[0] == 0
    assert_refused(run("--resume", "nowhere"), "nowhere", "no manifest.json")
    assert_refused(run("--resume", "run", "--neurons", 600), "--neurons 600", "in run", "was 400")
    data = bytearray(Path("run/layer-02.safetensors").read_bytes())
    data[-1] ^= 1
    Path("run/layer-02.safetensors").write_bytes(data)
    longer = run("--resume", "run", "--epochs", 2)
    assert_refused(longer, "layer-02.safetensors", "damaged")
    assert left() == ["r.jsonl", "run"]


# Refusals


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--neurons", "5Q"),
        ("--neurons", "-3"),
        ("--neurons", "0"),
        ("--neurons", "2.5"),
        ("--samples", "-3"),
        ("--epochs", "0"),
        ("--micro-batch", "x"),
        ("--layers", "1e400"),
    ],
)
def test_bad_sizes_are_refused(run, flag, value):
    result = run(f"{flag}={value}")
    assert_refused(result, flag, "positive whole number", repr(value), usage=True)
    assert_refused(run(flag, value), flag, usage=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epsilon", "0"], ["'epsilon'", "Got 0.0"]),
        (["--epsilon", "-1"], ["'epsilon'", "Got -1.0"]),
        (["--epsilon", "nan"], ["'epsilon'", "Got nan"]),
        (["--learning-rate", "-1"], ["'learning_rate'"]),
        (["--dropout", "1"], ["'dropout'"]),
        (["--zeta", "1"], ["'zeta'"]),
        (["--momentum", "1.5"], ["'momentum'"]),
        (["--seed", "-1"], ["'seed'"]),
        (["--threads", "9999"], ["'threads'", "9999"]),
        (["--layers", "500"], ["'layer_sizes'", "Got 0"]),  # more layers than neurons
        (["--test-fraction", "1"], ["'test_fraction'"]),
        (["--test-fraction", "0"], ["'test_fraction'"]),
        (["--features", "10"], ["'n_features'", "64"]),
        (["--batch-size", "281"], ["'batch_size'", "280", "281"]),
        (["--neurons", "100G"], ["10000000000"]),
        (["--algorithm", "pipeline", "--groups", "2"], ["'groups'", "Got 2", "mpiexec"]),
        (["--neurons", "9G", "--layers", "10"], ["would fit", "GiB"]),
        (["--neurons", "20G", "--layers", "10"], ["would fit", "GiB"]),  # int64 counts them
        (["--learning-rate", "1e30", "--optimizer", "sgd"], ["step", "learning_rate"]),
        (["--learning-rate", "1e30"], ["learning rate, 1e+30"]),
        (["--start-factor", "2", "--epochs", "1"], ["'start_factor'", "the number of epochs"]),
    ],
)
def test_bad_settings_are_refused(run, arguments, words):
    assert_refused(run("--out", "r.jsonl", *arguments), *words)
    assert left() == []


@pytest.mark.parametrize(
    ("noted", "arguments", "ranks", "refused"),
    [
        ({"algorithm": "pipeline", "groups": 2}, [], 1, None),
        ({"algorithm": "pipeline", "split": "memory"}, ["--algorithm=wasap"], 2, None),
        ({"slots": 2, "keep_every": 3}, ["--algorithm=pipeline"], 2, None),
        ({"slots": 2}, ["--algorithm=pipeline", "--slots=1"], 2, "slots"),
        ({"groups": 1}, ["--groups=2"], 2, "groups"),
    ],
)
def test_what_a_run_of_another_algorithm_was_given_does_not_bar_it(
    noted, arguments, ranks, refused
):
    parser = bigmodel.make_parser()
    parser.set_defaults(**noted)  # as `parse_resumable` does
    options = parser.parse_args(arguments)
    bigmodel_pipeline.forget_noted_(options, noted, ranks)
    if refused:
        with pytest.raises(ParameterError, match=refused):
            bigmodel_pipeline.check_flags(options, ranks)
    else:
        bigmodel_pipeline.check_flags(options, ranks)


def test_a_pipeline_does_not_go_on_with_another_network(tmp_path):
    save_model(SparseMLP(NetworkConfig((64, 30, 2), epsilon=3.0)), tmp_path)
    flags = ["--neurons=1k", "--features=64", "--algorithm=pipeline"]
    options = bigmodel.parse(bigmodel.make_parser(), flags, 2)
    options.resume = str(tmp_path)
    known = {"activation_dtype": "float32", "backend": "scipy", "once": 0}
    machines = (Machine((0, 1), 2**40),)
    with pytest.raises(ParameterError, match="another network"):
        bigmodel_pipeline.plan_pipeline(
            options,
            bigmodel.network_config(options),
            bigmodel.training_config(options),
            machines,
            **known,
        )


@pytest.mark.parametrize(
    ("algorithm", "flags", "name"),
    [
        ("pipeline", ["--redistribute"], "redistribute"),
        ("pipeline", ["--density=0.1", "--start-factor=2"], "start_factor"),
        ("wasap", ["--redistribute"], "redistribute"),
        ("wasap", ["--average-decay=0.9"], "average_decay"),
    ],
)
def test_what_an_algorithm_cannot_do_is_refused_by_the_plan(algorithm, flags, name):
    flags = [*TINY, "--algorithm", algorithm, *flags]
    options = bigmodel.parse(bigmodel.make_parser(), flags, 2)
    nodes, memory = Nodes([0, 0], [2], ["one"]), 2**33
    machines = (Machine((0, 1), memory),) if algorithm == "pipeline" else memory
    with pytest.raises(ParameterError, match=f"'{name}'.* training"):
        bigmodel.plan_run(options, nodes, machines)


@pytest.mark.parametrize("arguments", [["--backend", "cuda"], ["--recipe", "cake"], ["--nonsense"]])
def test_unknown_choices_are_refused(run, arguments):
    assert_refused(run(*arguments), arguments[-1], usage=True)


def test_a_missing_size_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        bigmodel.main([])
    assert caught.value.code == 2
    assert "--neurons" in capsys.readouterr().err


def test_outputs_that_cannot_be_written_are_refused_first(run, monkeypatch):
    Path("file").write_text("x")
    Path("folder").mkdir()
    monkeypatch.setattr(bigmodel, "make_large_classification", lambda *a, **k: pytest.fail("ran"))
    for out in ("file/runs.jsonl", "none/runs.jsonl", "folder"):
        assert_refused(run("--out", out), out)
    assert left() == ["file", "folder"]


@pytest.mark.parametrize("arguments", [["--checkpoint", "file/run"], ["--processes", "5000"]])
def test_other_mistakes_are_told_before_the_work(run, monkeypatch, arguments):
    Path("file").write_text("x")
    monkeypatch.setattr(bigmodel, "make_large_classification", lambda *a, **k: pytest.fail("ran"))
    assert_refused(run("--out", "r.jsonl", *arguments), arguments[-1])


def test_another_run_s_checkpoint_is_not_replaced(run, monkeypatch):
    assert run("--epochs", 2, "--checkpoint", "run", "--out", "r.jsonl")[0] == 0
    before = Path("run/manifest.json").read_bytes()
    monkeypatch.setattr(bigmodel, "make_large_classification", lambda *a, **k: pytest.fail("ran"))
    result = run("--seed", 5, "--checkpoint", "run", "--out", "r.jsonl")
    assert_refused(result, "after epoch 2", "--resume", "name another folder")
    assert Path("run/manifest.json").read_bytes() == before


def test_checkpoints_that_cannot_be_written_are_refused_before_training(run):
    Path("file").write_text("x")
    Path("folder").mkdir()
    Path("folder/thesis.tex").write_text("precious")
    for place in ("file/run", "folder", "/proc/run" if sys.platform == "linux" else "file/a/run"):
        result = run("--out", "r.jsonl", "--checkpoint", place)
        assert_refused(result, place)
        assert "epoch 1" not in result[1]
    assert left() == ["file", "folder"]
    assert Path("folder/thesis.tex").read_text() == "precious"


def test_a_plan_that_does_not_fit_allocates_nothing(run, monkeypatch):
    monkeypatch.setattr(bigmodel, "SparseMLP", lambda *a, **k: pytest.fail("allocated"))
    neurons = available_memory() // 10
    result = run("--neurons", neurons)
    assert_refused(result, f"{neurons} neurons", "would fit")
    assert_refused(run("--neurons", neurons, "--plan"), "would fit")


def test_a_damaged_cache_is_made_again(run, cache):
    assert run("--samples", 300, "--out", "first.jsonl")[0] == 0
    (folder,) = cache.glob("classification-300x100-*")
    data = bytearray((folder / "X_train.npy").read_bytes())
    data[len(data) // 2] ^= 0x40
    (folder / "X_train.npy").write_bytes(data)
    code, _, err = run("--samples", 300, "--out", "second.jsonl")
    assert code == 0, err
    assert record_of("second.jsonl")["loss"] == record_of("first.jsonl")["loss"]


def test_a_cache_that_cannot_be_written_is_refused(run, monkeypatch):
    Path("file").write_text("x")
    monkeypatch.setenv("LARGESPARSE_CACHE", str(Path("file/cache").absolute()))
    assert_refused(run("--out", "r.jsonl"), "LARGESPARSE_CACHE")
    assert left() == ["file"]


def test_refusals_as_a_user_sees_them(tmp_path):
    (tmp_path / "file").write_text("x")
    done = run_subprocess("--out", "file/runs.jsonl")
    assert_refused((done.returncode, done.stdout, done.stderr), "file/runs.jsonl")
    assert "memory plan" in done.stdout or done.stdout == ""
    assert left() == ["file"]


# Under mpiexec


@pytest.mark.parametrize("launcher", ["OMPI_COMM_WORLD", "MV2_COMM_WORLD"])
def test_other_launchers(monkeypatch, launcher):
    monkeypatch.setenv(f"{launcher}_SIZE", "3")
    monkeypatch.setenv(f"{launcher}_RANK", "2")
    assert environment.launched_ranks() == (2, 3)


def test_ranks_of_another_mpi_library_are_told_by_the_first_of_them():
    """Each of them is alone, or has no mpi4py: the launcher's variables tell."""
    first = run_subprocess(MV2_COMM_WORLD_SIZE="3", MV2_COMM_WORLD_RANK="0")
    assert_refused((first.returncode, "", first.stderr), "3 ranks", "mpi4py")
    assert first.stdout == ""
    other = run_subprocess(MV2_COMM_WORLD_SIZE="3", MV2_COMM_WORLD_RANK="2")
    assert (other.returncode, other.stdout, other.stderr) == (2, "", "")
    assert left() == []


def test_one_rank_under_mpiexec_is_an_ordinary_run(run, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "1")
    monkeypatch.setenv("PMI_RANK", "0")
    assert run("--plan")[0] == 0


def test_the_tool_needs_no_mkl(run, monkeypatch):
    monkeypatch.setenv("LARGESPARSE_BACKEND", "scipy")
    assert get_backend().name == "scipy"
    assert run("--epochs", 1, "--out", "r.jsonl")[0] == 0
    assert record_of("r.jsonl")["backend"] == "scipy"
