"""The trusted side: pytest runs the hidden tests, and a process in the sandbox answers them.

Hidden inputs and right answers stay here. A student's process gets the arguments of one call at a
time, and what it returns is compared here. Where it hangs, ends or talks nonsense, the test fails,
and the next one gets a new process.
"""

import builtins
import contextlib
import copy
import importlib
import os
import re
import signal
import socket
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segcourse.exercises import EXERCISES
from segcourse.exercises.contract import AnswerError, Contract, Test
from segcourse.grading import sandbox
from segcourse.grading.report import plain
from segcourse.grading.sandbox import Limits, SandboxError
from segcourse.grading.wire import Channel, Closed, WireError, packed

LIMIT = 1 << 26  # bytes of arrays in an answer
VIEWS, SHOWN = 500, 1 << 27  # questions to the model in a call, and their bytes
UNUSED = ("cacheprovider", "logging", "terminal", "unraisableexception")  # plugins of pytest
SHARE = 6  # one call may take this part of the time of an exercise
TRIES = 20  # processes that an exercise may use up


class Failed(Exception):
    """A student's process gave no answer. The text continues "your function"."""


class Absent(Exception):
    """There is no function to call. The text says why; nothing hidden was known to it yet.

    `tried` is false where no notebook has a cell of the exercise at all.
    """

    def __init__(self, text: str, tried: bool = True) -> None:
        super().__init__(text)
        self.tried = tried


