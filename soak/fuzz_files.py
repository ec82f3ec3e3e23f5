"""Damage saved models and data files in many ways, and load them.

    python -m soak fuzz_files --inputs 200k
    python -m soak fuzz_files --inputs 5k --only model csv --seed 7 --keep found

Every input is a small intact file, or a folder of a checkpoint, with one to three changes: bits
flipped, bytes cut off, repeated, moved or set to extremes; of a checkpoint also entries of the
manifest and of the headers and elements of arrays, with checksums that fit again, as an attacker
would write them. A loader may load it, if what it returns is valid, or raise `CheckpointError` or
`DataError`. Anything else is a finding: another exception, a network with indices out of range or
values that are not finite, a result of a megabyte or more, or more memory than half a gigabyte
(which is where the limit of this process is set, on Linux).

A row is printed for each kind of file. Findings are told with the number of their input, which
`--first N --inputs 1` repeats, and are kept with --keep. The exit status is 1 where there are any.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from largesparse.errors import LargeSparseError
from largesparse.machine.sizes import parse_size
from soak.fuzz_kinds import KINDS, Kind

MOST_BYTES = 2**29  # beyond what the process has at the start
RESULT_BYTES = 2**20


@contextmanager
def limited_memory():
    """Let this process have no more than `MOST_BYTES` beside what it has, where that can be."""
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    import psutil

    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = psutil.Process().memory_info().vms + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def quiet():
    """Let neither warnings nor logs of what is loaded be seen."""
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def try_to_load(kind: Kind, path: Path) -> tuple[str, str]:
    """Return "loaded", the name of the package's error, or "finding", and what there is to say."""
    try:
        result = kind.load(path)
    except kind.error as error:
        found = f"{type(error).__name__}: {error}"
        if "allocate" in found or isinstance(error.__cause__, MemoryError):
            return "finding", f"too much memory: {found}"
        return type(error).__name__, str(error)
    except Exception as error:
        return "finding", f"{type(error).__name__}: {error}"
    results = result if isinstance(result, tuple) else (result,)
    bytes_of = [getattr(getattr(each, "data", each), "nbytes", 0) for each in results]
    if max(bytes_of) > RESULT_BYTES:
        return "finding", f"a result of {max(bytes_of):,} bytes"
    return "loaded", ""


def fuzz(name: str, first: int, inputs: int, seed: int, keep: Path | None) -> dict[str, Any]:
    """Load so many inputs of a kind; return how many came to what end, and print findings."""
    kind, counts = KINDS[name], Counter[str]()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        intact = kind.make(Path(scratch))
        end, why = try_to_load(kind, intact)
        if end != "loaded":
            raise LargeSparseError(f"The intact {name} is not loaded: {end} {why}")
        copy = Path(scratch) / "changed" / intact.name
        copy.parent.mkdir()
        numbers = tqdm(range(first, first + inputs), desc=name, leave=False, disable=None)
        with limited_memory():  # now that libraries have what they keep
            for number in numbers:
                if intact.is_dir():
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(intact, copy)
                else:
                    shutil.copyfile(intact, copy)
                kind.change(copy, np.random.default_rng((seed, list(KINDS).index(name), number)))
                end, why = try_to_load(kind, copy)
                counts[end] += 1
                if end == "finding":
                    tqdm.write(f"{name}, input {number}: {' '.join(why.split())[:300]}")
                    if keep is not None:
                        place = keep / f"{name}-{number}" / copy.name
                        place.parent.mkdir(parents=True, exist_ok=True)
                        (shutil.copytree if copy.is_dir() else shutil.copy2)(copy, place)
    seconds = time.perf_counter() - start
    return {"kind": name, "inputs": inputs, "findings": 0, "loaded": 0} | counts_of(counts, seconds)


def counts_of(counts: Counter[str], seconds: float) -> dict[str, Any]:
    """Return the counts as a row of the table."""
    row: dict[str, Any] = dict(counts)
    row["findings"] = row.pop("finding", 0)
    return row | {"seconds": round(seconds)}


def main(argv: Sequence[str] | None = None) -> int:
    """Search, print a table, and return the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--inputs", type=parse_size, default=20_000, help="in all (20k); half of them checkpoints")
    add("--only", nargs="+", choices=list(KINDS), default=list(KINDS), help="kinds of files")
    add("--seed", type=int, default=0)
    add("--first", type=int, default=0, help="number of the first input of each kind (0)")
    add("--keep", type=Path, help="folder for the inputs that findings are about")
    options = parser.parse_args(argv)
    names = list(dict.fromkeys(options.only))
    shares = [len(names) if name == "model" and len(names) > 1 else 1 for name in names]
    rows = []
    with quiet():
        for name, share in zip(names, shares, strict=True):
            inputs = max(1, options.inputs * share // sum(shares))
            rows.append(fuzz(name, options.first, inputs, options.seed, options.keep))
    table = pd.DataFrame(rows).fillna(0).set_index("kind")
    print(table.astype(int).to_string())
    return int(table["findings"].sum() > 0)
