"""One self-contained HTML page: text, tables and plots, with no request to anywhere."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .environment import expand_user

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 0 1rem 2rem;
  color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem),
  1fr)); }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
code { overflow-wrap: anywhere; }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Return an HTML page of sections, which are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def paragraph(text: str, *, heading: str = "") -> str:
    """Return a paragraph of plain text, under a heading where there is one."""
    above = f"<h2>{html.escape(heading)}</h2>\n" if heading else ""
    return f"{above}<p>{html.escape(text)}</p>"


def code(lines: Sequence[str]) -> str:
    """Return lines of code, each of which breaks where it is too long."""
    return "<p>" + "<br>\n".join(f"<code>{html.escape(line)}</code>" for line in lines) + "</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts; it scrolls by itself where the page is narrower."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def plots(figures: dict[str, Figure]) -> str:
    """Return figures as inline SVG, side by side where there is room; the names are for readers."""
    parts = [
        f'<figure role="img" aria-label="{html.escape(name)}" style="margin:0">{svg(figure)}'
        "</figure>"
        for name, figure in figures.items()
    ]
    return '<div class="plots">\n' + "\n".join(parts) + "\n</div>"


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element on one line, without declarations or metadata.

    Text is text, in the reader's own font, not outlines of letters.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", " ", text)


def save_figures(figures: dict[str, Figure], folder: str | Path, prefix: str) -> list[Path]:
    """Write every figure as PNG, `prefix`-name.png; return the paths."""
    paths = []
    for name, figure in figures.items():
        paths.append(expand_user(folder) / f"{prefix}-{name}.png")
        figure.savefig(paths[-1], dpi=160)
    return paths
