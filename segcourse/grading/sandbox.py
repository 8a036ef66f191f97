"""Where students' code runs: in bubblewrap, in a container, or, told so in words, in no sandbox.

Inside are the interpreter, its libraries, and `segcourse/` without `grading/`, but for the files
in `INSIDE`. All of it is read-only. There is no network, and nothing of the grader's environment.

A sandbox serves one student's process at a time, which must end before the next is opened:

    open    a connection to a new process (`segcourse.grading.worker`)
    end     ends that process, and says how it went
    renew   ends everything, and starts again
    close   ends everything
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from segcourse.grading.pipes import over_pipes

PACKAGE = Path(__file__).resolve().parents[1]
INSIDE = ("__init__", "notebook", "pipes", "seccomp", "supervisor", "wire", "worker")
COURSE = Path("/course")  # what holds the package in a sandbox
SCRATCH = "/scratch"  # where a student may write, a little
USER = 61000  # whom root becomes; Linux systems leave this number to nobody
START = 120.0  # seconds that a sandbox may take to start, on a busy machine
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "LANG": "C.UTF-8",
    "PYTHONPATH": str(COURSE),
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "SEGCOURSE_PRESET": "cpu",
    "TQDM_DISABLE": "1",
}


class SandboxError(Exception):
    """A sandbox does not start, does not hold, or is gone without a student's doing."""


@dataclass(frozen=True)
class Limits:
    """What a student's process may use at most."""

    memory: int  # bytes
    seconds: int  # of CPU time


@dataclass(frozen=True)
class Ended:
    """How a student's process ended: its exit code, or minus the signal that killed it."""

    code: int
    greedy: bool = False  # it was killed because it held too much memory


class Bubblewrap:
    """Namespaces, in which a supervisor keeps torch loaded and forks the students' processes."""

    name = "bubblewrap"

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._start()

    def open(self) -> socket.socket:
        """A connection to a new process; SandboxError if the sandbox does not run."""
        if self.reusable is None:
            self.reusable = self._told()["reusable"]
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.control, [b"!"], [theirs.fileno()])
            except OSError:
                raise self._gone() from None
        return ours

    def end(self, hung_up: bool) -> Ended:
        """End the process. `hung_up` says that it has closed its connection, so it may be over."""
        try:
            self.control.sendall(b"?" if hung_up else b"x")
        except OSError:
            raise self._gone() from None
        ended = Ended(**self._told())
        if not self.reusable:
            self.renew()
        return ended

    def renew(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _start(self) -> None:
        user = USER if os.getuid() == 0 else None
        settings = json.dumps({**dataclasses.asdict(self.limits), "user": user})
        module = "segcourse.grading.supervisor"
        self.control, theirs = socket.socketpair()
        self.log = tempfile.TemporaryFile()
        with theirs:
            self.process = subprocess.Popen(
                [*_bubblewrap(), "--", sys.executable, "-sB", "-m", module, settings],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=self.log,
                env=ENVIRONMENT,
                start_new_session=True,  # so that Ctrl-C does not reach it
            )
        self.reusable: bool | None = None  # known when it runs

    def _told(self) -> dict:
        """The next line from the supervisor."""
        line = b""
        self.control.settimeout(START)
        while not line.endswith(b"\n"):
            try:
                part = self.control.recv(4096)
            except OSError:
                part = b""
            if not part:
                raise self._gone()
            line += part
        return json.loads(line)

    def _gone(self) -> SandboxError:
        self.process.kill()
        self.process.wait()
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip()[-2000:]
        return SandboxError(f"bubblewrap ended: {said or 'it gave no reason'}")


class Piped:
    """A process that is started for each opening: in a container, or with no sandbox ("none")."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.container = ""
        self.process: subprocess.Popen | None = None

    def open(self) -> socket.socket:
        """A connection to a new process."""
        settings = json.dumps({"seconds": self.limits.seconds})
        worker = ["-sB", "-m", "segcourse.grading.worker", settings]
        if self.name == "none":
            command = [sys.executable, *worker]
            environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(PACKAGE.parent)}
            environment |= {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        else:
            self.container = f"segcourse-{secrets.token_hex(8)}"
            command = [*_container(self.name, self.container, self.limits), "python", *worker]
            environment = None
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        with self.process.stdout as read, self.process.stdin as write:
            return over_pipes(os.dup(read.fileno()), os.dup(write.fileno()))

    def end(self, hung_up: bool) -> Ended:
        """End the process; `hung_up` as for `Bubblewrap`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10.0 if hung_up else 0.0)
        by_itself = self.process.poll() is not None
        self.close()
        code = self.process.returncode
        if self.name == "none":
            return Ended(code)
        code = 128 - code if code > 128 else code  # as a shell tells of signals
        return Ended(code, greedy=by_itself and code == -9)

    def renew(self) -> None:
        """Nothing to do: each process is new."""

    def close(self) -> None:
        if self.process is None:
            return
        if self.name != "none":
            subprocess.run([self.name, "rm", "--force", self.container], capture_output=True)
        elif hasattr(os, "killpg"):  # not on Windows
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


Sandbox = Bubblewrap | Piped


def make(name: str, limits: Limits) -> Sandbox:
    """A sandbox by the name that `find` gives, or by "none"."""
    return Bubblewrap(limits) if name == "bubblewrap" else Piped(name, limits)


