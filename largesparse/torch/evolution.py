"""SET evolution of PyTorch's models, with the state of their optimizer."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.operands import Float32
from ..errors import ParameterError, check_range
from ..machine.threads import kernel_threads
from ..model.cells import Int64
from ..model.evolution import evolve as evolve_layer
from ..model.layer import SparseLayer
from ..model.rule_state import Rule, RuleState
from ..model.rules import Rules
from ..randomness import stream
from .linear import SparseLinear, sparse_layers
from .tensors import array_of

RULE_OPTIONS = ("growth", "drop", "growth_candidates", "drop_factor", "keep_active")

# What `recording` has seen of a layer: pairs of inputs and dL/dy, one for each use.
_recorded: weakref.WeakKeyDictionary[SparseLinear, list[tuple[Tensor, Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def evolve(
    model: nn.Module,
    zeta: float,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    growth: str | Rule = "random",
    drop: str | Rule = "set",
    growth_candidates: float = 4.0,
    drop_factor: float = 1.0,
    keep_active: bool = False,
) -> dict[str, Tensor]:
    """Replace the fraction ζ of the connections of every sparse layer of a model, or of one layer.

    Of the positive weights the ⌊ζ·count⌋ smallest go, of the negative ones the ⌊ζ·count⌋ closest to
    zero (Algorithm 2); as many grow at cells that are free then. Connections that stay keep their
    weights, their gradients and what the optimizer keeps for each (momentum, Adam's moments); new
    ones begin with zero there, and with zero or drawn weights, as the layer's recipe says. What is
    drawn is a function of the layer's seed and of its evolutions so far: equal models stay equal,
    those of `DistributedDataParallel` too.

    Call it between two steps: after `optimizer.step()`, before the next forward pass. Layers whose
    values do not require a gradient stay as they are. Where a rule fails, all layers do.

    Parameters
    ----------
    model : Module
        Changed in place. Pass the layers one by one to leave some out.
    zeta : float in [0, 1)
    optimizer : Optimizer, optional
        That which updates the `values` of all these layers.
    growth, drop : str or callable
        Rules by their names, of one's own, or as 'module:function': see `TrainingConfig` and
        `largesparse.model.rules`. Rules are given the layer as a `SparseLayer`. Those that ask for
        gradients, as growth "gradient" does, take what was computed within `recording(model)`.
    growth_candidates : float >= 1
    drop_factor : float >= 0
        Of these rules, as in `TrainingConfig`.
    keep_active : bool
        Whether inputs and outputs of each layer keep their strongest connection where they would
        lose all, whatever the rules: so no neuron becomes idle.

    Returns
    -------
    dict of int32 tensors
        For each layer by its name, the new place of every old connection, or -1 where it is gone.
    """
    check_range("zeta", zeta, "evolve", low=0, high=1, high_open=True)
    layers = _trained_layers(model)
    rules = Rules.of(drop, growth, "evolve", keep_active=keep_active)
    factors = _factors("evolve", growth_candidates, drop_factor)
    _check_optimizer(optimizer, layers)
    threads = kernel_threads(torch.get_num_threads())
    with torch.inference_mode(False), torch.no_grad(), threads:
        known: dict[str, dict[str, Any]] = {name: {} for name in layers}
        if rules.needs_gradient:
            _check_group(layers, zeta)
            known = {name: _batch_of(layer, name) for name, layer in layers.items()}
        found = {
            name: _evolved(layer, zeta, rules, name=f"the layer {name!r}", **factors, **known[name])
            for name, layer in layers.items()
        }  # of all layers, before any is changed: a rule may fail
        for name, layer in layers.items():
            _recorded.pop(layer, None)
            _take_over(layer, *found[name], optimizer)
        return {name: places for name, (_, places) in found.items()}


def _factors(owner: str, growth_candidates: float, drop_factor: float) -> dict[str, float]:
    """Return what a rule's state has of them, or raise."""
    check_range("growth_candidates", growth_candidates, owner, low=1, high=1e6)
    check_range("drop_factor", drop_factor, owner, low=0, high=1e6)
    return {"candidates": growth_candidates, "drop_factor": drop_factor}


def _trained_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Return the layers that evolve, or raise."""
    owners: dict[int, str] = {}
    for name, layer in sparse_layers(model).items():
        values = layer._parameters.get("values")
        if values is None:
            raise ParameterError(
                f"The layer {name!r} computes its values from others (prune, parametrize), which "
                "evolve cannot move. Make that permanent first, as by torch.nn.utils.prune.remove."
            )
        if id(values) in owners:
            raise ParameterError(
                f"The layers {owners[id(values)]!r} and {name!r} share their values, and would "
                "grow apart. Use one layer twice instead."
            )
        if not torch.isfinite(values).all():
            raise ParameterError(
                f"The layer {name!r} has weights that are not finite. Train with a lower rate."
            )
        owners[id(values)] = name
    layers = sparse_layers(model)
    found = {name: layer for name, layer in layers.items() if layer.values.requires_grad}
    if not found:
        raise ParameterError("No sparse layer of the model is trained: none requires a gradient.")
    return found


def _evolved(
    layer: SparseLinear, zeta: float, rules: Rules, **known: Any
) -> tuple[SparseLayer, Tensor]:
    """Return a layer as it is after an evolution, and the new places; it is not changed."""
    record, (seed, number) = layer.record(), layer.random_state.tolist()
    state = _SharedState(record, zeta, epoch=number, inputs_are_neurons=True, **known)
    rng = stream(seed, "evolution", number)
    slot_map = evolve_layer(record, zeta, rng, rules=rules, state=state)
    return record, torch.from_numpy(slot_map)


def _take_over(
    layer: SparseLinear,
    record: SparseLayer,
    places: Tensor,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    layer.random_state[1] += 1
    if record.topology.indices.ctypes.data == layer.indices.data_ptr():
        return  # nothing was replaced
    stays = places >= 0
    old, new = stays.nonzero().squeeze(1), places[stays].long()

    def moved(tensor: Tensor) -> Tensor:
        result = torch.zeros_like(tensor)
        result[new] = tensor[old]
        return result

    _move_state(layer.values, optimizer, moved)
    layer.replace_(record.topology, record.values)


def _move_state(
    values: nn.Parameter,
    optimizer: torch.optim.Optimizer | None,
    moved: Callable[[Tensor], Tensor],
) -> None:
    if values.grad is not None:
        values.grad = moved(values.grad)
    state = {} if optimizer is None else optimizer.state.get(values, {})
    for name, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == values.shape:
            state[name] = moved(entry)


def _check_optimizer(optimizer: Any, layers: dict[str, SparseLinear]) -> None:
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ParameterError(
            "The 'optimizer' parameter of evolve must be a torch.optim.Optimizer. "
            f"Got {type(optimizer).__name__} instead."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ParameterError(
            "LBFGS keeps vectors of all parameters together, which evolve cannot move. Use another "
            "optimizer, or make a new one after every evolution and call evolve without it."
        )
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, layer in layers.items() if id(layer.values) not in known]
    if missing:
        raise ParameterError(
            f"The 'optimizer' of evolve does not have the values of the layers {missing}. Pass "
            "that which trains them; where there are several, evolve the layers one by one."
        )


def _batch_of(layer: SparseLinear, name: str) -> dict[str, Float32]:
    """Return the inputs and dL/dz that were recorded of a layer."""
    pairs = _recorded.get(layer, [])
    if not _anywhere(bool(pairs)):
        raise ParameterError(
            f"Nothing was recorded of the layer {name!r}. Rules that ask for gradients need a "
            "forward and a backward pass of the model, not compiled, within "
            "largesparse.torch.recording(model); Evolution does it."
        )
    if not pairs:  # other processes of the group have used the layer
        pairs = [(torch.zeros(layer.in_features, 1), torch.zeros(layer.out_features, 1))]
    X, delta = (torch.cat(parts, 1).contiguous() for parts in zip(*pairs, strict=True))
    return {"X": array_of(X), "delta": array_of(delta)}


def _check_group(layers: dict[str, SparseLinear], zeta: float) -> None:
    """Raise where processes of a group evolve other layers: they would wait for each other."""
    if not _is_distributed():
        return
    parts = [
        (layer.in_features, layer.out_features, layer.connections, layer.random_state.tolist())
        for layer in layers.values()
    ]
    digest = hashlib.blake2b(repr((parts, zeta)).encode(), digest_size=7).digest()
    number = int.from_bytes(digest, "big")
    ends = torch.tensor([number, -number])
    torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
    if ends[0] != -ends[1]:
        raise ParameterError(
            "The processes of the group evolve layers of other sizes, seeds or numbers of "
            "evolutions, or with another zeta. Call evolve with the same model in all of them; "
            "DistributedDataParallel makes them equal as it is made."
        )


class _SharedState(RuleState):
    """The state of rules with the gradients of all processes together."""

    def score(self, cells: Int64) -> Float32:
        return _summed(super().score(cells))

    def gradient(self) -> Float32:
        return _summed(super().gradient())


def _summed(array: Float32) -> Float32:
    if _is_distributed():
        torch.distributed.all_reduce(torch.from_numpy(array))
    return array


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _anywhere(is_here: bool) -> bool:
    """Return whether that is so in any process of the group."""
    count = torch.tensor([float(is_here)])
    if _is_distributed():
        torch.distributed.all_reduce(count)
    return bool(count > 0)


@contextmanager
def recording(model: nn.Module) -> Iterator[None]:
    """Keep the inputs and gradients of sparse layers that are computed, for growth by gradient.

    Run forward and backward within it; micro-batches add up. `evolve` uses and forgets them.
    """
    layers = sparse_layers(model).values()
    for layer in layers:
        _recorded.pop(layer, None)
    for layer in layers:
        layer.__dict__["_observe"] = _record
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("_observe", None)


def _record(layer: SparseLinear, x: Tensor, z: Tensor) -> None:
    """Keep x, and dL/dz as it comes."""
    if not z.requires_grad:
        return
    x = _columns(x)

    def keep(gradient: Tensor) -> None:
        _recorded.setdefault(layer, []).append((x, _columns(gradient)))

    z.register_hook(keep)


def _columns(rows: Tensor) -> Tensor:
    """Return a copy, as the rows' memory may be used again."""
    columns = rows.detach().float().reshape(-1, rows.shape[-1]).t()
    return columns.clone(memory_format=torch.contiguous_format)


class Evolution:
    """Calls `evolve` every n steps: call `step()` after every `optimizer.step()`.

    Parameters
    ----------
    model, optimizer, growth, drop, growth_candidates, drop_factor, keep_active
        As of `evolve`. Rules that ask for gradients record the step before an evolution.
    zeta : float in [0, 1)
        May be changed at any time.
    every : int
        Steps between evolutions.
    until : int, optional
        The last step that may evolve; later ones let the weights settle.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        zeta: float = 0.3,
        every: int = 100,
        until: int | None = None,
        growth: str | Rule = "random",
        drop: str | Rule = "set",
        growth_candidates: float = 4.0,
        drop_factor: float = 1.0,
        keep_active: bool = False,
    ) -> None:
        check_range("zeta", zeta, "Evolution", low=0, high=1, high_open=True)
        check_range("every", every, "Evolution", low=1, integer=True)
        if until is not None:
            check_range("until", until, "Evolution", low=0, integer=True)
        rules = Rules.of(drop, growth, "evolve", keep_active=keep_active)
        self._needs_gradient = rules.needs_gradient
        _factors("Evolution", growth_candidates, drop_factor)
        _check_optimizer(optimizer, _trained_layers(model))
        self.model, self.optimizer, self.growth, self.drop = model, optimizer, growth, drop
        self.growth_candidates, self.drop_factor = growth_candidates, drop_factor
        self.keep_active = keep_active
        self.zeta, self.every, self.until, self.steps = zeta, every, until, 0
        self._recording = ExitStack()
        self._prepare()

    def _is_due(self, step: int) -> bool:
        return step % self.every == 0 and (self.until is None or step <= self.until)

    def _prepare(self) -> None:
        if self._needs_gradient and self._is_due(self.steps + 1):
            self._recording.enter_context(recording(self.model))

    def step(self) -> bool:
        """Count a step; evolve if it is due, and return whether it was."""
        self.steps += 1
        self._recording.close()
        due = self._is_due(self.steps)
        if due:
            options = {name: getattr(self, name) for name in RULE_OPTIONS}
            evolve(self.model, self.zeta, optimizer=self.optimizer, **options)
        self._prepare()
        return due

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"steps": self.steps, "zeta": self.zeta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        check_range("steps", state["steps"], "Evolution", low=0, integer=True)
        check_range("zeta", state["zeta"], "Evolution", low=0, high=1, high_open=True)
        self.steps, self.zeta = state["steps"], state["zeta"]
        self._recording.close()
        self._prepare()
