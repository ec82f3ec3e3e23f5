"""The flags of `train` and of `bigmodel` that are fields of the two configurations.

A flag that is not given is None: what there is then, the command knows.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ..errors import ParameterError
from ..machine.sizes import parse_size
from ..model.config import DISTRIBUTION, NetworkConfig, TrainingConfig
from ..model.optimizer import OPTIMIZERS, SCHEDULES


class Setting(NamedTuple):
    """A field of `NetworkConfig` or of `TrainingConfig` as a flag."""

    help: str
    type: Callable[[str], Any] | None = float  # None: a flag of yes or no
    choices: Sequence[str] | None = None
    metavar: str | None = None


# field -> flag; the flag has the field's name, or that of `FLAGS`
SETTINGS: dict[str, Setting] = {
    "density": Setting("share of a dense network's connections, instead of ε"),
    "distribution": Setting("--density is that of every layer, or of all together", str,
        DISTRIBUTION),
    "start_factor": Setting("begin with this many times the connections; evolution removes the "
        "surplus"),
    "batch_norm": Setting("normalise the hidden layers by mini-batch", None),
    "rate_fan_in": Setting("lower the learning rate of the weights of neurons with more "
        "connections than this"),
    "optimizer": Setting("update rule; adam and adamw keep 6 bytes more a connection", str,
        tuple(OPTIMIZERS)),
    "learning_rate": Setting("η"),
    "schedule": Setting("of η over the epochs", str, tuple(SCHEDULES)),
    "momentum": Setting("share of the last update in the next; Adam's β1"),
    "weight_decay": Setting("share of a weight that goes at an update; of adamw times η"),
    "beta2": Setting("Adam's β2"),
    "adam_epsilon": Setting("what Adam adds to the root of the mean square"),
    "step_counts": Setting("Adam counts the updates of each connection, or those of the training",
        str, ("connection", "global")),
    "connection_warmup": Setting("updates over which Adam's η of a new connection rises",
        int, metavar="N"),
    "clip_norm": Setting("largest norm of the gradient of an update", metavar="NORM"),
    "dropout": Setting("share of the hidden neurons dropped"),
    "label_smoothing": Setting("share of each label that all classes get"),
    "average_decay": Setting("predict by an average of the weights; this share of it stays at an "
        "update"),
    "zeta": Setting("share of the connections that evolution replaces"),
    "drop": Setting("which connections go: set, magnitude, mest, soft, or your own as "
        "module:function", str, metavar="RULE"),
    "drop_factor": Setting("mest's factor of |dL/dw|; the temperature of soft"),
    "growth": Setting("where others grow: random, gradient, topology, reconnect, or your own",
        str, metavar="RULE"),
    "growth_candidates": Setting("random cells that gradient looks at for a connection that grows, "
        "topology at half as many"),
    "redistribute": Setting("connections move between hidden layers: one threshold tells which go",
        None),
    "keep_active": Setting("evolution leaves every neuron its last connection on either side",
        None),
    "shrink_start": Setting("epoch after which the surplus begins to go", int, metavar="EPOCH"),
    "shrink_end": Setting("epoch after which the surplus is gone", parse_size, metavar="EPOCH"),
}  # fmt: skip
FLAGS = {"drop": "drop_rule"}  # --drop leaves columns out
NETWORK = tuple(name for name in SETTINGS if name in NetworkConfig.__dataclass_fields__)
EVOLUTION = tuple(itertools.dropwhile(lambda name: name != "zeta", SETTINGS))
OPTIMIZATION = tuple(name for name in SETTINGS if name not in (*NETWORK, *EVOLUTION))
TRAINING = OPTIMIZATION + EVOLUTION
TOLD = {  # what is there where a flag is not given, if that is not the field's default
    "density": "by ε",
    "learning_rate": "chosen, and lowered if it diverges",
    "weight_decay": "chosen",
    "shrink_end": "half of the epochs",
    "rate_fan_in": "the recipe's",
    "clip_norm": "not clipped",
}
DEFAULTS = {
    field.name: field.default
    for config in (NetworkConfig, TrainingConfig)
    for field in fields(config)
}


ADAMS = ("adam", "adamw")
NEEDS: dict[str, tuple[str, Sequence[str]]] = {  # field -> another, with values that it counts for
    "beta2": ("optimizer", ADAMS),
    "adam_epsilon": ("optimizer", ADAMS),
    "step_counts": ("optimizer", ADAMS),
    "drop_factor": ("drop", ("mest", "soft")),
    "growth_candidates": ("growth", ("gradient", "topology")),
}


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return "--" + FLAGS.get(name, name).replace("_", "-")


def add_settings(parser: argparse.ArgumentParser, epsilon: str, **told: str) -> None:
    """Add the flags in groups; `told` has defaults that are not the field's, `epsilon` that of ε.

    Either ε or a density can be given.
    """
    group = parser.add_argument_group("density and layers")
    either = group.add_mutually_exclusive_group()
    about = (
        f"density control ε: about ε·(inputs + outputs) connections a layer (default: {epsilon})"
    )
    either.add_argument("--epsilon", type=float, metavar="E", help=about)
    add_flags(either, NETWORK[:1], **told)
    add_flags(group, NETWORK[1:], **told)
    add_flags(parser.add_argument_group("updates"), OPTIMIZATION, **told)
    add_flags(parser.add_argument_group("evolution"), EVOLUTION, **told)


def add_flags(group: Any, names: Sequence[str], **told: str) -> None:
    """Add the flags of some fields."""
    for name in names:
        setting = SETTINGS[name]
        if setting.type is None:
            text = f"{setting.help} (default: {told.get(name, DEFAULTS[name])})"
            group.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, help=text)
            continue
        default = told.get(name, TOLD.get(name, DEFAULTS[name]))
        group.add_argument(
            flag_of(name),
            type=setting.type,
            choices=setting.choices,
            metavar=setting.metavar or ("X" if setting.choices is None else None),
            help=f"{setting.help} (default: {default})".replace("%", "%%"),
        )


def given_settings(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of the fields whose flags were given."""
    values = {name: getattr(options, FLAGS.get(name, name), None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def check_settings(options: argparse.Namespace) -> None:
    """Raise a ParameterError for flags that count for nothing without another one.

    Rules of one's own, as module:function, may use what there is.
    """
    given = given_settings(options, SETTINGS)
    for name, (other, values) in NEEDS.items():
        value = given.get(other, DEFAULTS[other])
        if name in given and value not in values and ":" not in value:
            raise ParameterError(
                f"{flag_of(name)} counts only with {flag_of(other)} {' or '.join(values)}. Got "
                f"{value!r}. Give it, or leave {flag_of(name)} out."
            )
    ends = [name for name in ("shrink_start", "shrink_end") if name in given]
    if ends and given.get("start_factor", 1.0) == 1:
        flag = flag_of(ends[0])
        raise ParameterError(
            f"{flag} counts only with --start-factor above 1. Give it, or leave {flag} out."
        )
