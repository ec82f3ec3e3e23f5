"""How long a fresh process takes to its first fit."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import pandas as pd

from largesparse.backends import BACKENDS
from largesparse.commands import info
from largesparse.machine.sizes import parse_size

from . import add_figure

PROGRAM = """
import json, sys, time
marks = [time.perf_counter()]
mark = lambda: marks.append(time.perf_counter())
import largesparse; mark()
from sklearn.datasets import load_digits
X, y = load_digits(return_X_y=True); mark()
from largesparse import SparseMLPClassifier; mark()
for _ in range(2):
    SparseMLPClassifier(backend=sys.argv[1], random_state=0).fit(X, y); mark()
print(json.dumps(marks))
"""
PARTS = ("import largesparse", "scikit-learn, digits", "the estimator", "first fit", "second fit")


def start(options: argparse.Namespace) -> None:
    """Seconds of a fresh process from its start to the end of SparseMLPClassifier().fit on digits.

    Kernels and bytecode are compiled before. "All" is the process from start to end without the
    second fit, which shows what the first one took to start.
    """
    rows = [fresh_process(options.backend) for _ in range(options.repeats + 1)][1:]
    print(f"{info.cpu_model()}, backend {options.backend}, {options.repeats} processes")
    seconds = {name: [row[name] for row in rows] for name in (*PARTS, "all")}
    table = {
        name: [statistics.median(found), min(found), max(found)] for name, found in seconds.items()
    }
    print(pd.DataFrame(table, index=["median", "min", "max"]).T.round(3).to_string())


def fresh_process(backend: str) -> dict[str, float]:
    """Return the seconds of each part, and of all but the second fit."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", PROGRAM, backend]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    elapsed = time.perf_counter() - started
    marks = json.loads(done.stdout)
    found = {name: marks[k + 1] - marks[k] for k, name in enumerate(PARTS)}
    return found | {"all": elapsed - found["second fit"]}


def add_figures(figures: Any) -> None:
    """Add start."""
    add = add_figure(figures, "start", start).add_argument
    add("--backend", choices=("auto", *BACKENDS), default="auto", help="default %(default)s")
    add("--repeats", type=parse_size, default=7, metavar="N", help="processes (default 7)")
