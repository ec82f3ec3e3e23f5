"""How the ranks find rank 0 and connect to it by TCP.

Framing and challenge are those of `multiprocessing.connection`. Its `Listener` and `Client` would
wait forever for a peer that says nothing and for an address that does not answer, and the ranks
behind it with them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import struct
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, NamedTuple

import psutil

from ...errors import ParallelError
from ...machine.environment import ADDRESS
from .collectives import barrier, broadcast, gather
from .nodes import Host
from .ranks import raise_together

DIAL_TIMEOUT = 3.0  # seconds for an address to answer
HANDSHAKE_TIMEOUT = 10.0  # seconds for either side to prove that it knows the key
LOOPBACK = "127.0.0.1"
NO_RANK = OSError, EOFError, AuthenticationError  # what a handshake with something else raises


class Peer(NamedTuple):
    """The other end of a connection."""

    connection: Connection
    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"Rank {self.rank} (host {self.host}, pid {self.pid})"


class _Offer(NamedTuple):
    """What rank 0 tells the others by MPI."""

    key: bytes
    host: Host
    addresses: list[str]
    port: int


def connect_all(comm: Any) -> dict[int, Peer]:
    """Connect every rank to rank 0, and return the peers: of rank 0 all others, of others it."""
    here = Host.here()
    hosts = gather(comm, here)
    if hosts is not None:
        return _listen(comm, here, hosts)
    offer: _Offer = broadcast(comm, None)
    peer = _dial(comm.rank, here, offer)
    barrier(comm)  # all have tried
    error = None if peer else ParallelError(_unreachable(here, offer))
    raise_together(comm, error)
    assert peer is not None
    return {0: peer}


def _listen(comm: Any, here: Host, hosts: list[Host]) -> dict[int, Peer]:
    """Accept the others until all have tried."""
    named = os.environ.get(ADDRESS)
    if named is None and all(host == here for host in hosts):
        addresses = [LOOPBACK]
        listener = socket.create_server((LOOPBACK, 0), backlog=comm.size)
    else:
        addresses = [named] if named else _own_addresses()
        listener = _create_open_server(backlog=comm.size)
    offer = _Offer(secrets.token_bytes(32), here, addresses, listener.getsockname()[1])
    broadcast(comm, offer)
    peers: dict[int, Peer] = {}
    with listener:
        tried = comm.Ibarrier()
        finished = False
        while not finished:
            finished = tried.Test()  # those that have connected stand in the backlog by now
            while select.select([listener], [], [], 0.0 if finished else 0.01)[0]:
                with contextlib.suppress(*NO_RANK):
                    steps = (deliver_challenge, answer_challenge)
                    peer = _handshake(listener.accept()[0], offer.key, steps, 0)
                    peers[peer.rank] = peer
    raise_together(comm, None)
    return peers


def _dial(rank: int, here: Host, offer: _Offer) -> Peer | None:
    """Try the addresses of rank 0 in turn."""
    near = [LOOPBACK] if here == offer.host else []
    for address in dict.fromkeys(near + offer.addresses):
        with contextlib.suppress(*NO_RANK):
            dialled = socket.create_connection((address, offer.port), timeout=DIAL_TIMEOUT)
            steps = (answer_challenge, deliver_challenge)
            return _handshake(dialled, offer.key, steps, rank)
    return None


def _handshake(
    connected: socket.socket, key: bytes, steps: tuple[Callable[..., None], ...], rank: int
) -> Peer:
    """Prove to each other that both know the key, and tell who one is."""
    connected.settimeout(None)
    _set_up(connected)
    connection = Connection(connected.detach())
    try:
        _limit_reads(connection, HANDSHAKE_TIMEOUT)
        for step in steps:
            step(connection, key)
        connection.send((rank, socket.gethostname(), os.getpid()))
        peer = Peer(connection, *connection.recv())
        _limit_reads(connection, 0.0)
    except BaseException:
        connection.close()
        raise
    return peer


def _set_up(connected: socket.socket) -> None:
    """Send small messages at once, and notice within 20 s that the other machine is gone."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 6), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15000)  # ms


def _limit_reads(connection: Connection, seconds: float) -> None:
    """Let reads fail after so many seconds; 0 for never."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), 0))


def _create_open_server(backlog: int) -> socket.socket:
    """Listen on all interfaces, by IPv6 too where there is any."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # the kernel knows IPv6, but it is turned off
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
    return socket.create_server(("", 0), backlog=backlog)


def _own_addresses() -> list[str]:
    """Return the addresses of this host at which others may reach it, IPv4 first."""
    up = [name for name, state in psutil.net_if_stats().items() if state.isup]
    addresses = psutil.net_if_addrs()
    found = [each for name in addresses if name in up for each in addresses[name]]
    return [
        address
        for family in (socket.AF_INET, socket.AF_INET6)
        for address in (each.address for each in found if each.family == family)
        if not address.startswith(("127.", "fe80:")) and address != "::1"
    ]


def _unreachable(here: Host, offer: _Offer) -> str:
    tried = ", ".join(offer.addresses) or "no address"
    return (
        f"host {here.name} cannot reach rank 0 on host {offer.host.name} by TCP. Tried: {tried}, "
        f"port {offer.port}. Allow TCP between the hosts, or set {ADDRESS} to an address of rank 0 "
        "that the others can reach."
    )
