"""The process that keeps torch loaded inside bubblewrap, and forks a process for each exercise.

    python -m segcourse.grading.supervisor SETTINGS    with a socket to the grader as stdin

The grader hands it a connection, and it forks a process that serves one exercise of one student
over it (`segcourse.grading.worker`). That process gets namespaces of its own inside the sandbox:
it sees no other process, its folder to write to is empty and goes with it, and when it ends, all
that it has started ends, too. So one student leaves nothing to the next, and none can reach this
process, which never knew anything that is hidden. Where the system grants no such namespaces, one
process is served, and the grader starts another sandbox for the next.

Linux alone has what this needs.
"""

import contextlib
import ctypes
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segcourse.grading import seccomp
from segcourse.grading.wire import Channel, WireError
from segcourse.grading.worker import LIMIT, Student, limit, preload, silence

WATCH = 0.05  # seconds between two looks at what memory a student holds
DUMPABLE, SUBREAPER = 4, 36  # what prctl sets
NAMESPACES = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# ... of mounts, of IPC, of users, of processes, of the network
READ_ONLY, NO_SETUID, NO_DEVICES = 1, 2, 4  # flags of mount
C = ctypes.CDLL(None, use_errno=True)


def supervise(settings: dict[str, Any]) -> None:
    """Serve until the grader is gone, or once where processes cannot be kept apart.

    Args:
        settings: "user", whose number to run under, or None to stay; "memory", the most bytes that
            a student may hold; "seconds", of CPU time.
    """
    if settings["user"] is not None:
        os.setgroups([])
        os.setresgid(*[settings["user"]] * 3)
        os.setresuid(*[settings["user"]] * 3)
    control = socket.socket(fileno=os.dup(0))
    silence()
    preload()
    linux("prctl", SUBREAPER, 1, 0, 0, 0)
    linux("prctl", DUMPABLE, 0, 0, 0, 0)  # its files in /proc are nobody's then
    address_space = measure("self", "VmSize") + settings["memory"]
    own = measure("self", "RssAnon")  # each fork starts with this much, which costs nothing
    alone = can_fork_alone()
    report(control, reusable=alone)
    while True:
        command, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not command:
            return
        (handle,) = handles

        def serve(handle: int = handle) -> None:
            os.closerange(3, handle)
            os.closerange(handle + 1, os.sysconf("SC_OPEN_MAX"))
            limit(settings["seconds"], address_space)
            Student(Channel(socket.socket(fileno=handle), LIMIT)).serve()

        student = fork(serve, alone)
        os.close(handle)
        greedy = False
        while not greedy and not select.select([control], [], [], WATCH)[0]:
            greedy = used(own) > settings["memory"]
        if greedy:
            os.kill(student, signal.SIGKILL)  # the grader notices, and asks how it ended
        patience = 0.5 if control.recv(1) == b"?" else 0.0
        report(control, code=end(student, patience), greedy=greedy)
        if not alone:
            return


def report(control: socket.socket, **facts: Any) -> None:
    control.sendall(json.dumps(facts).encode() + b"\n")


def fork(run: Callable[[], None], alone: bool) -> int:
    """The number of a new process that runs a function, in namespaces of its own if `alone`.

    Raises:
        OSError: this system grants no such namespaces.
    """

    def child() -> None:
        code = 1
        try:
            os.setsid()
            if alone:
                furnish()
            seccomp.refuse(C)
            run()
            code = 0
        except (WireError, OSError):
            pass  # the grader has hung up
        finally:
            os._exit(code)

    if not alone:
        return os.fork() or child()
    read, write = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            user, group = os.getuid(), os.getgid()
            linux("prctl", DUMPABLE, 1, 0, 0, 0)  # else these files are not its own
            linux("unshare", NAMESPACES)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
            number = os.fork() or child()  # the first process of the new namespace
            os.write(write, str(number).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(between, 0)
    with os.fdopen(read) as answer:
        number = answer.read()
    if not number:
        raise OSError("no namespaces inside the sandbox")
    return int(number)


def furnish() -> None:
    """An empty folder to write to and no /proc; then no right to change that any more."""
    scratch = os.environ["TMPDIR"].encode()
    room = b"size=64m,nr_inodes=4k,mode=1777"
    linux("mount", b"tmpfs", scratch, b"tmpfs", NO_SETUID | NO_DEVICES, room)
    linux("mount", b"tmpfs", b"/proc", b"tmpfs", READ_ONLY, b"size=4k")
    version, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    linux("capset", version, none)


def linux(name: str, *args: Any) -> None:
    """A call of the C library that Python does not offer; OSError if it fails."""
    if getattr(C, name)(*args) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def can_fork_alone() -> bool:
    try:
        return os.waitpid(fork(lambda: None, True), 0)[1] == 0
    except OSError:
        return False


def end(student: int, patience: float) -> int:
    """How a process ended, which is killed after some seconds: its code, or minus the signal."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        number, status = os.waitpid(student, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(student, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(student, 0)[1])


def used(own: int) -> int:
    """Bytes that all processes of the student hold: all in the sandbox but the first and this."""
    others = {int(n) for n in os.listdir("/proc") if n.isdigit()} - {1, os.getpid()}
    total = 0
    for number in others:
        with contextlib.suppress(OSError):  # it has ended
            total += max(0, measure(number, "RssAnon") - own)
    return total


def measure(process: int | str, what: str) -> int:
    """Bytes that /proc names for a process; 0 for one that has just ended."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    supervise(json.loads(sys.argv[1]))
