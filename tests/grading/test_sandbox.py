"""The sandbox: what is inside, what is not, and that its absence would be noticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hidden.cheats import notebook

from segcourse.grading import sandbox
from segcourse.grading.judge import Failed, Judge, RemoteCall
from segcourse.grading.sandbox import Bubblewrap, Limits, Piped, SandboxError

HIDDEN = ROOT / "tests" / "hidden"
LIMITS = Limits(memory=1 << 30, seconds=30)

pytestmark = pytest.mark.usefixtures("bubblewrap")


@pytest.fixture(scope="module")
def box():
    box = Bubblewrap(LIMITS)
    yield box
    box.close()


def run(box, body):
    """What a student's code finds out: the value of `found` after these statements."""
    cell = "# exercise: look\nimport json, torch\ndef look():\n    "
    cell += body.strip().replace("\n", "\n    ")
    cell += "\n    return torch.tensor(list(json.dumps(found).encode()))"
    call = RemoteCall(box, "look", {"a.ipynb": notebook(cell)}, timeout=60)
    try:
        return json.loads(bytes(call().tolist()))
    finally:
        call.end()


def test_only_the_package_is_inside_and_of_the_grader_only_what_works_there(box):
    files = run(
        box,
        """
import os
found = [os.path.join(a, f) for a, _, fs in os.walk("/course") for f in fs]
""",
    )
    files = {str(Path(file).relative_to("/course")) for file in files}
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "segcourse"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    outside = {"command", "judge", "pool", "report", "sandbox", "submissions"}
    outside = {f"segcourse/grading/{name}.py" for name in outside}
    assert outside < set(tracked)
    assert files == set(tracked) - outside


def test_the_root_of_the_file_system_holds_nothing_else(box):
    look = "import os\nfound = {p: os.listdir(p) for p in ('/', '/scratch', '/proc', '/etc')}"
    found = run(box, look)
    usual = {"course", "dev", "etc", "proc", "scratch", *sandbox.SYSTEM}
    python = {Path(folder).parts[1] for folder in (sys.prefix, sys.base_prefix, sys.executable)}
    assert set(found["/"]) <= usual | python
    assert found["/scratch"] == found["/proc"] == [] and found["/etc"] == ["ld.so.cache"]


def test_libraries_can_be_loaded_late(box):
    assert run(box, "import matplotlib, wave\nfound = matplotlib.get_backend()").lower() == "agg"


@pytest.mark.parametrize(
    "path", [ROOT / "tests", HIDDEN / "draw.py", ROOT / ".git", ROOT / "notebooks", "/etc/passwd"]
)
def test_a_path_outside_is_not_there(box, path):
    assert run(box, f"import os\nfound = os.path.lexists({str(path)!r})") is False


def test_nothing_can_be_written_but_a_little_to_one_folder(box):
    found = run(
        box,
        """
import os
found = []
for folder in ("/", "/course", "/usr", "/dev", "/dev/shm", "/etc", "/proc", "/tmp", "/scratch"):
    try:
        open(folder + "/mine", "w").write("x")
        found.append(folder)
    except OSError:
        pass
""",
    )
    assert found == ["/scratch"]
    assert run(box, "import os\nfound = os.path.exists('/scratch/mine')") is False
    body = """
import os
try:
    for n in range(99):
        open(f"/scratch/{n}", "wb").write(b"x" * (1 << 23))
except OSError:
    found = n
"""
    assert 6 <= run(box, body) <= 9


