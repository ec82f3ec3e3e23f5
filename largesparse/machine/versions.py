"""Which software runs: versions of this library and of what it stands on, and its commit."""

from __future__ import annotations

import filecmp
import importlib.metadata
import platform
import re
import sys
from functools import cache
from pathlib import Path

from .._version import __version__
from .hardware import output_of

PACKAGE = Path(str(sys.modules[__name__.partition(".")[0]].__file__)).resolve().parent

PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "llvmlite",
    "sparse_dot_mkl",
    "mkl",
    "tbb",
    "scikit-learn",
    "pandas",
    "mpi4py",
    "safetensors",
    "joblib",
    "psutil",
)


def version(package: str) -> str | None:
    """Return the version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def wheel_file(package: str, pattern: str) -> Path | None:
    """Return the path of a file of an installed wheel, by a pattern of its name; None without."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (file for file in files if re.fullmatch(pattern, file.name))
    return next((Path(str(file.locate())).resolve() for file in found), None)


def versions() -> dict[str, str | None]:
    """Return the versions of Python, of this library and of what it stands on."""
    found = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "largesparse": __version__, **found}


@cache
def commit() -> str | None:
    """Return the git commit of the code that runs, with "-dirty" if tracked files are changed.

    The code is a checkout's if it was imported from there, or if the running script is the
    checkout's and the installed package equals the one beside it. Otherwise None.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    starts = [PACKAGE] if script is None else [PACKAGE, Path(script).resolve().parent]
    for start in starts:
        root = output_of("git", "-C", str(start), "rev-parse", "--show-toplevel")
        if root and _same_code(PACKAGE, Path(root) / PACKAGE.name):
            return output_of(
                *("git", "-C", root, "describe"),
                *("--always", "--abbrev=40", "--exclude=*", "--dirty"),
            )
    return None


def _same_code(package: Path, other: Path) -> bool:
    if package == other:
        return True
    names = sorted(path.relative_to(package) for path in package.rglob("*.py"))
    if not names or names != sorted(path.relative_to(other) for path in other.rglob("*.py")):
        return False
    return all(filecmp.cmp(package / name, other / name, shallow=False) for name in names)
