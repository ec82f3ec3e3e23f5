"""How tables and pictures look, and one HTML page of them that asks for nothing from anywhere."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from ..errors import LargeSparseError, ParameterError, install_command
from ..machine.environment import expand_user
from .series import colour_of, marker_of
from .uncertainty import Ratio, ratio_of_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBER = re.compile(r"[-−+]?[\d.,]+(e[-+]?\d+)?( |$)|-$")  # also with a unit behind it
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
th, td { padding: 0.2rem 0.5rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.name, .text { text-align: left; }
@media (max-width: 40rem) { th, td { padding: 0.2rem 0.3rem; } td.name, td.text {
  white-space: normal; } td.name { min-width: 8.5rem; } td.text { min-width: 4rem; } }
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


def table(frame: pd.DataFrame) -> str:
    """Return a table; it scrolls by itself where the page is narrower.

    Numbers have three digits and stand to the right, other texts to the left; columns without any
    value are left out. The first column stays in view; on narrow screens its names break after dots
    and underscores.
    """
    texts = pd.DataFrame(
        [[_text(cell) for cell in row] for row in frame.to_numpy(object)], columns=frame.columns
    )
    texts = texts.loc[:, (texts != "").any()]
    is_text = [not all(map(NUMBER.match, filter(None, column))) for _, column in texts.items()]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(map(partial(_cell, tag), count(), cells, is_text)) + "</tr>"

    rows = [line("th", [*map(str, texts)]), *(line("td", row) for row in texts.to_numpy().tolist())]
    return '<div class="wide"><table>\n' + "\n".join(rows) + "\n</table></div>"


def _cell(tag: str, column: int, text: str, is_text: bool) -> str:
    text = html.escape(text)
    if not is_text:
        return f"<{tag}>{text}</{tag}>"
    if column == 0:
        return f'<{tag} class="name">{re.sub(r"(?<=[._])", "<wbr>", text)}</{tag}>'
    return f'<{tag} class="text">{text}</{tag}>'


def _text(cell: object) -> str:
    """Return a cell of a table: numbers in three digits, large whole ones with commas."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, datetime):
        return f"{cell:%Y-%m-%d %H:%M}"
    if isinstance(cell, (int, float)):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


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


def make_folder(path: str | Path) -> Path:
    """Make the folder of a page or of figures, where there is none yet.

    Raises
    ------
    ParameterError
        Where it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".written").touch()
        (folder / ".written").unlink()
    except OSError as error:
        raise ParameterError(
            f"The folder {str(path)!r} cannot be written to ({error.strerror or error}). "
            "Name another one."
        ) from error
    return folder


def save_figures(figures: dict[str, Figure], folder: str | Path, prefix: str) -> list[Path]:
    """Write every figure as PNG, `prefix`-name.png; return the paths."""
    paths = []
    for name, figure in figures.items():
        paths.append(expand_user(folder) / f"{prefix}-{name}.png")
        figure.savefig(paths[-1], dpi=160)
    return paths


def check_matplotlib() -> None:
    """Raise a LargeSparseError without matplotlib: before what would be drawn takes hours."""
    if find_spec("matplotlib") is None:
        raise LargeSparseError(f"Plots need matplotlib: {install_command('plot')}.")


def new_figure(rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row, in the style of all plots.

    Raises
    ------
    LargeSparseError
        Without matplotlib.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes


def log_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure whose axes are logarithmic both."""
    figure, (axes,) = new_figure()
    from matplotlib.ticker import EngFormatter, LogFormatter

    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    class Plain(LogFormatter):
        """Labels where LogFormatter has them, as 0.6 and not as 6e-01."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(1, 0.5)))
    return figure, axes


class Line(NamedTuple):
    """Speeds by the number of threads, processes or workers, and how they are drawn."""

    label: str
    speeds: dict[int, float]
    colour: str
    style: str = "-"
    intervals: dict[int, Ratio] | None = None  # of the speeds that were measured with one

    def ratios(self) -> list[Ratio]:
        """Return every speed divided by that of the smallest count, with what is known of both."""
        known = self.intervals or {}
        found = [known.get(n, Ratio(self.speeds[n])) for n in sorted(self.speeds)]
        return [Ratio(1.0, 1.0, 1.0), *(ratio_of_intervals(one, found[0]) for one in found[1:])]


def draw_ratios(axes: Axes, places: Sequence[int], ratios: Sequence[Ratio], **style: Any) -> None:
    """Draw a line through ratios, and a bar for the interval of each that has one."""
    axes.plot(places, [ratio.value for ratio in ratios], **style)
    for place, ratio in zip(places, ratios, strict=True):
        if ratio.known and ratio.low < ratio.high:
            axes.vlines(place, ratio.low, ratio.high, color=style.get("color"), linewidth=1)


def speedup_figure(title: str, unit: str, lines: list[Line]) -> Figure | None:
    """Return speeds against counts, of each line divided by that of its smallest count.

    Bars are 95 % intervals, where both speeds have one. None where no line has two counts.
    """
    lines = [line for line in lines if len(line.speeds) > 1]
    if not lines:
        return None
    figure, (axes,) = new_figure()
    for number, line in enumerate(lines):
        style = {"color": colour_of(line.colour), "linestyle": line.style, "label": line.label}
        draw_ratios(axes, sorted(line.speeds), line.ratios(), marker=marker_of(number), **style)
    counts = sorted(set().union(*(line.speeds for line in lines)))
    axes.plot(counts, [count / counts[0] for count in counts], "k--", linewidth=1, label="linear")
    axes.set(title=title, xlabel=unit, ylabel=f"speed, {counts[0]} is 1")
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return figure