def test_the_process_is_nobody_and_may_nothing(box):
    found = run(
        box,
        """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
def error(name, *args):
    ctypes.set_errno(0)
    getattr(libc, name)(*args)
    return ctypes.get_errno()
found = {
    "user": os.getuid(), "groups": os.getgroups(), "process": os.getpid(),
    "no_new_privileges": libc.prctl(39, 0, 0, 0, 0),
    "capabilities": [n for n in range(41) if libc.prctl(47, 1, n, 0, 0) == 1],
    "errors": [error("mount", b"x", b"/scratch", b"tmpfs", 0, None), error("umount2", b"/proc", 2),
               error("chroot", b"/scratch"), error("unshare", 0x10000000),
               error("shmget", 1, 4096, 0o1600), error("memfd_create", b"x", 0),
               error("mmap", None, 4096, 3, 0x21, -1, 0), error("ptrace", 0, 0, 0, 0)],
    "limits": [resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in ("CPU", "NPROC")],
}
""",
    )
    expected = sandbox.USER if os.getuid() == 0 else os.getuid()
    assert found["user"] == expected and found["process"] == 1
    assert found["no_new_privileges"] == 1 and found["capabilities"] == []
    assert set(found["errors"]) == {1}  # EPERM
    assert found["limits"] == [[30, 30], [16, 16]]


def test_nothing_of_the_graders_environment_comes_along(box, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    fresh = Bubblewrap(LIMITS)
    try:
        found = run(fresh, "import os\nfound = dict(os.environ)")
    finally:
        fresh.close()
    assert set(found) <= {*sandbox.ENVIRONMENT, "PWD", "LC_CTYPE"}


def test_the_network_is_not_there(box):
    found = run(
        box,
        """
import socket
found = []
for place in (("127.0.0.1", 22), ("1.1.1.1", 53), ("example.org", 80)):
    try:
        socket.create_connection(place, timeout=1)
    except OSError as error:
        found.append(type(error).__name__)
found.append(socket.if_nameindex())
""",
    )
    assert len(found) == 4 and found[-1] == [[1, "lo"]]


# The probe


def judge(box):
    return Judge(HIDDEN, b"0" * 16, 60, box)


def test_the_probe_finds_no_fault_with_bubblewrap(box):
    judge(box).probe([HIDDEN / "draw.py", Path("/etc/passwd")])


def test_without_a_sandbox_the_probe_sees_each_fault():
    hidden = HIDDEN / "draw.py"
    with pytest.raises(SandboxError) as error:
        judge(Piped("none", LIMITS)).probe([hidden])
    for fault in (f"sees {hidden}", "reaches the network", "can send signals to the grader"):
        assert fault in str(error.value)


def test_the_probe_sees_that_a_wall_is_missing(monkeypatch):
    command = [*sandbox._bubblewrap(), "--ro-bind", "/etc", "/etc"]
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: command)
    box = Bubblewrap(LIMITS)
    try:
        with pytest.raises(SandboxError, match="does not hold: code in it sees /etc/passwd$"):
            judge(box).probe([Path("/etc/passwd")])
    finally:
        box.close()


# Beginning and end


def test_a_sandbox_serves_many_processes_and_none_finds_the_last(box):
    for _ in range(3):
        assert run(box, "import os\nfound = os.getpid()") == 1
    first = box.process.pid
    assert run(box, "found = 0") == 0 and box.process.pid == first and box.reusable


def test_a_sandbox_that_cannot_keep_processes_apart_is_used_once(monkeypatch):
    """As on systems that grant no namespaces inside of namespaces."""
    fork = "segcourse.grading.supervisor.can_fork_alone = lambda: False"
    run_it = "segcourse.grading.supervisor.supervise(json.loads(sys.argv[1]))"
    code = f"import json, sys, segcourse.grading.supervisor; {fork}; {run_it}"
    popen = subprocess.Popen

    def patched(command, **options):
        at = command.index("-m")
        return popen([*command[:at], "-c", code, *command[at + 2 :]], **options)

    monkeypatch.setattr(sandbox.subprocess, "Popen", patched)
    box = Bubblewrap(LIMITS)
    try:
        processes = []
        for _ in range(2):
            processes.append(box.process.pid)
            assert run(box, "import os\nfound = os.getpid()") > 1
            assert run(box, "import os\nopen('/scratch/x', 'x')\nfound = 1") == 1
        assert len({*processes, box.process.pid}) == 3
    finally:
        box.close()


