"""README.md and the documentation: examples and commands run, the links lead somewhere."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from helpers import ROOT
from mpi_runs import run_mpi

import largesparse
from largesparse.commands.main import main

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

QUICKEST = {"LARGESPARSE_BACKEND": "fused"}  # here, where two threads may have one core

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def example():
    """Return the README's library example: its only block of Python."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return code


def test_the_example_is_short():
    assert len(example().splitlines()) <= 15


def test_the_example_runs_as_printed(tmp_path):
    environment = os.environ | QUICKEST
    child = subprocess.run(
        [sys.executable, "-c", example()],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    assert "Traceback" not in child.stderr
    assert float(re.search(r"test accuracy (0\.\d+)", child.stdout)[1]) > 0.95
    assert largesparse.load_model(tmp_path / "digits-model").neurons == 2000


@pytest.mark.parametrize(("example", "neurons"), [(0, 2000), (1, 3000)])
def test_the_parallel_examples_are_short_and_run(tmp_path, example, neurons):
    page = (ROOT / "docs" / "parallel.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[example]
    assert len(code.splitlines()) < 15
    (tmp_path / "train.py").write_text(code.replace("epochs=20", "epochs=2"))
    program = (str(tmp_path / "train.py"),)
    result = run_mpi("", 2, program=program, timeout=120, directory=tmp_path, environment=QUICKEST)
    assert result.status == 0, result.err
    assert re.fullmatch(r"test accuracy 0\.\d+\n", result.out)
    assert largesparse.load_model(tmp_path / "digits-model").neurons == neurons


def anchors(page):
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert ROOT in linked.parents, f"{page.name} links to {target}, outside of the project"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}"


# A block of code of a page: the comment before it, its language, its lines.
BLOCK = re.compile(r"^(<!-- run -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"git", "pip", "asv", "pytest", "ruff", "mypy", "sphinx-build", ".ci/run", ".", "head"}


def commands_of(language, code):
    """Yield the words of the commands of a block: all of bash, what follows `$ ` of other text."""
    lines = code.replace("\\\n", " ").splitlines()
    for line in lines if language == "bash" else [line[2:] for line in lines if line[:2] == "$ "]:
        yield from map(shlex.split, re.sub(r"(^|\s)#.*", "", line).split("&&"))


def own_command(words):
    """Return the words from our program on, without launchers; None where it is not ours."""
    words = [word.removeprefix(".venv/bin/") for word in words]
    if words[:2] == ["mpiexec", "-n"]:
        words = words[3:]
    words = words[1:] if words[:1] in (["python"], ["python3"]) else words
    return None if not words or words[0] in ELSEWHERE or words[:2] == ["-m", "venv"] else words


def documented_commands():
    """Return the commands of all pages that are ours, each once."""
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text())]
    indented = re.findall(r"^    (.*tools/.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    blocks += [("", "bash", line) for line in indented]
    found = (own_command(words) for _, kind, code in blocks for words in commands_of(kind, code))
    return sorted({" ".join(map(shlex.quote, words)) for words in found if words})


class Parsed(BaseException):
    """The arguments of a command were understood; what is left goes to another program."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function that starts a program, and stops it once it has read its arguments."""
    original, depth = argparse.ArgumentParser.parse_known_args, 0

    def parse_known_args(parser, *given):
        nonlocal depth
        depth += 1
        try:
            found = original(parser, *given)
        finally:
            depth -= 1
        if depth:  # a sub-command's
            return found
        raise Parsed(found[1])

    def start(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        if program.endswith(".py"):
            runpy.run_path(str(ROOT / program), run_name="__main__")
        else:
            monkeypatch.delitem(sys.modules, program, raising=False)  # another test's
            runpy.run_module(program, run_name="__main__", alter_sys=True)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.syspath_prepend(str(ROOT))
    return start


@pytest.mark.parametrize("command", documented_commands())
def test_a_command_of_the_pages_has_arguments_that_are_understood(command, parse, capsys):
    words = shlex.split(command)
    words = words[: words.index(">")] if ">" in words else words
    words = words[1:] if words[0] == "-m" else words
    if words[0] in ("train.py", "predict.py"):
        return  # the reader's own
    try:
        parse(*words)
    except Parsed as left:
        if left.args[0]:  # these are bigmodel's
            with pytest.raises(Parsed, match=r"^\[\]$"):
                parse("tools/bigmodel.py", *left.args[0])
    except SystemExit as stopped:  # --help
        assert not stopped.code, capsys.readouterr().err
    else:
        pytest.fail("it did not read its arguments")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_marks_as_quick_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(*next(iter(QUICKEST.items())))
    monkeypatch.chdir(tmp_path)
    for marked, language, code in BLOCK.findall(page.read_text()):
        commands = [[]] if language == "python" else commands_of(language, code)
        for words in commands if marked else []:
            words = own_command(words) if words else ["-c", code]
            if words is None:
                continue
            assert words[0] in ("largesparse", "-c")
            if words[0] == "-c":
                exec(words[1], {})
            else:
                assert main(words[1:]) == 0, capsys.readouterr().err


def test_every_page_is_in_the_index():
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert linked >= {page.name for page in PAGES[1:] if page.name != "index.md"}
