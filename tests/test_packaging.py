"""The package as a user meets it: what importing it loads, and the README's commands."""

import json
import re

import pytest
from helpers import ROOT, run_python

import largesparse
from largesparse.errors import install_command

HEAVY = {"mpi4py", "numba", "sparse_dot_mkl", "pandas", "sklearn"}


def test_importing_the_package_loads_nothing_heavy():
    program = "import json, sys, largesparse; print(json.dumps(list(sys.modules)))"
    child = run_python("-c", program)
    assert child.returncode == 0, child.stderr
    assert HEAVY.isdisjoint(json.loads(child.stdout))


def test_writing_records_loads_no_pandas():
    program = "import json, sys, largesparse.harness.records; print(json.dumps(list(sys.modules)))"
    assert HEAVY.isdisjoint(json.loads(run_python("-c", program).stdout))


def test_the_module_can_be_run():
    child = run_python("-m", "largesparse", "info")
    assert child.returncode == 0, child.stderr
    assert "MKL code path" in child.stdout
    assert "Traceback" not in child.stderr


def test_messages_name_no_index_before_the_package_is_on_one():
    wheel = f"largesparse-{largesparse.__version__}-py3-none-any.whl"
    assert install_command("mpi") == (
        f"pip install '.[mpi]' in a checkout of largesparse, or '{wheel}[mpi]'"
    )
    files = [ROOT / "README.md"]
    for folder in ("largesparse", "soak", "tools", "benchmarks", "docs"):
        files += [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]
    assert not [file for file in files if re.search(r"largesparse\[[a-z]", file.read_text("utf-8"))]


def ci_variable(name):
    script = (ROOT / ".ci" / "run").read_text()
    (value,) = re.findall(rf'^{name}="(.*)"$', script, re.MULTILINE)
    return value


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README.md")
def test_ci_runs_the_readme_test_command():
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert ci_variable("TEST_COMMAND") in lines
