"""The command line: sizes, exit codes, and the report of `largesparse info`."""

import argparse
import json
import shutil
import subprocess
import sys

import pytest

import largesparse
from largesparse.commands import info
from largesparse.commands import main as cli
from largesparse.errors import DataError, ParameterError
from largesparse.machine import versions
from largesparse.machine.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("250k", 250_000),
        ("250K", 250_000),
        ("1M", 1_000_000),
        ("2.5M", 2_500_000),
        ("50M", 50_000_000),
        ("1e6", 1_000_000),
        ("2.5e3", 2500),
        (" 20k ", 20_000),
        ("0.001k", 1),
        ("1G", 10**9),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


BAD_SIZES = ["5Q", "-3", "0", "0k", "2.5", "1.2345k", "", "k", "1e", "1e999", "1e30", "nan", "inf"]


@pytest.mark.parametrize("text", [*BAD_SIZES, "1_000", "٣"])
def test_bad_sizes(text):
    with pytest.raises(ParameterError, match="positive whole number") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_argparse_shows_the_sentence(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--neurons", type=parse_size)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--neurons", "5Q"])
    assert caught.value.code == 2
    assert "argument --neurons: A size must be a positive whole" in capsys.readouterr().err


def test_run_command_passes_the_exit_code_on():
    assert cli.run_command(lambda: None) == 0
    assert cli.run_command(lambda: 3) == 3


def test_run_command_tells_an_error_in_one_line(capsys):
    def fail():
        raise DataError("X has NaN\n  in row 3.")

    assert cli.run_command(fail) == 2
    assert capsys.readouterr() == ("", "largesparse: error: X has NaN in row 3.\n")


def test_run_command_leaves_bugs_visible():
    def fail():
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        cli.run_command(fail)


def test_run_command_after_an_interrupt():
    def interrupt():
        raise KeyboardInterrupt

    assert cli.run_command(interrupt) == 130


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise on Windows")
def test_a_reader_that_has_gone_is_no_error():
    program = (
        "import sys; from largesparse.machine.exit_codes import run_command;"
        "sys.stdin.read();"
        "sys.exit(run_command(lambda: print('x' * 10**6)))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()
    child.stdin.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 141
    assert errors == b""


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"largesparse {largesparse.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["info", "--nonsense"]])
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: largesparse" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.DRIVERS)
def test_a_driver_is_listed_and_tells_its_own_flags(name, capsys):
    for argv, shown in (
        (["--help"], f"  {name} "),
        ([name, "--help"], f"usage: largesparse {name}"),
    ):
        with pytest.raises(SystemExit, match="0"):
            cli.main(argv)
        out = capsys.readouterr().out
        assert shown in out
    assert "--out" in out


def test_info_lists_everything(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cli.main(["info"]) == 0
    listing = capsys.readouterr().out
    for name in (*info.PACKAGES, *info.ENVIRONMENT, "MKL code path", "MPI library", "memory"):
        assert f"\n{name}  " in listing
    assert "failed" not in listing
    (line,) = (line for line in listing.splitlines() if line.startswith("OMP_NUM_THREADS"))
    assert line.split() == ["OMP_NUM_THREADS", "2"]


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"]["usable_cores"] >= 1
    assert found["memory"]["total_bytes"] >= found["memory"]["available_bytes"] > 0


def test_what_is_missing_is_listed_as_not_installed(monkeypatch):
    for module in (info, versions):
        monkeypatch.setattr(module, "version", lambda package: None)
    found = info.collect()
    assert found["mpi_library"] is None
    assert {found["versions"][name] for name in info.PACKAGES} == {None}
    assert "mpi4py" in info.format_listing(found)
    assert "not installed" in info.format_listing(found)


def test_what_is_broken_is_told_in_one_line(monkeypatch):
    def broken():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(info, "_numba_threads", broken)
    monkeypatch.setattr(info, "group_memory_limit", broken)
    found = info.collect()
    assert found["numba_threads"] == "failed: RuntimeError: lines"
    assert "cgroup limit failed: RuntimeError: lines" in info.format_listing(found)


def test_a_backend_that_does_not_exist_is_told(monkeypatch):
    monkeypatch.setenv("LARGESPARSE_BACKEND", "abacus")
    assert "abacus" in info.collect()["backend"]


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("import time; time.sleep(60)", "failed: no answer within 0.5 s"),
        ("raise ImportError('no libmpi')", "failed: ImportError: no libmpi"),
        ("import sys; sys.exit(3)", "failed: exit code 3"),
        ("print('An  MPI')", "An MPI"),
    ],
)
def test_a_broken_mpi_is_told_and_does_not_hang(monkeypatch, program, answer):
    monkeypatch.setattr(info, "version", lambda package: "1")
    monkeypatch.setattr(info, "ASK_MPI", program)
    assert info.mpi_library(0.5 if "sleep" in program else 20) == answer


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    run = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return run.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package and a script in it, and an equal copy installed in .venv."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for folder in ("largesparse", ".venv/lib/largesparse"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "info.py").write_text("a = 1\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/script.py").touch()
    (tmp_path / ".gitignore").write_text(".venv\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "start")
    versions.commit.cache_clear()
    yield tmp_path
    versions.commit.cache_clear()


def set_running(monkeypatch, package, script):
    monkeypatch.setattr(versions, "PACKAGE", package)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)


def test_the_commit_of_a_checkout(checkout, monkeypatch):
    set_running(monkeypatch, checkout / "largesparse", "/elsewhere/script.py")
    assert versions.commit() == git(checkout, "rev-parse", "HEAD")


def test_the_commit_of_a_changed_checkout(checkout, monkeypatch):
    set_running(monkeypatch, checkout / "largesparse", "/elsewhere/script.py")
    (checkout / "largesparse/info.py").write_text("a = 2\n")
    assert versions.commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_the_commit_of_an_installed_copy_and_a_script(checkout, monkeypatch):
    installed = checkout / ".venv/lib/largesparse"
    set_running(monkeypatch, installed, checkout / "tools/script.py")
    assert versions.commit() == git(checkout, "rev-parse", "HEAD")
    versions.commit.cache_clear()
    (installed / "info.py").write_text("a = 0\n")
    assert versions.commit() is None


def test_no_commit_outside_of_a_checkout(tmp_path, monkeypatch):
    versions.commit.cache_clear()
    set_running(monkeypatch, tmp_path, tmp_path / "script.py")
    assert versions.commit() is None
    versions.commit.cache_clear()
