"""Fills docs/command-line.md with the help of every subcommand of `largesparse`."""

import argparse
import os

from largesparse import cli


def subcommands():
    """Return the parser of each subcommand, by name."""
    actions = cli.make_parser()._actions
    (found,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    drivers = {
        name: driver.load().make_parser(f"largesparse {name}")
        for name, driver in cli.DRIVERS.items()
    }
    return found.choices | drivers


def fill_page(app, page, source):
    if page != "command-line":
        return
    os.environ |= {"COLUMNS": "90", "NO_COLOR": "1"}  # argparse asks these
    for name, parser in subcommands().items():
        source[0] += f"\n## {name}\n\n```text\n{parser.format_help()}```\n"
    app.env.note_dependency(cli.__file__)


def setup(app):
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