class Raised(AnswerError):
    """The student's function raised an exception of this kind, at this place of the notebook."""

    def __init__(self, kind: str, place: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.place = kind, place


class Stub(NotImplementedError):
    """The student's function says that it is not written yet."""


# ---------------------------------------------------------------------------------------------
# The student's function, from here
# ---------------------------------------------------------------------------------------------


class RemoteCall:
    """A `Call` of a student's function in the sandbox.

    The process is started when it is needed, and anew after each failure, until the time is over.

    Args:
        box: where it runs.
        exercise: the name of the function.
        notebooks: the student's, by file name.
        timeout: seconds for all calls together; one may take a `SHARE`-th of them.
    """

    def __init__(
        self,
        box: sandbox.Sandbox,
        exercise: str,
        notebooks: Mapping[str, bytes],
        timeout: float,
    ) -> None:
        self.box, self.exercise, self.notebooks, self.timeout = box, exercise, notebooks, timeout
        self.channel: Channel | None = None
        self.seconds = 0.0  # that the student has used
        self.number = 0  # of the last question
        self.processes = 0
        self.notebook, self.remarks = "", []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._answer("call", args, kwargs)[0]

    def gradient(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        value, gradient = self._answer("gradient", args, kwargs)
        return value, gradient

    def start(self) -> None:
        """Start a process and let it load the function; Absent if there is none."""
        if self.processes == TRIES:
            raise Failed(f"had ended {TRIES} processes in earlier tests")
        self.processes += 1
        self.channel = connect(self.box)
        contents = [_array(content) for content in self.notebooks.values()]
        message = {"ask": "load", "exercise": self.exercise, "names": list(self.notebooks)}
        try:
            reply, _ = self._ask(message, contents)
        except Failed as error:
            raise Absent(f"loading your function {error}") from None
        if "fault" in reply:
            self.end()
            raise Absent(plain(reply["fault"], 1000), tried=reply.get("tried") is True)
        self.notebook = plain(reply.get("notebook"))
        remarks = reply.get("remarks")
        self.remarks = [plain(x) for x in remarks[:5]] if isinstance(remarks, list) else []

    def end(self, hung_up: bool = False) -> sandbox.Ended | None:
        """End the process, if there is one."""
        if self.channel is None:
            return None
        self.channel.close()
        self.channel = None
        return self.box.end(hung_up)

    def _answer(self, ask: str, args: tuple, kwargs: dict) -> list[Tensor]:
        args, kwargs = copy.deepcopy((args, kwargs))
        model = next((arg for arg in args if isinstance(arg, nn.Module)), None)
        arrays: list[Tensor] = []
        message = {
            "ask": ask,
            "args": packed(args, arrays),
            "kwargs": {name: packed(value, arrays) for name, value in kwargs.items()},
            "model": None if model is None else described(model, arrays),
        }
        if self.channel is None:
            try:
                self.start()
            except Absent as error:
                raise Failed(str(error)) from None
        reply, found = self._ask(message, arrays, model)
        if "error" in reply:
            raise _error(reply)
        if "other" in reply:
            raise AssertionError(f"a tensor is expected; got {plain(reply['other'], 50)}")
        if len(found) != (2 if ask == "gradient" else 1):
            raise Failed("sent what cannot be read")
        return found

    def _ask(
        self, message: dict, arrays: Sequence[Tensor], model: nn.Module | None = None
    ) -> tuple[dict, list[Tensor]]:
        """Ask the process, and answer for the model as long as it asks back."""
        allowed = min(self.timeout / SHARE, self.timeout - self.seconds)
        if allowed <= 0:
            raise Failed(f"had used up its {self.timeout:.0f} s in earlier tests")
        began = time.monotonic()
        deadline = began + allowed
        self.number += 1
        views = None if model is None else Views(model)
        try:
            self.channel.send({**message, "id": self.number}, arrays, deadline)
            while True:
                reply, found = self.channel.receive(deadline)
                if "forward" not in reply:
                    break
                if views is None:
                    raise WireError("a question about no model")
                self.channel.send(*views.answer(reply, found), deadline)
            if reply.get("id") != self.number:
                raise WireError("an answer to another question")
            if views is not None:
                views.set_modes(model, reply.get("modes"))
            return reply, found
        except TimeoutError:
            self.end()
            raise Failed(f"took longer than {allowed:.0f} s") from None
        except Closed:
            raise Failed(_end(self.end(hung_up=True), self.box.limits)) from None
        except WireError:
            self.end()
            raise Failed("sent what cannot be read") from None
        finally:
            self.seconds += time.monotonic() - began


class Views:
    """Answers for the model of one call. The model runs here, where what it is shown is logged.

    The student's process tells the modes of the modules, and whether gradients are recorded: the
    model here does as that process says.
    """

    def __init__(self, model: nn.Module) -> None:
        self.twins = {0: model}
        self.count = self.bytes = 0

    def answer(self, request: dict, arrays: list[Tensor]) -> tuple[dict, list[Tensor]]:
        number, gradients = request["forward"], request.get("gradients")
        self.count += 1
        self.bytes += sum(array.nbytes for array in arrays)
        if type(number) is not int or type(gradients) is not bool or len(arrays) != 1:
            raise WireError("a question that cannot be read")
        if self.count > VIEWS or self.bytes > SHOWN:
            raise WireError("too many questions")
        if number not in self.twins:  # the function has copied its model
            self.twins[number] = copy.deepcopy(self.twins[0])
        model = self.twins[number]
        self.set_modes(model, request.get("modes"))
        try:
            with torch.set_grad_enabled(gradients):
                return {}, [model(arrays[0]).detach()]
        except Exception as error:  # images that it does not take, or a model that refuses some
            return {"error": type(error).__name__, "text": str(error)[:1000]}, []

    def set_modes(self, model: nn.Module, modes: object) -> None:
        modules = list(model.modules())
        if not isinstance(modes, list) or len(modes) != len(modules):
            raise WireError("modes that do not fit")
        for module, training in zip(modules, modes, strict=True):
            module.training = training is True


def described(model: nn.Module, arrays: list[Tensor]) -> list[dict[str, Any]]:
    """The modules of a model, outermost first, for `segcourse.grading.worker.Remote`."""

    def is_plain(value: object) -> bool:
        if isinstance(value, list | tuple):
            return all(map(is_plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    def add(tensors: Any) -> dict[str, int]:
        arrays.extend(tensor for _, tensor in tensors)
        names = [name for name, _ in tensors]
        return dict(zip(names, range(len(arrays) - len(names), len(arrays)), strict=True))

    usual = set(vars(nn.Module())) - {"training"}
    return [
        {
            "path": path,
            "kind": type(module).__name__ if hasattr(nn, type(module).__name__) else "Module",
            "values": {
                name: packed(value, [])
                for name, value in vars(module).items()
                if name not in usual and is_plain(value)
            },
            "parameters": add(list(module.named_parameters(recurse=False))),
            "buffers": add(list(module.named_buffers(recurse=False))),
        }
        for path, module in model.named_modules()
    ]


def _array(content: bytes) -> Tensor:
    data = torch.empty(len(content), dtype=torch.uint8)
    data.numpy()[:] = bytearray(content)
    return data


def connect(box: sandbox.Sandbox) -> Channel:
    """A channel to a new process, once that is ready."""
    channel = Channel(box.open(), LIMIT)
    try:
        channel.receive(time.monotonic() + sandbox.START)
    except (WireError, TimeoutError):
        channel.close()
        box.end(hung_up=True)
        raise SandboxError("a process in the sandbox does not start") from None
    return channel


def _error(reply: dict) -> Exception:
    """What a student's function raised, as an exception of the nearest kind that Python has."""
    names, text = reply["error"], plain(reply.get("text"))
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    kinds = [getattr(builtins, name, None) for name in names]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseException)]
    kind = kinds[0] if kinds else Exception
    if kind is NotImplementedError:
        return Stub() if reply.get("stub") is True else NotImplementedError(text)
    place = reply.get("place")
    if not (isinstance(place, str) and re.fullmatch(r"cell \d{1,3}, line \d{1,3}", place)):
        place = ""
    error = Raised(kind.__name__, place, text)
    # Without its __init__, which may want more than a text.
    error.__cause__ = kind.__new__(kind) if issubclass(kind, Exception) else Exception()
    return error


def _end(ended: sandbox.Ended, limits: Limits) -> str:
    if ended.greedy:
        return f"held more than {limits.memory >> 20} MB of memory"
    if ended.code >= 0:
        return f"ended its process (exit code {ended.code})"
    with contextlib.suppress(ValueError):
        return f"crashed its process ({signal.Signals(-ended.code).name})"
    return f"crashed its process (signal {-ended.code})"


# ---------------------------------------------------------------------------------------------
# The hidden tests
# ---------------------------------------------------------------------------------------------


class HiddenTests:
    """A pytest plugin that collects hidden tests and keeps what each of them came to.

    Args:
        tests: those of each property.
        call: what they test.
    """

    def __init__(self, tests: Mapping[str, Sequence[Test]], call: RemoteCall) -> None:
        self.tests, self.call = tests, call
        self.errors: dict[str, list[Exception | None]] = {item: [] for item in tests}
        self.lost: SandboxError | None = None
        self.stub = False  # did the first test find the function unwritten?

    def pytest_collection(self, session: pytest.Session) -> bool:
        session.items = [
            HiddenTest.from_parent(session, name=f"{item}: {test.__name__}", of=(item, test, self))
            for item, tests in self.tests.items()
            for test in tests
        ]
        session.testscollected = len(session.items)
        return True

    def run(self) -> dict[str, list[Exception | None]]:
        """For each property what its tests raised, None where they passed.

        Raises:
            SandboxError: the sandbox was lost on the way.
        """
        options = ["-c", os.devnull, "--rootdir", os.getcwd(), "--noconftest", "--capture=no"]
        options += [f"-pno:{name}" for name in UNUSED]
        pytest.main(options, plugins=[self])
        if self.lost is not None:
            raise self.lost
        counts = [len(found) for found in self.errors.values()]
        whole = counts == [len(tests) for tests in self.tests.values()]
        if not whole and not self.stub:
            raise RuntimeError(f"pytest ran {sum(counts)} hidden tests and then stopped")
        return self.errors


class HiddenTest(pytest.Item):
    """One hidden test."""

    def __init__(self, *, of: tuple[str, Test, HiddenTests], **options: Any) -> None:
        super().__init__(**options)
        self.item, self.test, self.plugin = of

    def runtest(self) -> None:
        error = None
        try:
            self.test(self.plugin.call)
        except SandboxError as lost:
            self.plugin.lost = lost
            self.session.shouldstop = str(lost)
        except Stub as stub:
            error = stub
            if not any(self.plugin.errors.values()):
                self.plugin.stub = True
                self.session.shouldstop = "not attempted"
        except BaseException as raised:  # pytest's own outcomes, too
            error = raised
        self.plugin.errors[self.item].append(error)


class Judge:
    """Grades the notebooks of one student after the other.

    Args:
        hidden: the folder of the hidden tests: `draw.py`, and `NAME/suite.py` for each exercise.
        secret: what the hidden inputs are drawn from.
        timeout: seconds that a student has for an exercise.
        box: where students' code runs.
    """

    def __init__(self, hidden: Path, secret: bytes, timeout: float, box: sandbox.Sandbox) -> None:
        package = types.ModuleType("hidden")
        package.__path__ = [str(hidden)]
        sys.modules["hidden"] = package
        self.draw = importlib.import_module("hidden.draw")
        self.secret, self.timeout, self.box = secret, timeout, box
        self.exercises = [name for name in EXERCISES if (hidden / name / "suite.py").is_file()]

    def probe(self, private: Sequence[Path]) -> None:
        """SandboxError unless the sandbox hides these paths, the network and this process."""
        number = getattr(signal, "SIGUSR1", signal.SIGINT)  # Windows lacks the former
        signals: list[int] = []
        before = signal.signal(number, lambda *_: signals.append(number))
        try:
            with socket.create_server(("127.0.0.1", 0)) as server:
                channel = connect(self.box)
                message = {"ask": "probe", "id": 0, "paths": [str(path) for path in private]}
                message |= {"port": server.getsockname()[1], "grader": os.getpid()}
                channel.send({**message, "signal": int(number)})
                reply, _ = channel.receive(time.monotonic() + sandbox.START)
                channel.close()
                self.box.end(hung_up=False)
                faults = [f"sees {path}" for path in reply["seen"]]
                server.settimeout(0.0)
                with contextlib.suppress(OSError):
                    server.accept()
                    faults.append("reaches the network")
        except (WireError, TimeoutError):
            raise SandboxError("the sandbox does not answer") from None
        finally:
            signal.signal(number, before)
        faults += ["can send signals to the grader"] * bool(signals)
        if faults:
            raise SandboxError(f"the sandbox does not hold: code in it {', '.join(faults)}")

    def close(self) -> None:
        self.box.close()

    def grade(self, notebooks: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
        """What each exercise in a student's notebooks is worth, and why, as JSON can hold it."""
        return {name: self._exercise(name, notebooks) for name in self.exercises}

    def _exercise(self, name: str, notebooks: Mapping[str, bytes]) -> dict[str, Any]:
        for _ in range(2):  # a sandbox can be lost by chance, but hardly twice
            try:
                return self._graded(name, notebooks)
            except SandboxError:
                self.box.renew()
        self.probe([])  # raises if the fault is the sandbox's
        contract = _contract(name)
        return _result(contract, "fault", "the sandbox ended twice while your function ran")

    def _graded(self, name: str, notebooks: Mapping[str, bytes]) -> dict[str, Any]:
        contract = _contract(name)
        call = RemoteCall(self.box, name, notebooks, self.timeout)
        try:
            call.start()
        except Absent as error:
            status = "fault" if error.tried else "absent"
            return _result(contract, status, str(error), seconds=call.seconds)
        tests = HiddenTests(self.draw.tests(name, self.secret), call)
        try:
            errors = tests.run()
        finally:
            call.end()
        found = {"notebook": call.notebook, "remarks": call.remarks, "seconds": call.seconds}
        if tests.stub:
            return _result(contract, "not attempted", "it raises NotImplementedError", **found)
        return _result(contract, "graded", "", errors, **found)


def _contract(name: str) -> Contract:
    return importlib.import_module(f"segcourse.exercises.{name}").CONTRACT


def _result(
    contract: Contract,
    status: str,
    reason: str,
    errors: Mapping[str, Sequence[Exception | None]] | None = None,
    *,
    notebook: str = "",
    remarks: Sequence[str] = (),
    seconds: float = 0.0,
) -> dict[str, Any]:
    errors = errors or {}
    properties = []
    for item in contract.properties:
        found = errors.get(item.name, [])
        faults = [error for error in found if error is not None]
        properties.append(
            {
                "name": item.name,
                "points": item.points,
                "held": bool(found) and not faults,
                "tests": len(found),
                "passed": len(found) - len(faults),
                "reason": _reason(faults[0]) if faults else "",
                "hint": item.hint,
                "detail": plain(str(faults[0])) if faults else "",
            }
        )
    return {
        "status": status,
        "reason": reason,
        "points": contract.score({item["name"]: item["held"] for item in properties}),
        "of": contract.total,
        "notebook": notebook,
        "remarks": list(remarks),
        "seconds": round(seconds, 3),
        "properties": properties,
    }


def _reason(error: Exception) -> str:
    """Why a test failed, in words that hold nothing of its input."""
    if isinstance(error, Failed):
        return f"your function {error}"
    if isinstance(error, Raised):
        return f"your function raised {error.kind}" + (error.place and f" ({error.place})")
    if isinstance(error, NotImplementedError):
        return "your function raised NotImplementedError"
    if isinstance(error, AssertionError):
        return ""  # it does not hold, and that is all
    return "what your function returned could not be compared"
