"""Two pipes as one socket, which has deadlines for reading and writing on every system."""

import os
import socket
import threading
from collections.abc import Callable


def over_pipes(read: int, write: int, closed: Callable[[], None] = lambda: None) -> socket.socket:
    """A socket whose other end is joined to two file descriptors, which belong to it from now on.

    `closed` is called, in a thread, when nothing more comes in.
    """
    near, far = socket.socketpair()

    def inward() -> None:
        while data := os.read(read, 1 << 16):
            far.sendall(data)

    def outward() -> None:
        while data := far.recv(1 << 16):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(write, rest) :]

    def run(pump: Callable[[], None], pipe: int, half: int, then: Callable[[], None]) -> None:
        try:
            pump()
            far.shutdown(half)
        except OSError:
            pass  # one of the ends is closed
        os.close(pipe)
        then()

    for arguments in (
        (inward, read, socket.SHUT_WR, closed),
        (outward, write, socket.SHUT_RD, lambda: None),
    ):
        threading.Thread(target=run, args=arguments, daemon=True).start()
    return near
