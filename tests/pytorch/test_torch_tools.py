"""measure.py and compare_peers.py with our layers in PyTorch, on small models."""

from __future__ import annotations

import pytest
from helpers import TOOLS, run_python

torch = pytest.importorskip("torch")

SMALL_GPT = "--layers 1 --width 16 --heads 2 --context 8 --batch 2 --steps 3 --characters 2000"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"measure.py gpt --contestants ours,dense,free {SMALL_GPT}", ("ours", "free")),
        ("measure.py alternating --neurons 20 --repeats 3", ("alternating / (dense + sparse)",)),
        ("measure.py steady --steps 20", ("step 20", "0 workspaces left")),
        (
            "compare_peers.py --layers 30,40,3 --batch-size 8 --peers none --backends torch "
            "--repeats 1",
            ("ours, torch",),
        ),
    ],
)
def test_a_figure_is_measured(words, said):
    tool, *rest = words.split()
    done = run_python(TOOLS / tool, *rest)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert all(each in done.stdout for each in said)
