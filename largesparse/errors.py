"""Exceptions of the library. All derive from `LargeSparseError`.

The command line turns each of them into one sentence on standard error and exit code 2.
"""


class LargeSparseError(Exception):
    """Base of every error that the library raises on purpose.

    Attributes
    ----------
    is_told_elsewhere : bool
        Of an error that all ranks of a parallel run raise: whether this rank leaves it to rank 0
        to tell it.
    """

    is_told_elsewhere = False


class ParameterError(LargeSparseError, ValueError):
    """A parameter has a value outside its range."""


class DataError(LargeSparseError, ValueError):
    """Input data cannot be used: wrong shape, NaN, unknown labels, an unreadable file."""


class CheckpointError(LargeSparseError):
    """A saved model or checkpoint is missing, damaged or of another format version."""


class MemoryPlanError(LargeSparseError, MemoryError):
    """A planned run does not fit into the memory available."""


class BackendError(LargeSparseError, ImportError):
    """A sparse backend, or another library, was asked for that cannot be used here."""


class NumericalError(LargeSparseError, ArithmeticError):
    """A network computed numbers that are not finite: a loss, or what it predicts."""


class ParallelError(LargeSparseError, RuntimeError):
    """The ranks of a parallel run cannot start together, or one of them failed or died."""


class WorkerError(LargeSparseError, RuntimeError):
    """A worker process of multiprocess prediction died or failed."""


def install_command(extra: str) -> str:
    """Return what to type for an extra of the package, which is on no index yet."""
    from ._version import __version__

    wheel = f"largesparse-{__version__}-py3-none-any.whl"
    return f"pip install '.[{extra}]' in a checkout of largesparse, or '{wheel}[{extra}]'"


def check_range(
    name,
    value,
    owner,
    *,
    low=None,
    high=None,
    low_open=False,
    high_open=False,
    integer=False,
    remedy="",
):
    """Return `value` if it is a number in the interval given, else raise `ParameterError`.

    An open bound is itself excluded. The message names the parameter and its owner, and ends with
    the remedy, a sentence that says what to do.
    """
    import numbers

    kind = numbers.Integral if integer else numbers.Real
    good = isinstance(value, kind) and not isinstance(value, bool) and value == value
    if good and low is not None:
        good = value > low if low_open else value >= low
    if good and high is not None:
        good = value < high if high_open else value <= high
    if good:
        return value
    left = "(-inf" if low is None else f"{'(' if low_open else '['}{low}"
    right = "inf)" if high is None else f"{high}{')' if high_open else ']'}"
    what = "an integer" if integer else "a number"
    message = (
        f"The {name!r} parameter of {owner} must be {what} in the range {left}, {right}. "
        f"Got {value!r} instead."
    )
    raise ParameterError(f"{message} {remedy}".rstrip())


def check_share(name, value, owner, *, remedy=""):
    """Return `value` if it is a number in (0, 1), as `check_range` does."""
    return check_range(
        name, value, owner, low=0, high=1, low_open=True, high_open=True, remedy=remedy
    )
