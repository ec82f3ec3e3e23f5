"""Fills docs/command-line.md with the help of every command of `largesparse`."""

import contextlib
import io
import os
import re
import runpy
import sys

import largesparse


def help_of(*command):
    """Return what `largesparse COMMAND --help` prints."""
    printed, argv = io.StringIO(), sys.argv
    sys.argv = ["largesparse", *command, "--help"]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            runpy.run_module("largesparse", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = argv
    return printed.getvalue()


def fill_page(app, page, source):
    if page != "command-line":
        return
    os.environ |= {"COLUMNS": "90", "NO_COLOR": "1"}  # argparse asks these
    commands = help_of().partition("\ncommands:\n")[2]
    for name in re.findall(r"^    (\w+)", commands, re.MULTILINE):
        source[0] += f"\n## {name}\n\n```text\n{help_of(name)}```\n"
    app.env.note_dependency(largesparse.__file__)


def setup(app):
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
