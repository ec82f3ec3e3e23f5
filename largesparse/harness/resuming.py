"""The flags of a run that goes on from a checkpoint: those that it was started with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import ParameterError
from ..model.config import NetworkConfig
from ..training.checkpoint import has_checkpoint, read_notes

OWN = ("checkpoint", "resume", "plan")  # flags of every start of their own
FREE = (  # flags that may change: what a run computes on, how long, and where it is recorded
    *("epochs", "micro_batch", "activation_dtype", "backend", "threads", "processes", "out"),
    *("algorithm", "phase_one_epochs", "slots", "ranks_per_node", "chunk_bytes", "groups", "split"),
)


def parse_resumable(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, required: str, notes: str
) -> argparse.Namespace:
    """Parse a command line whose flags, with `--resume`, are by default the checkpoint's.

    `--resume` alone goes on from `--checkpoint`, where there is one already. `--checkpoint` is by
    default the folder that is resumed. The options have `resume` None where there is nothing to
    resume.

    Parameters
    ----------
    parser : ArgumentParser
    argv : sequence of str, optional
    required : str
        The flag that must be given unless a checkpoint has it.
    notes : str
        What a checkpoint's notes keep the flags under.

    Raises
    ------
    CheckpointError
        Where the checkpoint cannot be read.
    ParameterError
        Where a flag that must stay has another value than before.
    """
    options = parser.parse_args(argv)
    resume = _folder(options)
    if resume is not None:
        flags = read_notes(resume).get(notes, {})
        known = {name: value for name, value in flags.items() if name in options}
        parser.set_defaults(**known)
        options = parser.parse_args(argv)
        newer = {name: parser.get_default(name) for name in vars(options) if name not in known}
        _check_same(options, known | newer, resume)
    if getattr(options, required) is None:
        parser.error(f"the following arguments are required: --{required}")
    options.resume = resume
    options.checkpoint = options.checkpoint or resume
    return options


def check_network(found: NetworkConfig, wanted: NetworkConfig) -> None:
    """Raise `ParameterError` where a checkpoint's network is not the one that flags describe."""
    if found != wanted:
        raise ParameterError(
            f"The 'resume' parameter names a checkpoint of another network: {found}. Repeat the "
            "command that wrote it."
        )


def flags_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `parse_resumable` wants to find among a checkpoint's notes."""
    return {name: value for name, value in vars(options).items() if name not in OWN}


def _folder(options: argparse.Namespace) -> str | None:
    """Return the checkpoint to go on from."""
    folder: str | None = options.resume
    if folder != "":
        return folder
    if options.checkpoint is None:
        raise ParameterError(
            "--resume without a folder goes on from that of --checkpoint, and there is none. "
            "Give --resume DIR, or --checkpoint DIR beside."
        )
    return options.checkpoint if has_checkpoint(options.checkpoint) else None


def _check_same(options: argparse.Namespace, flags: dict[str, Any], folder: str) -> None:
    for name, before in flags.items():
        now = getattr(options, name)
        if name not in (*FREE, *OWN) and now != before:
            was = "not given" if before is None else before
            raise ParameterError(
                f"--{name.replace('_', '-')} {now} does not fit the run in {folder}, where it was "
                f"{was}. Leave the flag out, or start a new run without --resume."
            )
