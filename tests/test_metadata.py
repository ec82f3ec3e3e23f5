"""What the package says of itself: its version, addresses and tools are the same everywhere."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from importlib.resources import files

import pytest
from helpers import ROOT

import largesparse
from largesparse._version import DOCUMENTATION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
URLS = PROJECT["project"]["urls"]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_types_are_shipped():
    assert files(largesparse).joinpath("py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_the_version_and_its_date_are_the_same_everywhere():
    version = largesparse.__version__
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)
    newest = headings[headings[0] == "Unreleased"]
    released = re.search(r"^date-released: (.+)$", read("CITATION.cff"), re.MULTILINE)[1]
    assert newest == f"{version} - {date.fromisoformat(released)}"
    assert f"\nversion: {version}\n" in read("CITATION.cff")


def test_the_addresses_are_the_same_everywhere():
    code = URLS["Source"]
    assert all(url.startswith((code, DOCUMENTATION, "https://arxiv.org/")) for url in URLS.values())
    assert URLS["Documentation"] == DOCUMENTATION
    for path in ("CITATION.cff", "asv.conf.json", ".github/ISSUE_TEMPLATE/config.yml"):
        named = re.findall(r"https://github\.com/[\w-]+/[\w-]+", read(path))
        assert set(named) == {code}, path


@pytest.mark.parametrize("path", ["README.md", "CITATION.cff", "docs/index.md"])
def test_the_paper_is_named_with_its_authors_and_number(path):
    text = " ".join(read(path).split())
    for word in ("Selima", "Curci", "Decebal Constantin", "Mocanu", "Mykola", "Pechenizkiy"):
        assert word in text
    assert "arXiv:2102.01732" in text and URLS["Paper"] in text


def test_the_readme_of_an_index_page_has_no_relative_links():
    text = read("README.md")
    (hook,) = PROJECT["tool"]["hatch"]["metadata"]["hooks"].values()
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    links = LINK.findall(text)
    assert f"{URLS['Source']}/blob/main/docs/measured.md#every-phase" in links
    assert all(link.startswith("https://") for link in links)


def test_what_runs_before_a_commit_is_what_ci_runs():
    tools = [tool for tool in PROJECT["project"]["optional-dependencies"]["dev"] if "ruff" in tool]
    named = re.findall(r'"(ruff[^"]*)"', read(".pre-commit-config.yaml"))
    assert set(named) == set(tools)


def test_the_workflows_call_stages_that_there_are():
    stages = re.findall(r"^(\w+)\(\) \{$", read(".ci/run"), re.MULTILINE)
    called = re.findall(r"^ *(?:- |stages: )(prepare .*)$", read(".github/workflows/ci.yml"), re.M)
    called += re.findall(r"\.ci/run (\w.*)$", read(".github/workflows/pages.yml"), re.M)
    words = {word for line in called for word in line.split()}
    assert words <= set(stages)
    default = re.search(r"\|\| set -- (.*)$", read(".ci/run"), re.MULTILINE)[1].split()
    assert set(default) - words == {"newest"}  # it makes a system of its own
