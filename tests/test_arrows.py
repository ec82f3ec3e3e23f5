"""The house of docs/how-it-works.md: imports point down from room to room, and close no circle.

Imports inside functions count; those for type checking alone do not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import largesparse

PACKAGE = Path(largesparse.__file__).parent
# From the ground up. A room may use those below it, not those it shares a line with.
ROOMS = (
    ("errors", "randomness", "_version"),
    ("machine",),
    ("backends",),
    ("data",),
    ("model",),
    ("training",),
    ("estimators", "parallel", "torch"),
    ("__init__",),
    ("harness",),
    ("paper",),
    ("commands",),
    ("__main__",),
)
GROUND = ROOMS[0]


def modules(package: Path) -> dict[str, Path]:
    """Return the modules of a package by their names below it; its own `__init__` is ''."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str, path: Path, names: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, those for types alone apart."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if node in skipped:
            skipped.update(ast.iter_child_nodes(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(node.body)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(node, package, names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE.name:
                    yield alias.name.partition(".")[2]


def _imported_from(node: ast.ImportFrom, package: str, names: dict[str, Path]) -> Iterator[str]:
    if node.level:
        above = package.split(".") if package else []
        above = above[: len(above) - node.level + 1]
        source = ".".join([*above, *([node.module] if node.module else [])])
    elif node.module and node.module.split(".")[0] == PACKAGE.name:
        source = node.module.partition(".")[2]
    else:
        return
    for alias in node.names:
        inner = f"{source}.{alias.name}".lstrip(".")
        yield inner if inner in names else source


def floor(module: str) -> int:
    """Return the line of ROOMS that a module is on."""
    room = module.split(".")[0] or "__init__"
    return next(number for number, rooms in enumerate(ROOMS) if room in rooms)


def is_up(module: str, other: str) -> bool:
    """Return whether an import of `other` by `module` points up, or to a room on the same line."""
    if not other:
        return True  # the public names are for users
    if floor(module) == floor(other):
        same = module.split(".")[0] == other.split(".")[0] or floor(module) == 0
        return not same
    return floor(module) < floor(other)


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    names = modules(PACKAGE)
    return {module: {*imported(module, path, names)} for module, path in names.items()}


def test_imports_point_down(arrows):
    up = [
        f"{module or '__init__'} -> {other or '__init__'}"
        for module, others in arrows.items()
        for other in sorted(others)
        if is_up(module, other)
    ]
    assert not up, "these imports point up:\n" + "\n".join(up)


def test_no_circle_is_closed(arrows):
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail("these modules import each other: " + " -> ".join(error.args[1]))


def test_few_modules_stand_outside_the_rooms():
    top = [path.name for path in PACKAGE.glob("*.py")]
    assert len(top) <= 8, top


def test_an_arrow_up_and_a_circle_are_seen(tmp_path):
    package = tmp_path / "largesparse"
    for room in ("model", "training"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "model/layer.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ..training import history\n"
        "def late():\n    from ..training.trainer import Trainer\n"
    )
    (package / "training/trainer.py").write_text("import largesparse.model.layer\n")
    names = modules(package)
    found = {module: {*imported(module, path, names)} for module, path in names.items()}
    assert found["model.layer"] == {"training.trainer"}
    assert found["training.trainer"] == {"model.layer"}
    assert is_up("model.layer", "training.trainer") and not is_up("training.trainer", "model.layer")
    with pytest.raises(CycleError):
        TopologicalSorter(found).prepare()
