"""A small process next to rank 0 that says how the job ended when rank 0 cannot.

A launcher that sees a rank die may kill all others before rank 0 has said a word. The watcher has
a session of its own, so that it outlives them by the moment that a message takes. It sleeps until
rank 0 ends or closes the pipe that is the watcher's standard input. Then it writes what came
through the pipe; if that is nothing, it writes what the rank said last whose connection ended
first, or that this rank was killed. A zero byte in the pipe asks it to say nothing.

It is a program of its own, `watcher.py NAME [FD NAME]...`, with the name of rank 0, and the
connections to the other ranks as inherited file descriptors. It imports nothing of the library.
"""

import os
import select
import signal
import socket
import sys

LAST_WORDS = b"\0largesparse\0"  # begins the message of a rank about the error that ends it
KILLED = "ended without a word. Was it killed, or did its host run out of memory?"


def main(own_name: str, *connections: str) -> None:
    """Wait for the end of rank 0 and write the message."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    names = dict(zip(map(int, connections[::2]), connections[1::2], strict=True))
    text = b""
    first = 0  # the connection that ended first; 0 is rank 0's pipe
    events = select.epoll()
    events.register(0, select.EPOLLIN)
    for connection in names:
        # Rank 0 reads them; here only their end counts, and each is reported once.
        events.register(connection, select.EPOLLRDHUP | select.EPOLLONESHOT)
    while True:
        for file, _ in events.poll():  # in the order in which things happened
            if file:
                first = first or file
                continue
            data = os.read(0, 1 << 16)
            text += data
            if b"\0" in data:
                return
            if not data:
                killed = f"largesparse: error: {names.get(first, own_name)} {KILLED}\n"
                os.write(2, text or unread(first) or killed.encode())
                return


def unread(connection: int) -> bytes:
    """Return the last words of a rank that rank 0, which is gone, has not read."""
    data = b""
    if connection:
        with socket.socket(fileno=connection) as rank:
            rank.setblocking(False)
            try:
                while more := rank.recv(1 << 16):
                    data += more
            except OSError:
                pass  # it was killed, or has nothing more to say
    return data.rpartition(LAST_WORDS)[2] if LAST_WORDS in data else b""


if __name__ == "__main__":
    main(*sys.argv[1:])
