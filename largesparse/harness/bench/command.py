"""Measure this machine with every part of the library, within a time limit.

    largesparse bench                               # ten minutes: bench.json, bench.html, ten lines
    largesparse bench --minutes 5 --out here.json
    largesparse bench --only 'step/fused/*' --minutes 1
    largesparse bench --compare before.json after.json
    largesparse bench --export bencher bench.json   # or pytest-benchmark; or .asv/results
    largesparse bench --machines docs/machines      # the page of all machines, in Markdown

Measured are the machine's limits, a training step of every backend at four shapes, the phases of
the paper's Table 4 as far as time and memory allow, prediction by processes, training by ranks
where there is mpiexec, and the other libraries that are installed. All take turns until the time is
over, so that a disturbance hits all alike; beside every repeat stands the time of a reference
kernel. Ctrl-C ends it, and keeps what was measured.

--compare prints new / old of every figure with its 95 % interval (bootstrap over the repeats), once
of the times and once divided by the median ratio of the controls: the machine's limits and the
other libraries. The latter's intervals have the noise between the two runs in them, and say
"faster", "slower" or "cannot tell". Figures with the same beginning have a row together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import ParameterError, check_range
from ...machine.environment import expand_user
from ...machine.output import print_anything
from ...machine.threads import resolve_threads
from ..records import check_output
from .results import read_bench, write_bench

LEAST_MINUTES, MOST_MINUTES = 0.01, 24 * 60.0


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="time limit (default %(default)g)")
    add("--threads", type=int, help="threads of every contestant (default: all cores)")
    add(
        "--only",
        default="*",
        metavar="PATTERN",
        help="figures to measure, as 'step/*' or '*/fused/*' (default: all)",
    )
    add("--out", default="bench.json", metavar="FILE", help="default %(default)s")
    add("--page", metavar="FILE", help="HTML page (default: as --out, with .html)")
    add("--overwrite", action="store_true", help="replace these files where they exist")
    instead = parser.add_mutually_exclusive_group().add_argument  # of measuring
    instead("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two files, measure nothing")
    instead(
        "--export",
        nargs=2,
        metavar=("FORMAT", "PATH"),
        help="print a file of bench, or a folder of asv's results, as pytest-benchmark or bencher",
    )
    instead("--machines", metavar="FOLDER", help="print a page of all files of a folder")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measure and write, or compare, or list machines."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    print_anything()
    if options.compare:
        from .compare import show_comparison

        print(show_comparison(*(read_bench(expand_user(path)) for path in options.compare)))
        return 0
    if options.export:
        from .exports import FORMATS, read_source

        form, path = options.export
        if form not in FORMATS:
            raise ParameterError(
                f"The format of --export must be among {', '.join(FORMATS)}. Got {form!r} instead."
            )
        print(json.dumps(FORMATS[form](read_source(expand_user(path))), indent=1))
        return 0
    if options.machines:
        from .machines import machines_page

        print(machines_page(expand_user(options.machines)), end="")
        return 0
    measure(options)
    return 0


def measure(options: argparse.Namespace) -> None:
    """Measure, write the file and the page, and print the summary."""
    from .page import make_page, summary
    from .schedule import run_bench

    check_range("minutes", options.minutes, "bench", low=LEAST_MINUTES, high=MOST_MINUTES)
    out = check_output(options.out)
    page = check_output(options.page or out.with_suffix(".html"))
    if page == out:
        raise ParameterError(
            f"The 'page' and 'out' parameters of bench must differ. Got {str(out)!r} twice. Name a "
            "JSON file with --out, such as bench.json."
        )
    there = [str(path) for path in (out, page) if path.exists()]
    if there and not options.overwrite:
        raise ParameterError(
            f"{' and '.join(there)} would be replaced. Name another file with --out (and --page), "
            "or give --overwrite."
        )
    threads = resolve_threads(options.threads, "bench")
    bench = run_bench(minutes=options.minutes, threads=threads, only=options.only)
    if not bench.figures:
        reasons = "; ".join(f"{name}: {why}" for name, why in bench.left_out.items())
        raise ParameterError(
            f"Nothing was measured with --only {options.only!r} in {options.minutes:g} minutes"
            f"{': ' + reasons if reasons else '. Names are like step/fused/fashion'}."
        )
    write_bench(out, bench)
    Path(page).write_text(make_page(bench), encoding="utf-8")
    print("\n".join(summary(bench)))
    print(f"{out} and {page} are written", file=sys.stderr)
