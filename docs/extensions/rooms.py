"""Draws the rooms of the package, and who imports whom, from the imports in its source.

A room is a sub-package; the modules next to them are the ground. In a page of Markdown the comment
`<!-- rooms -->` becomes the picture. `python docs/extensions/rooms.py` prints it as SVG.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).parents[2] / "largesparse"
GROUND = "ground"

WIDTH, GAP, BETWEEN, LINE = 960, 16, 44, 15  # pixels
PER_LETTER = 6.9  # pixels, at 11 pixels a line of text


def room_of(path: tuple[str, ...]) -> str | None:
    """Return the room of a dotted path below the package, or None where it names no module."""
    if not path or path[0].startswith("__"):
        return None
    if (PACKAGE / path[0]).is_dir():
        return path[0]
    return GROUND if (PACKAGE / f"{path[0]}.py").exists() else None


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import of a module, lazy ones too, but for those under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from imports(node)


def targets(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the rooms that an import in a module of this package (below ours) names."""
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        stem = node.module.split(".") if node.module else []
        if node.level:
            stem = [PACKAGE.name, *package[: len(package) - node.level + 1], *stem]
        names = [".".join([*stem, name]) for name in names]
    for name in names:
        first, *path = name.split(".")
        found = room_of(tuple(path)) if first == PACKAGE.name else None
        if found:
            yield found


def read_rooms() -> tuple[dict[str, list[str]], set[tuple[str, str]]]:
    """Return the modules of every room, and the pairs (room, room that it imports)."""
    modules: dict[str, list[str]] = {}
    arrows = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).with_suffix("").parts
        room = room_of(path)
        if room is None:
            continue
        name = ".".join(path[room != GROUND :])
        modules.setdefault(room, []).extend([name] if path[-1] != "__init__" else [])
        for node in imports(ast.parse(file.read_text(encoding="utf-8"))):
            arrows |= {(room, other) for other in targets(node, path[:-1]) if other != room}
    return modules, arrows


def levels(rooms: list[str], arrows: set[tuple[str, str]]) -> list[list[str]]:
    """Return the rooms from the top down: each stands above all that it imports, but in circles."""
    uses = np.zeros((len(rooms), len(rooms)), bool)
    for above, below in arrows:
        uses[rooms.index(above), rooms.index(below)] = True
    _, circle = connected_components(uses, connection="strong")
    height = np.zeros(len(rooms), int)
    for _ in rooms:
        for k, found in enumerate(uses):
            lower = height[found & (circle != circle[k])]
            height[k] = max([height[k], *height[circle == circle[k]], *(lower + 1)])
    return [[room for room, h in zip(rooms, height, strict=True) if h == level]
            for level in range(height.max(), -1, -1)]  # fmt: skip


def direct(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leave out the arrows that follow from two others."""
    return {
        (above, below)
        for above, below in arrows
        if not any(
            (above, other) in arrows and (other, below) in arrows and other not in (above, below)
            for _, other in arrows
        )
    }


def picture() -> str:
    """Return the rooms as SVG: a box each with its modules, and arrows to what it imports."""
    modules, arrows = read_rooms()
    boxes: dict[str, tuple[float, float, float, float, list[str]]] = {}
    y = 1.0
    for row in levels(list(modules), arrows):
        width = (WIDTH - 2 - GAP * (len(row) - 1)) / len(row)
        texts = [textwrap.wrap(", ".join(modules[room]), int(width / PER_LETTER)) for room in row]
        height = LINE * (max(map(len, texts)) + 2)
        for k, (room, text) in enumerate(zip(row, texts, strict=True)):
            boxes[room] = (1 + k * (width + GAP), y, width, height, text)
        y += height + BETWEEN
    lines, drawn = [], []
    for above, below in sorted(direct(arrows)):
        (x1, y1, w1, h1, _), (x2, y2, w2, _, _) = boxes[above], boxes[below]
        if y2 > y1:
            left, right = max(x1, x2), min(x1 + w1, x2 + w2)
            start = end = (left + right) / 2  # straight down where the boxes overlap
            if left > right:
                start, end = x1 + w1 / 2, x2 + w2 / 2
            lines.append(f'<path d="M{start:.0f} {y1 + h1:.0f}L{end:.0f} {y2 - 3:.0f}"/>')
    for room, (x, top, w, h, text) in boxes.items():
        drawn.append(f'<rect x="{x:.0f}" y="{top:.0f}" width="{w:.0f}" height="{h:.0f}" rx="6"/>')
        middle = x + w / 2
        title = room if room == GROUND else f"{room}/"
        for k, line in enumerate([title, *text]):
            kind = ' class="room"' if k == 0 else ""
            place = f'x="{middle:.0f}" y="{top + LINE * (k + 1.3):.0f}"'
            drawn.append(f"<text {place}{kind}>{escape(line)}</text>")
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - BETWEEN + 1:.0f}" '
            'role="img" aria-label="The rooms of the package" '
            'font-family="monospace" font-size="11">'
            "<style>svg .room{font-weight:bold;font-size:13px}svg text{text-anchor:middle;"
            "fill:currentColor}svg rect{fill:var(--color-background-primary,#fff)}"
            "svg rect,svg path{stroke:currentColor}</style>"
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8" '
            'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker>'
            '</defs><g marker-end="url(#tip)" fill="none">',
            *lines,
            "</g>",
            *drawn,
            "</svg>",
        ]
    )


def fill_page(app, page, source):
    if "<!-- rooms -->" in source[0]:
        block = f"```{{raw}} html\n{picture()}\n```"
        source[0] = source[0].replace("<!-- rooms -->", block)


def setup(app):
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    print(picture())
