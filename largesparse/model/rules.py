"""Rules of evolution, which connections go and where others grow: by name, or of one's own.

A rule is a function of a layer, a `RuleState`, a count, and a generator to draw from:

    drop(layer, state, count, rng) -> bool (nnz,), False for at most `count` connections that go
    grow(layer, state, count, rng) -> int64 (count,), free cells i·n_out + j, ascending and distinct

It changes nothing, and draws from `rng` alone, so that a seed gives the same network whatever the
number of threads. Where it asks for gradients, it is marked by `needs_gradient`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any, NamedTuple

import numpy as np

from ..errors import ParameterError
from . import drops, growth
from .cells import Int64
from .layer import SparseLayer
from .rule_state import Bool, Rule, RuleState

DROPS: dict[str, Rule] = {
    "set": drops.drop_by_sign,
    "magnitude": drops.drop_by_magnitude,
    "mest": drops.drop_by_magnitude_and_gradient,
    "soft": drops.drop_softly,
}
GROWTHS: dict[str, Rule] = {
    "random": growth.grow_at_random,
    "gradient": growth.grow_by_gradient,
    "topology": growth.grow_by_paths,
    "reconnect": growth.reconnect,
}
KINDS = {"drop": DROPS, "growth": GROWTHS}
ARGUMENTS = ("layer", "state", "count", "rng")  # of a rule


def plain_rule(kind: str, rule: Any, owner: str) -> str | Rule:
    """Return a rule as its name or as 'module:function', where it has one; else the callable.

    `kind` is "drop" or "growth", the parameter of `owner` that it is. ParameterError where it is
    none.
    """
    function = resolve_rule(kind, rule, owner)
    if isinstance(rule, str):
        return rule
    for name, known in KINDS[kind].items():
        if known is function:
            return name
    text = describe_rule(function)
    try:
        return text if _import(text) is function else function
    except Exception:
        return function


def resolve_rule(kind: str, rule: Any, owner: str) -> Rule:
    """Return the function of a rule that is a name, 'module:function' or a callable."""
    known = KINDS[kind]
    if isinstance(rule, str):
        if rule in known:
            return known[rule]
        if ":" in rule:
            try:
                rule = _import(rule)
            except Exception as error:  # whatever a module does
                raise ParameterError(
                    f"The {kind!r} parameter of {owner}, {rule!r}, cannot be imported: "
                    f"{type(error).__name__}: {error}. Write it as 'module:function', with the "
                    "folder of the module on PYTHONPATH."
                ) from error
    if not callable(rule):
        raise ParameterError(
            f"The {kind!r} parameter of {owner} must be one of {sorted(known)}, a function, or "
            f"'module:function'. Got {rule!r} instead."
        )
    function: Rule = rule
    _check_arguments(kind, function, owner)
    return function


def _check_arguments(kind: str, function: Rule, owner: str) -> None:
    """Raise a ParameterError where a rule cannot take what it is called with."""
    try:
        inspect.signature(function).bind(*ARGUMENTS)
    except ValueError:  # what is compiled may have no signature
        return
    except TypeError as error:
        raise ParameterError(
            f"The {kind!r} parameter of {owner}, {describe_rule(function)}, must take "
            f"({', '.join(ARGUMENTS)}): {error}."
        ) from error


def _import(text: str) -> Any:
    """Return what 'module:function' names."""
    module, _, qualname = text.partition(":")
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def describe_rule(rule: str | Rule) -> str:
    """Return what an error calls a rule."""
    if isinstance(rule, str):
        return rule
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{named.__module__}:{named.__qualname__}"


def nameless_rule(config: Any) -> str:
    """Return what is wrong where another process cannot find a training's rules, else nothing."""
    for kind in KINDS:
        if not isinstance(rule := getattr(config, kind), str):
            return (
                f"The rule {kind!r}, {describe_rule(rule)}, cannot be found again by its name, as "
                "functions within functions, lambdas and objects cannot. Define it as a function "
                "of a module, at its top level"
            )
    return ""