def test_a_sandbox_that_is_gone_is_told_and_can_be_renewed():
    box = Bubblewrap(LIMITS)
    try:
        assert run(box, "found = 1") == 1
        box.process.kill()
        with pytest.raises(SandboxError, match="bubblewrap ended"):
            run(box, "found = 1")
        box.renew()
        assert run(box, "found = 1") == 1
    finally:
        box.close()


def test_a_sandbox_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: ["bwrap", "--ro-bind", "/nowhere", "/x"])
    box = Bubblewrap(LIMITS)
    try:
        with pytest.raises(SandboxError, match="Can't find source path /nowhere"):
            box.open()
    finally:
        box.close()


def test_find_names_what_is_missing(monkeypatch, tmp_path):
    assert sandbox.find() == "bubblewrap"
    for name, text in (("bwrap", "echo no namespaces >&2; exit 1"), ("podman", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError) as error:
        sandbox.find()
    assert [line.strip() for line in str(error.value).splitlines()] == [
        "bubblewrap: installed, but it does not run: no namespaces",
        "docker: not installed",
        "podman: installed, but",
    ]


def test_a_private_path_among_the_libraries_is_noticed():
    assert sandbox.exposed(HIDDEN, "bubblewrap") is None
    inside = Path(sys.prefix, "hidden")
    assert sandbox.exposed(inside, "bubblewrap") == Path(sys.prefix).resolve()
    assert sandbox.exposed(Path("/usr/share/x"), "bubblewrap") == Path("/usr")
    assert sandbox.exposed(inside, "docker") is None


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A stand-in for Docker, which keeps nothing apart; the words that it was told."""
    log = tmp_path / "log"
    (tmp_path / "docker").write_text(
        f"""#!/bin/sh
echo "$@" >> {log}
test "$1" = run || exit 0
while test "$1" != python; do shift; done
shift
exec {sys.executable} "$@"
"""
    )
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lambda: [line.split() for line in log.read_text().splitlines()]


def test_each_process_has_a_container_of_its_own_which_is_removed(docker):
    sandbox.prepare("docker")  # the image is there
    box = Piped("docker", LIMITS)
    assert run(box, "found = 1") == 1
    with pytest.raises(Failed, match=r"ended its process \(exit code 7\)"):
        run(box, "import os\nos._exit(7)")
    with pytest.raises(Failed, match="held more than 1024 MB"):
        run(box, "import os\nos._exit(128 + 9)")  # as Docker tells of the kernel's kill
    inspected, *rest = docker()
    assert inspected == ["image", "inspect", sandbox.image()]
    names = []
    for started, removed in zip(rest[::2], rest[1::2], strict=True):
        options = " ".join(started)
        for words in (
            "run --rm --interactive",
            "--network none",
            "--read-only",
            "--memory 1024m --memory-swap 1024m",
            "--pids-limit",
            "--cap-drop ALL --security-opt no-new-privileges",
            f"{sandbox.image()} python -sB -m segcourse.grading.worker",
        ):
            assert words in options
        assert "--volume" not in options and "--mount" not in options
        names.append(started[started.index("--name") + 1])
        assert removed == ["rm", "--force", names[-1]]
    assert len(set(names)) == 3


def test_a_container_that_does_not_hold_is_found_out(docker):
    with pytest.raises(SandboxError, match="does not hold: code in it sees .* reaches the net"):
        judge(Piped("docker", LIMITS)).probe([HIDDEN / "draw.py"])


def test_the_image_of_a_container_holds_the_same_files_and_no_others():
    files = {path.relative_to(ROOT).as_posix() for path in sandbox.inside()}
    assert "segcourse/grading/worker.py" in files and "segcourse/filters.py" in files
    assert "segcourse/grading/judge.py" not in files
    assert not any("hidden" in file or file.endswith(".pyc") for file in files)
    assert "torch==" in sandbox.dockerfile() and "+cpu" not in sandbox.dockerfile()
