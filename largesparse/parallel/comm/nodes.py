"""Which ranks share a node, and how many cores each node has."""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import check_range
from ...machine.control_groups import cpu_quota
from ...machine.threads import core_numbers
from .collectives import barrier, broadcast, gather


class Host(NamedTuple):
    """What tells the machine of a process from others."""

    name: str
    machine: str  # changes at every start of the operating system
    network: str  # the network namespace: two of them on a machine are as two hosts

    @classmethod
    def here(cls) -> Host:
        """Return the host of this process."""
        name = socket.gethostname()
        try:
            machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            return cls(name, machine, os.readlink("/proc/self/ns/net"))
        except OSError:  # not Linux
            return cls(name, name, "")


@dataclass(frozen=True)
class Nodes:
    """The nodes of a run. Ranks of one node can share memory.

    Nodes that one machine is split into divide its cores.
    """

    node: list[int]  # of every rank; nodes are numbered by their first rank
    cores: list[int]  # that the ranks of a node may run on together, at least 1
    # what tells the machine of every node from others
    machines: list[str] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, comm: Any, ranks_per_node: int | None = None) -> Nodes:
        """Find the nodes; every rank calls it.

        `ranks_per_node` splits every machine into simulated nodes of so many consecutive ranks.
        """
        if ranks_per_node is not None:
            check_range("ranks_per_node", ranks_per_node, "Nodes", low=1, integer=True)
        mine = Host.here(), _shares_memory_with(comm), core_numbers(), cpu_quota()
        found = gather(comm, mine)
        nodes = None
        if found is not None:
            hosts, firsts, cores, quotas = zip(*found, strict=True)
            nodes = cls._split(hosts, firsts, cores, ranks_per_node, quotas)
        return broadcast(comm, nodes)

    @classmethod
    def _split(cls, hosts, firsts, cores, ranks_per_node: int | None, quotas=()) -> Nodes:
        numbers: dict[Any, int] = {}
        before: Counter[Any] = Counter()
        node = []
        for key in zip(hosts, firsts, strict=True):
            part = before[key] // ranks_per_node if ranks_per_node else 0
            before[key] += 1
            node.append(numbers.setdefault((key, part), len(numbers)))
        machines = [host.machine for (host, _), _ in numbers]
        usable: list[set[tuple[str, int]]] = [set() for _ in numbers]
        for number, host, mine in zip(node, hosts, cores, strict=True):
            usable[number] |= {(host.machine, core) for core in mine}
        users = Counter(core for mine in usable for core in mine)
        shares = [sum((Fraction(1, users[core]) for core in mine), Fraction(0)) for mine in usable]
        limits: dict[str, int] = {}  # cores' worth of time that control groups leave of a machine
        for host, quota in zip(hosts, quotas, strict=False):
            if quota is not None:
                limits[host.machine] = max(math.ceil(quota), limits.get(host.machine, 0))
        totals = Counter(machine for machine, _ in users)
        for k, machine in enumerate(machines):
            if limits.get(machine, totals[machine]) < totals[machine]:
                shares[k] *= Fraction(limits[machine], totals[machine])
        return cls(node, [max(1, int(share)) for share in shares], machines)

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.cores)

    def ranks(self, node: int) -> list[int]:
        """Return the ranks of a node, ascending."""
        return [rank for rank, other in enumerate(self.node) if other == node]

    def beside(self, node: int) -> list[int]:
        """Return the nodes on the machine of a node, itself included."""
        if not self.machines:
            return [node]
        return [k for k, machine in enumerate(self.machines) if machine == self.machines[node]]

    def leader(self, node: int) -> int:
        """Return the lowest rank of a node."""
        return self.node.index(node)


def _shares_memory_with(comm: Any) -> int:
    """Return the lowest rank that MPI says this one can share memory with."""
    if comm.size == 1:
        return 0
    from mpi4py import MPI

    barrier(comm)  # the split spins, so all begin it together
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = local.allreduce(comm.rank, op=MPI.MIN)
    local.Free()
    return first