def find() -> str:
    """The name of the first sandbox that works on this machine.

    Raises:
        SandboxError: none does. The message has a line for each, which says why.
    """
    faults = []
    for name, check in (
        ("bubblewrap", _check_bubblewrap),
        ("docker", _check_container),
        ("podman", _check_container),
    ):
        fault = check(name)
        if fault is None:
            return name
        faults.append(f"  {name}: {fault}")
    raise SandboxError("\n".join(faults))


def prepare(name: str) -> None:
    """What a sandbox needs once before the first is made: a container needs its image."""
    if name not in ("docker", "podman"):
        return
    if subprocess.run([name, "image", "inspect", image()], capture_output=True).returncode == 0:
        return
    print("Building the image of the sandbox: this happens once, and downloads PyTorch.")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(dockerfile())
        for file in inside():
            copy = Path(folder, file.relative_to(PACKAGE.parent))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        built = subprocess.run([name, "build", "--tag", image(), folder])
    if built.returncode != 0:
        raise SandboxError(f"{name} could not build the image of the sandbox")


def exposed(private: Path, name: str) -> Path | None:
    """The folder that a sandbox shows and that holds this path, if there is one."""
    shown = [folder.resolve() for folder in _shown()] if name == "bubblewrap" else []
    return next((folder for folder in shown if private.resolve().is_relative_to(folder)), None)


def inside() -> list[Path]:
    """The files of the package that a sandbox holds."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    grading = PACKAGE / "grading"
    return sorted(p for p in files if grading not in p.parents or p.stem in INSIDE)


# ---------------------------------------------------------------------------------------------
# bubblewrap
# ---------------------------------------------------------------------------------------------

SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "etc/ld.so.cache")  # often links to usr


def _shown() -> list[Path]:
    """What a sandbox shows: the system's libraries, Python, and the libraries beside torch."""
    system = [Path("/", name) for name in SYSTEM]
    shown = [path for path in system if path.exists() and not path.is_symlink()]
    python = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]]
    for path in (*python, Path(importlib.util.find_spec("torch").origin).parents[1]):
        if not any(path.is_relative_to(other) for other in shown):
            shown.append(path)
    return shown


def _bubblewrap() -> list[str]:
    """The command that runs what is added to it in a sandbox."""
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
    command += [f"--unshare-{what}" for what in ("ipc", "pid", "net", "uts", "cgroup-try")]
    if os.getuid() == 0:  # the supervisor becomes `USER`
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    command += ["--perms", "1777", "--size", str(1 << 26), "--tmpfs", SCRATCH]
    made = {Path("/")}

    def show(path: Path, place: Path) -> None:
        for above in reversed(place.parents):
            if above not in made:  # bubblewrap itself would make it for root alone
                command.extend(["--perms", "0755", "--dir", str(above)])
                made.add(above)
        command.extend(["--ro-bind", str(path), str(place)])

    for path in _shown():
        show(path, path)
        if path in PACKAGE.parents:  # the package is installed, and `grading/` with it
            command += ["--tmpfs", str(PACKAGE), "--remount-ro", str(PACKAGE)]
    for link in [path for name in SYSTEM if (path := Path("/", name)).is_symlink()]:
        command += ["--symlink", os.readlink(link), str(link)]
    for path in inside():
        show(path, COURSE / path.relative_to(PACKAGE.parent))
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/"]


def _check_bubblewrap(_: str) -> str | None:
    """Why it cannot be used."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if shutil.which("bwrap") is None:
        return "not installed"
    command = [*_bubblewrap(), "--", sys.executable, "-sBc", ""]
    run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if run.returncode == 0:
        return None
    return f"installed, but it does not run: {run.stderr.strip()[-300:]}"


# ---------------------------------------------------------------------------------------------
# Docker and Podman
# ---------------------------------------------------------------------------------------------


def dockerfile() -> str:
    """An image with this Python, or the nearest on Linux, and the libraries of the course."""
    major, minor, _ = platform.python_version_tuple()
    versions = [
        f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        for name in ("torch", "numpy", "matplotlib", "tqdm")
    ]
    environment = [f"{key}={value}" for key, value in ENVIRONMENT.items() if key != "PATH"]
    return (
        f"FROM docker.io/library/python:{major}.{minor}-slim\n"
        "RUN pip install --no-cache-dir "
        f"--extra-index-url https://download.pytorch.org/whl/cpu {' '.join(versions)}\n"
        f"ENV {' '.join(environment)}\n"
        f"COPY segcourse {COURSE}/segcourse\n"
    )


def image() -> str:
    """The name of the image, which changes with what is in it."""
    digest = hashlib.sha256(dockerfile().encode())
    for file in inside():
        digest.update(file.read_bytes())
    return f"segcourse-sandbox:{digest.hexdigest()[:12]}"


def _container(program: str, name: str, limits: Limits) -> list[str]:
    """The command that runs what is added to it in a container."""
    memory = f"{limits.memory >> 20}m"
    return [
        *(program, "run", "--rm", "--interactive", "--name", name, "--network", "none"),
        *("--read-only", "--tmpfs", f"{SCRATCH}:size=64m", "--user", f"{USER}:{USER}"),
        *("--memory", memory, "--memory-swap", memory, "--pids-limit", "64", "--cpus", "1"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", image()),
    ]


def _check_container(program: str) -> str | None:
    """Why it cannot be used."""
    if shutil.which(program) is None:
        return "not installed"
    try:
        run = subprocess.run([program, "info"], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "installed, but it does not answer"
    return None if run.returncode == 0 else f"installed, but {run.stderr.strip()[-300:]}"
