"""System calls that a student's process does not need, and that Linux then refuses.

They would let it hold memory that no process is charged for, leave something in the kernel for the
next student, look into other processes, or try doors of the kernel that few programs open.
"""

import ctypes
import errno
import platform
import struct

# Numbers on x86_64 and on aarch64.
CALLS = {
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
CLONE, CLONE3, MMAP = (56, 220), (435, 435), (9, 222)
NEW_USERS = 0x10000000  # a flag of clone
SHARED = 1  # a flag of mmap: such memory outlives the process that filled it
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

LOAD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, FOURTH_ARGUMENT = 0, 4, 16, 40  # where the filter finds them
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000  # the last with the error's number


def program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter: code, steps to skip where a comparison holds, where it does not, value."""
    column, architecture = MACHINES[machine]
    refused = [numbers[column] for numbers in CALLS.values()]
    # The ends stand last; each step says how far they are.
    steps: list[tuple[int, str | int, str | int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 0, "kill", architecture),
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_AT_LEAST, "refuse", 0, 0x40000000),  # the x32 numbers of x86_64
        *((JUMP_IF_EQUAL, "refuse", 0, number) for number in refused),
        (JUMP_IF_EQUAL, 0, 2, MMAP[column]),
        (LOAD, 0, 0, FOURTH_ARGUMENT),
        (JUMP_IF_BITS, "refuse", "allow", SHARED),
        (JUMP_IF_EQUAL, "absent", 0, CLONE3[column]),  # its flags are out of sight
        (JUMP_IF_EQUAL, 0, "allow", CLONE[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_BITS, "refuse", "allow", NEW_USERS),
    ]
    ends = {
        "allow": ALLOW,
        "refuse": FAIL | errno.EPERM,
        "absent": FAIL | errno.ENOSYS,
        "kill": KILL,
    }
    place = {name: len(steps) + i for i, name in enumerate(ends)}
    return [
        (code, *(x if isinstance(x, int) else place[x] - i - 1 for x in skips), value)
        for i, (code, *skips, value) in enumerate(steps)
    ] + [(RETURN, 0, 0, value) for value in ends.values()]


def refuse(libc: ctypes.CDLL) -> None:
    """Install the filter in this process and all that it will start, where we know the machine."""
    if platform.machine() not in MACHINES:
        return
    code = b"".join(struct.pack("HBBI", *step) for step in program(platform.machine()))
    held = ctypes.create_string_buffer(code)
    filled = struct.pack("HP", len(code) // 8, ctypes.addressof(held))
    SET_SECCOMP, FILTER = 22, 2
    if libc.prctl(SET_SECCOMP, FILTER, filled, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
