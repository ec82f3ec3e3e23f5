"""A small process beside rank 0 that says how the job ended when rank 0 cannot.

A launcher that sees a rank die may kill all others before rank 0 has said a word. The watcher has
a session of its own, so that it outlives them by the moment that a message takes. It reads what
rank 0 wants to be told from standard input, and writes it once rank 0 has ended or has closed that
pipe. If there is nothing, it names the rank whose connection ended first. A zero byte asks it to
say nothing. It sleeps until then.

It is a program of its own, `watcher.py NAME [FD NAME]...`, with the name of rank 0, and the
connections to the other ranks as inherited file descriptors. It imports nothing of the library.
"""

import os
import select
import signal
import sys


def main(own_name: str, *connections: str) -> None:
    """Wait for the end of rank 0 and write the message."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    names = dict(zip(map(int, connections[::2]), connections[1::2], strict=True))
    text = b""
    first = own_name
    events = select.epoll()
    events.register(0, select.EPOLLIN)
    for connection in names:
        # Rank 0 reads them; here only their end counts, and each is reported once.
        events.register(connection, select.EPOLLRDHUP | select.EPOLLONESHOT)
    while True:
        for file, _ in events.poll():  # in the order in which things happened
            if file:
                first = names[file] if first == own_name else first
                continue
            data = os.read(0, 1 << 16)
            text += data
            if not data or b"\0" in data:
                text = text or ended(first).encode()
                if b"\0" not in text:
                    os.write(2, text)
                return


def ended(name: str) -> str:
    """Return the message about a rank that was killed."""
    return (
        f"largesparse: error: {name} ended without a word. "
        "Was it killed, or did its host run out of memory?\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
