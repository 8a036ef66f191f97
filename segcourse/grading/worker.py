"""A student's process: it takes a function out of the student's notebooks and calls it when asked.

It runs inside the sandbox, forked by `segcourse.grading.supervisor`. In a container, and where
there is no sandbox at all, it is started for each exercise, with the grader at stdin and stdout:

    python -m segcourse.grading.worker SETTINGS

Whatever it says, the grader takes for no more than what it is: arrays, and the names of classes.
"""

import json
import os
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segcourse.filters  # noqa: F401  an exercise needs it, so it is loaded ahead
from segcourse.exercises import EXERCISES, is_stub, task
from segcourse.exercises.contract import slope
from segcourse.grading.notebook import NotebookError, load
from segcourse.grading.pipes import over_pipes
from segcourse.grading.wire import Channel, WireError, unpacked

try:
    import resource
except ImportError:  # Windows
    resource = None

LIMIT = 1 << 28  # bytes of arrays in a message of the grader
PROCESSES, FILES, FILE_SIZE = 16, 64, 1 << 24  # that a student may have, the last in bytes


class Student:
    """Answers the grader's questions about one exercise of one student."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.function: Callable | None = None
        self.turn = threading.Lock()  # a function may call its model from threads

    def serve(self) -> None:
        questions = {
            "probe": self.probe,
            "load": self.load,
            "call": self.call,
            "gradient": self.gradient,
        }
        self.channel.send({"ready": True})
        while True:
            message, arrays = self.channel.receive()
            reply, results = questions[message["ask"]](message, arrays)
            try:
                self.channel.send({**reply, "id": message["id"]}, results)
            except WireError as error:
                self.channel.send({**described(error), "id": message["id"]})

    def probe(self, message: dict, _: list[Tensor]) -> tuple[dict, list[Tensor]]:
        """Try what the sandbox must prevent; the grader itself sees a connection or a signal."""
        try:
            socket.create_connection(("127.0.0.1", message["port"]), timeout=1).close()
        except OSError:
            pass
        try:
            os.kill(message["grader"], message["signal"])
        except OSError:
            pass
        return {"seen": [path for path in message["paths"] if os.path.lexists(path)]}, []

    def load(self, message: dict, arrays: list[Tensor]) -> tuple[dict, list[Tensor]]:
        """Take the function out of the student's notebooks."""
        contents = [array.numpy().tobytes() for array in arrays]
        notebooks = dict(zip(message["names"], contents, strict=True))
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        try:
            loaded = load(notebooks, message["exercise"], main.__dict__)
        except NotebookError as error:
            return {"fault": str(error)[:1000], "tried": error.tried}, []
        self.function = loaded.function
        remarks = [remark[:500] for remark in loaded.remarks[:5]]
        return {"notebook": loaded.notebook, "remarks": remarks}, []

    def call(self, message: dict, arrays: list[Tensor]) -> tuple[dict, list[Tensor]]:
        """What the function returns."""
        return self._run(message, arrays, lambda args, kwargs: [self.function(*args, **kwargs)])

    def gradient(self, message: dict, arrays: list[Tensor]) -> tuple[dict, list[Tensor]]:
        """The number that the function returns, and its gradient in the first argument."""

        def with_gradient(args: tuple, kwargs: dict) -> list[Any]:
            wrt = args[0].requires_grad_()
            value = self.function(*args, **kwargs)
            gradient = slope(value, wrt)
            return [None] if gradient is None else [value, gradient]

        return self._run(message, arrays, with_gradient)

    def _run(self, message: dict, arrays: list[Tensor], run: Callable) -> tuple[dict, list]:
        model = None
        if message["model"] is not None:
            model = Remote(message["model"], arrays, self._forward)
        args = unpacked(message["args"], arrays, model)
        kwargs = {name: unpacked(item, arrays) for name, item in message["kwargs"].items()}
        try:
            results = run(args, kwargs)
        except BaseException as error:  # SystemExit, too
            reply, results = described(error, self.function), []
        else:
            others = [type(item).__name__ for item in results if not isinstance(item, Tensor)]
            reply, results = ({"other": others[0]}, []) if others else ({}, results)
        if model is not None:
            reply["modes"] = [module.training for module in model.modules()]
        return reply, results

    def _forward(self, number: int, modes: list[bool], images: Tensor) -> Tensor:
        """What the grader's model says of images."""
        gradients = torch.is_grad_enabled()
        with self.turn:
            request = {"forward": number, "modes": modes, "gradients": gradients}
            self.channel.send(request, [images])
            reply, arrays = self.channel.receive()
        if "error" in reply:
            raise {"ValueError": ValueError}.get(reply["error"], RuntimeError)(reply["text"])
        # In a graph, as the answer of a model with parameters is.
        return arrays[0].requires_grad_().clone() if gradients else arrays[0]


