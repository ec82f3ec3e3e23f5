"""The soak tools: python -m soak NAME, and python -m soak NAME --help for one of them."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TOOLS = ("kill_ranks", "kill_resume", "long_run", "threads", "fuzz_files", "check_plan")
TOOLS += ("check_continuous", "check_bench", "fresh_kernels", "two_hosts")


def listing() -> str:
    """Return a line for each tool: its name, and how its documentation begins."""
    lines = []
    for name in TOOLS:
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(source)) or ""
        lines.append(f"  {name:<18}{about.partition(chr(10))[0]}")
    return "\n".join(["usage: python -m soak NAME [FLAGS]", "", *lines])


def main() -> int:
    """Run the tool that the command line names."""
    from largesparse.machine.exit_codes import run_command

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in TOOLS:
        is_help = name in ("-h", "--help")
        print(listing(), file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    sys.argv[:2] = [f"soak {name}"]  # as the tool's usage has it
    return run_command(importlib.import_module(f"soak.{name}").main)


if __name__ == "__main__":
    if not __package__:  # started by its path, as `soak.program` has it
        sys.path[0] = str(FOLDER.parent)
    sys.exit(main())
