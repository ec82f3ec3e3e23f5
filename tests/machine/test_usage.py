"""What a process uses of the machine."""

import threading

from largesparse.machine.usage import let_threads_sleep


def test_waiting_for_threads_that_compute():
    end = threading.Event()

    def spin():
        while not end.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert not let_threads_sleep(limit=0.1)
    finally:
        end.set()
        thread.join()
    assert let_threads_sleep(limit=10.0)
