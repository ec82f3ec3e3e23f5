"""README.md and the documentation: the example runs, the links lead somewhere."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from mpi_runs import run_mpi

import largesparse

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


def test_the_parallel_example_is_short_and_runs(tmp_path):
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "parallel.md").read_text(), re.M | re.S
    )
    assert len(code.splitlines()) < 15
    (tmp_path / "train.py").write_text(code.replace("epochs=20", "epochs=3"))
    program = (str(tmp_path / "train.py"),)
    result = run_mpi("", 3, program=program, timeout=120, directory=tmp_path, environment=QUICKEST)
    assert result.status == 0, result.err
    assert re.fullmatch(r"test accuracy 0\.\d+\n", result.out)
    assert largesparse.load_model(tmp_path / "digits-model").neurons == 2000


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


def test_every_page_is_in_the_index():
    linked = set(LINK.findall((ROOT / "docs" / "index.md").read_text()))
    assert linked >= {page.name for page in PAGES[1:] if page.name != "index.md"}
