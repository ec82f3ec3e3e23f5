"""One row for each machine whose file of `largesparse bench` was sent: docs/machines.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DataError
from ...machine.sizes import show_seconds
from ...training.memory import GIB
from ..noise import describe_noise
from .page import rate_of
from .results import Bench, read_bench

COLUMNS = {  # heading -> figure
    "memory": "limits/bandwidth",
    "gather": "limits/gather, float32",
    "gather, bfloat16": "limits/gather, bfloat16",
    "BLAS": "limits/arithmetic, float32",
    "step, fashion": "step/fused/fashion",
    "step, cifar": "step/fused/cifar",
    "step, madelon": "step/fused/madelon",
    "step, leukemia": "step/fused/leukemia-small",
    "1M: epoch": "ladder/1M/epoch",
    "1M: evolution": "ladder/1M/evolution",
}
TEXT = """# Machines

What [`largesparse bench`](bench.md) measured: medians, a row for each file of the folder `machines`
beside this page. Steps are of the backend `fused`. The page is made by the command below.

{table}

## Send another

```bash
pip install 'git+https://github.com/largesparse/largesparse'
largesparse bench --out my-machine.json
# put the file into docs/machines/, then
largesparse bench --machines docs/machines > docs/machines.md
# and open a pull request
```
"""


def machines_page(folder: str | Path) -> str:
    """Return the page of all files *.json of a folder, in Markdown.

    Raises
    ------
    DataError
        Where there is no such file, or one cannot be read.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise DataError(f"The folder {str(folder)!r} has no file *.json of `largesparse bench`.")
    head = ["machine", "cores", "threads", "GiB", *COLUMNS, "noise", "measured", "version"]
    lines = [head, ["---"] * len(head), *(_row(path, read_bench(path)) for path in files)]
    return TEXT.format(table="\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def _row(path: Path, bench: Bench) -> list[str]:
    memory = "" if bench.memory_bytes is None else f"{bench.memory_bytes / GIB:.0f}"
    cells = [f"{bench.cpu} ([{path.stem}]({path.parent.name}/{path.name}))"]
    cells += [str(bench.cores), str(bench.threads), memory]
    for name in COLUMNS.values():
        one = bench.figure(name)
        cells.append("" if one is None else rate_of(one) or show_seconds(np.median(one.times_s)))
    name, _, changed = (bench.commit or "").partition("-")
    commit = ", ".join(["", *filter(None, (name[:8], changed))])
    return [
        *cells,
        describe_noise(bench.noise),
        (bench.timestamp or "")[:10],
        f"{bench.version}{commit}",
    ]
