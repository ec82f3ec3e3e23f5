"""Standard output that cannot hold every character, is full, or is closed."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from largesparse import NetworkConfig, SparseMLP
from largesparse.commands import main as cli
from largesparse.errors import ParameterError
from largesparse.machine import output
from largesparse.machine.output import HANDLER, check_printable, print_anything
from largesparse.training.checkpoint import save_model

ASCII = os.environ | {
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "LARGESPARSE_BACKEND": "scipy",
}


def printed(*texts, encoding="ascii"):
    """Return what reaches a standard output of an encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    before, sys.stdout = sys.stdout, stream
    try:
        print_anything()
        print(*texts)
        stream.flush()
    finally:
        sys.stdout = before
    return stream.buffer.getvalue().decode(encoding)


def test_what_the_encoding_lacks_is_written_otherwise():
    assert printed("R² of ε × 2 … ▁█") == "R^2 of epsilon x 2 ... .#\n"
    assert printed("R² α", encoding="cp1252") == "R² alpha\n"
    assert printed("æ, 漢, a\udc80") == "\\xe6, \\u6f22, a\\udc80\n"
    assert printed("R² æ a\udc80", encoding="utf-8") == "R² æ a\\udc80\n"


@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "inspect", "info", "tune"])
def test_the_help_of_every_command_can_be_printed(command, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    stream.flush()
    assert b"usage: largesparse" in stream.buffer.getvalue()


@pytest.fixture
def model(tmp_path):
    network = SparseMLP(NetworkConfig((2, 4, 3), epsilon=4), progress=False)
    network.classes = np.array(["α", "β", "γ"])
    network.feature_names = ["ähnlich", "b\udc80"]
    save_model(network, tmp_path / "model")
    (tmp_path / "data.csv").write_text("0.5,1\n2,1\n")
    return tmp_path


def run(*arguments, folder, **options):
    command = [sys.executable, "-m", "largesparse", *arguments]
    return subprocess.run(command, cwd=folder, env=ASCII, text=True, timeout=300, **options)


def test_commands_print_in_ascii(model, monkeypatch, capsys):
    monkeypatch.chdir(model)
    monkeypatch.setenv("LARGESPARSE_BACKEND", "scipy")

    def shown(*arguments, code=0):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert cli.main(arguments) == code
        return stream.buffer.getvalue().decode("ascii")

    seen = shown("inspect", "model")
    assert "'\\u03b1'" in seen or "'alpha'" in seen
    assert "\\xe4hnlich" in seen and "b\\udc80" in seen
    # Labels are data, and are not changed on the way.
    shown("predict", "model", "--data", "data.csv", code=2)
    refused = capsys.readouterr().err
    assert "is ascii, which cannot hold the text '\\u03b1'. Pass --out" in refused
    out = ["--data", "data.csv", "--header", "no", "--out", "out.csv", "--threads", "1"]
    shown("predict", "model", *out)
    assert set((model / "out.csv").read_text("utf-8").splitlines()[1:]) <= {"α", "β", "γ"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_and_a_closed_output_are_one_sentence(model):
    with open("/dev/full", "w") as full:
        seen = run("inspect", "model", folder=model, stdout=full, stderr=subprocess.PIPE)
    assert seen.returncode == 2
    assert seen.stderr == "largesparse: error: [Errno 28] No space left on device\n"
    shell = f"exec {sys.executable} -m largesparse inspect model >&-"
    seen = subprocess.run(["sh", "-c", shell], cwd=model, env=ASCII, capture_output=True)
    assert (seen.returncode, seen.stderr) == (0, b"")


def test_an_error_of_the_operating_system_is_one_sentence(capsys):
    assert cli.main(["inspect", "x" * 300]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_long_work_prints_a_line_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    lines = output.LogLines("training", 1200, " samples", initial=200)
    with lines:
        for _ in range(10):
            clock[0] += 30
            lines.set_postfix(loss="0.5", test=None, share=2 / 3)
            lines.update(100)
    told = capsys.readouterr().err.splitlines()
    end = "loss 0.5, share 0.6667"
    assert told[0] == f"training: 400 of 1,200 samples, 1 minutes, about 4 left, {end}"
    assert len(told) == 5


def test_the_time_left_is_not_told_from_what_comes_before_the_first_step(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    lines = output.LogLines("training", 1200, " samples")
    for seconds in (600, 60):  # the first one after a long evaluation
        clock[0] += seconds
        lines.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "training: 10 of 1,200 samples, 10 minutes",
        "training: 20 of 1,200 samples, 11 minutes, about 118 left",
    ]


def test_what_cannot_be_printed_is_told():
    check_printable(["plain", "ä"], "latin-1", "It", "")
    with pytest.raises(ParameterError, match=r"It is ascii, which cannot hold the text '\\xe4'"):
        check_printable(["plain", "ä"], "ascii", "It", "")


def test_only_encoding_is_handled():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", HANDLER)
