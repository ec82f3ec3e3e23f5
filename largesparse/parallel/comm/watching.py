"""How rank 0 starts its watcher and hands it the job's last message."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .connecting import Peer

PROGRAM = Path(__file__).with_name("watcher.py")


class Watch:
    """The watcher of rank 0: see `watcher`. It needs Linux; elsewhere there is none."""

    def __init__(self, peers: Mapping[int, Peer]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not (peers and hasattr(select, "EPOLLRDHUP")):
            return
        own = f"Rank 0 (host {socket.gethostname()}, pid {os.getpid()})"
        files = {peer.connection.fileno(): str(peer) for peer in peers.values()}
        arguments = [word for file, name in files.items() for word in (str(file), name)]
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(PROGRAM), own, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=tuple(files),
                start_new_session=True,
            )

    def tell(self, text: str) -> bool:
        """Let the watcher write a text, nothing if it is empty, and end.

        Return whether it could be done; it can be once.
        """
        process, self._process = self._process, None
        if process is None:
            return False
        try:
            process.communicate(text.encode() or b"\0", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
        return process.wait() == 0