class Rules(NamedTuple):
    """Which connections go, and where others grow, with the rules' names in errors.

    With `keep_active` the last connection of a neuron stays, whatever the rule: see
    `evolution.keep_last_`.
    """

    drop: Rule
    grow: Rule
    names: tuple[str, str]
    keep_active: bool = False

    @classmethod
    def of(
        cls,
        drop: str | Rule = "set",
        growth: str | Rule = "random",
        owner: str = "a training",
        *,
        keep_active: bool = False,
    ) -> Rules:
        """Return the rules that names, functions or 'module:function' stand for."""
        if not isinstance(keep_active, bool):
            raise ParameterError(
                f"The 'keep_active' parameter of {owner} must be True or False. Got "
                f"{keep_active!r} instead."
            )
        return cls(
            resolve_rule("drop", drop, owner),
            resolve_rule("growth", growth, owner),
            (describe_rule(drop), describe_rule(growth)),
            keep_active,
        )

    @property
    def needs_gradient(self) -> bool:
        """Whether one of them asks for gradients."""
        return any(getattr(rule, "needs_gradient", False) for rule in (self.drop, self.grow))

    @property
    def are_built_in(self) -> bool:
        """Whether both are of this package."""
        return self.drop in DROPS.values() and self.grow in GROWTHS.values()

    def kept(self, layer: SparseLayer, state: RuleState, count: int, rng: Any) -> Bool:
        """Return the connections that stay where at most `count` go: bool (nnz,)."""
        keep: Any = self.drop(layer, state, count, rng)
        if self.drop in DROPS.values():
            return keep
        problem = ""
        if not isinstance(keep, np.ndarray) or keep.dtype != bool or keep.shape != (layer.nnz,):
            problem = _describe(keep)
        elif (gone := layer.nnz - int(np.count_nonzero(keep))) > count:
            problem = f"{gone} that go"
        if problem:
            raise ParameterError(
                f"The rule 'drop', {self.names[0]!r}, must return a bool array of shape "
                f"({layer.nnz},) for {state.name}, False for at most {count} connections "
                f"that go. Got {problem}."
            )
        return keep.copy()

    def grown(self, layer: SparseLayer, state: RuleState, count: int, rng: Any) -> Int64:
        """Return the cells in which `count` connections grow: int64 (count,), ascending."""
        cells: Any = self.grow(layer, state, count, rng)
        if self.grow in GROWTHS.values():
            return cells
        if problem := _problem_of_cells(cells, layer, state, count):
            raise ParameterError(
                f"The rule 'growth', {self.names[1]!r}, must return {count} different free cells, "
                f"i * {layer.n_out} + j, of {state.name}, ascending, as an int64 array. "
                f"Got {problem}."
            )
        return cells.astype(np.int64)


def _describe(found: Any) -> str:
    if isinstance(found, np.ndarray):
        return f"{found.dtype} of shape {found.shape}"
    return type(found).__name__


def _problem_of_cells(cells: Any, layer: SparseLayer, state: RuleState, count: int) -> str:
    """Return what is wrong with the cells that a rule has chosen, or nothing."""
    if not isinstance(cells, np.ndarray) or cells.dtype.kind not in "iu" or cells.ndim != 1:
        return _describe(cells)
    if len(cells) != count:
        return f"{len(cells)} cells"
    if not count:
        return ""
    size = layer.n_in * layer.n_out
    if cells.min() < 0 or cells.max() >= size:
        return f"cells from {cells.min()} to {cells.max()}, outside [0, {size})"
    steps = np.diff(cells.astype(np.int64))
    if np.any(steps < 0):
        return "cells that do not ascend: sort them"
    if np.any(steps == 0):
        return f"{np.count_nonzero(steps == 0)} cells twice"
    wrong = ~state.is_free(cells.astype(np.int64))
    if wrong.any():
        kind = "with connections" if state.living is None else "with connections or dead neurons"
        kind += "" if layer.candidates is None else ", or that are no candidates"
        return f"{np.count_nonzero(wrong)} cells {kind}"
    return ""


SET = Rules.of()