class Remote(nn.Module):
    """A model that lives with the grader: its modules, parameters and modes, but for the forward.

    Args:
        described: its modules, as `segcourse.grading.judge` describes them.
        arrays: its parameters and buffers.
        forward: from a number, 0 here and another for each copy, modes and images to logits.
    """

    def __init__(self, described: list[dict], arrays: list[Tensor], forward: Callable) -> None:
        super().__init__()
        for part in described:
            module = self
            if part["path"]:
                above, _, name = part["path"].rpartition(".")
                kind = getattr(nn, part["kind"], nn.Module)
                module = kind.__new__(kind)
                nn.Module.__init__(module)
                self.get_submodule(above).add_module(name, module)
            module.__dict__.update(
                {name: unpacked(value, arrays) for name, value in part["values"].items()}
            )
            for name, index in part["parameters"].items():
                module.register_parameter(name, nn.Parameter(arrays[index]))
            for name, index in part["buffers"].items():
                module.register_buffer(name, arrays[index])

        def ask(model: Remote, images: Tensor) -> Tensor:
            modes = [module.training for module in model.modules()]
            return forward(0 if model is self else id(model), modes, images)

        self.ask = ask  # a plain function: a copy of the model shares it

    def forward(self, images: Tensor) -> Tensor:
        return self.ask(self, images)


def described(error: BaseException, function: Callable | None = None) -> dict[str, Any]:
    """An exception in words: its classes, its text, and the last line of the student's code."""
    place, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.startswith("<cell "):
            place = f"{trace.tb_frame.f_code.co_filename[1:-1]}, line {trace.tb_lineno}"
        trace = trace.tb_next
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return {
        "error": [kind.__name__ for kind in type(error).__mro__],
        "text": text,
        "place": place,
        "stub": function is not None and isinstance(error, Exception) and is_stub(function, error),
    }


def preload() -> None:
    """Import and run what takes its time when it is first used."""
    for exercise in EXERCISES:
        task(exercise)
    images = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    F.interpolate(F.conv2d(images, images[:, :, :3, :3]), (5, 5), mode="bilinear").softmax(1)
    F.max_pool2d(images, 3)
    torch.cdist(images[0], images @ images)


def silence() -> None:
    """Connect the standard streams to nothing: a student may print without end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.close(nothing)


def limit(seconds: int, address_space: int | None = None) -> None:
    """Bound this process, and each that it will start, for good; bytes and seconds of CPU time."""
    if resource is None:
        return
    most = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_FSIZE: FILE_SIZE,
        resource.RLIMIT_CORE: 0,
    }
    if address_space is not None:
        most[resource.RLIMIT_AS] = address_space
    for what, value in most.items():
        resource.setrlimit(what, (value, value))


def main(settings: dict[str, Any]) -> None:
    # A student's endless loop must not outlive the grader.
    connection = over_pipes(os.dup(0), os.dup(1), closed=lambda: os._exit(1))
    silence()
    preload()
    limit(settings["seconds"])
    Student(Channel(connection, LIMIT)).serve()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
