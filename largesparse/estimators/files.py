"""What a saved estimator keeps beside its network: its parameters, and how far it was trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ParameterError
from ..model.rules import KINDS, plain_rule
from .defaults import OWNER

# Attributes that training goes on from.
PROGRESS = ("n_iter_", "n_steps_", "learning_rate_", "_epochs", "_fit_rate", "_sparse_labels")


def describe(estimator: Any) -> dict[str, Any]:
    """Return an estimator's parameters and progress as JSON can hold them, or raise."""
    parameters = estimator.get_params(deep=False)
    del parameters["topology"]  # the network has it
    parameters |= {kind: plain_rule(kind, parameters[kind], OWNER) for kind in KINDS}
    return {
        "parameters": {name: _to_json(name, value) for name, value in parameters.items()},
        "progress": {name: getattr(estimator, name, None) for name in PROGRESS},
    }


def parameters_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that `describe` was given."""
    return {name: _from_json(value) for name, value in description["parameters"].items()}


def _to_json(name: str, value: Any) -> Any:
    """Return a value; what is no plain one becomes a dictionary that says what it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list | np.ndarray):
        return {"tuple": [_to_json(name, item) for item in value]}
    if isinstance(value, dict):  # the keys, labels of classes, need not be strings
        return {"dict": [[_to_json(name, k), _to_json(name, v)] for k, v in value.items()]}
    if isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=False)
        state["state"] = state["state"] | {"key": state["state"]["key"].tolist()}
        return {"RandomState": state}
    raise ParameterError(
        f"The {name!r} parameter cannot be saved: it is a {type(value).__name__}. Set it to a "
        "number, a string, a tuple or a dictionary first, by set_params."
    )


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tuple":
        return tuple(map(_from_json, content))
    if kind == "dict":
        return {_from_json(key): _from_json(item) for key, item in content}
    random = np.random.RandomState()
    random.set_state(content)
    return random
