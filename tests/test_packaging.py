"""The package as a user meets it: what importing it loads, and the README's commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import largesparse

ROOT = Path(__file__).parent.parent
HEAVY = {"mpi4py", "numba", "sparse_dot_mkl", "pandas", "sklearn"}


def run_python(*arguments):
    """Run another interpreter on the package that this one has imported."""
    environment = os.environ | {"PYTHONPATH": str(Path(largesparse.__file__).parent.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_importing_the_package_loads_nothing_heavy():
    program = "import json, sys, largesparse; print(json.dumps(list(sys.modules)))"
    child = run_python("-c", program)
    assert child.returncode == 0, child.stderr
    assert HEAVY.isdisjoint(json.loads(child.stdout))


def test_writing_records_loads_no_pandas():
    program = "import json, sys, largesparse.records; print(json.dumps(list(sys.modules)))"
    assert HEAVY.isdisjoint(json.loads(run_python("-c", program).stdout))


def test_the_module_can_be_run():
    child = run_python("-m", "largesparse", "info")
    assert child.returncode == 0, child.stderr
    assert "MKL code path" in child.stdout
    assert "Traceback" not in child.stderr


def ci_variable(name):
    script = (ROOT / ".ci" / "run").read_text()
    (value,) = re.findall(rf'^{name}="(.*)"$', script, re.MULTILINE)
    return value


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README.md")
def test_ci_runs_the_readme_test_command():
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert ci_variable("TEST_COMMAND") in lines
