"""Messages between the grader and a student's process: JSON and the raw bytes of arrays.

    frame   length of the header, 4 bytes | header | bytes of the arrays, one after the other
    header  {"arrays": [{"dtype": "float32", "shape": [2, 3]}, ...], ...the message}

Nothing is unpickled. What comes in is checked before memory is taken for it: the length of the
header, dtypes from a list, shapes, and the bytes of all arrays together. Each read and write has a
deadline.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER = 1 << 20  # most bytes of a header
DIMENSIONS = 8


class WireError(Exception):
    """What came is no message of this protocol, or goes beyond its limits."""


class Closed(WireError):
    """The other side is gone."""


class Channel:
    """One end of a connection.

    Args:
        connection: a connected socket, which the channel owns from now on.
        limit: most bytes of arrays that a message may bring.
    """

    def __init__(self, connection: socket.socket, limit: int) -> None:
        self.socket = connection
        self.limit = limit

    def send(
        self, message: dict[str, Any], arrays: Sequence[Tensor] = (), deadline: float | None = None
    ) -> None:
        """Send a message.

        Args:
            message: what JSON can hold; the key "arrays" is taken.
            arrays: of the types in `DTYPES`, on the CPU.
            deadline: as of `time.monotonic`; None waits as long as it takes.

        Raises:
            WireError: an array cannot be sent.
            Closed: the other side is gone.
            TimeoutError: the deadline has passed.
        """
        for array in arrays:
            if array.dtype not in NAMES or array.layout != torch.strided:
                raise WireError(f"a tensor of {array.dtype}, {array.layout} cannot be sent")
        kinds = [{"dtype": NAMES[array.dtype], "shape": list(array.shape)} for array in arrays]
        header = json.dumps({**message, "arrays": kinds}).encode()
        parts = [struct.pack(">I", len(header)), header, *map(_bytes, arrays)]
        try:
            self.socket.settimeout(_left(deadline))
            self.socket.sendall(b"".join(parts))
        except (BrokenPipeError, ConnectionError):
            raise Closed("the other side is gone") from None

    def receive(self, deadline: float | None = None) -> tuple[dict[str, Any], list[Tensor]]:
        """The next message and its arrays; it raises as `send` does."""
        (length,) = struct.unpack(">I", self._read(4, deadline))
        if length > HEADER:
            raise WireError(f"a header of {length} bytes")
        try:
            message = json.loads(self._read(length, deadline))
            kinds = message.pop("arrays")
            plan = [(DTYPES[kind["dtype"]], _shape(kind["shape"])) for kind in kinds]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise WireError("a header that cannot be read") from None
        # A dimension of 0 must not hide what the others are.
        most = sum(dtype.itemsize * math.prod(max(n, 1) for n in shape) for dtype, shape in plan)
        if most > self.limit:
            raise WireError(f"arrays of {most} bytes; at most {self.limit} are taken")
        return message, [
            _array(self._read(dtype.itemsize * math.prod(shape), deadline), dtype, shape)
            for dtype, shape in plan
        ]

    def close(self) -> None:
        self.socket.close()

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            self.socket.settimeout(_left(deadline))
            try:
                count = self.socket.recv_into(rest)
            except ConnectionError:
                count = 0
            if count == 0:
                raise Closed("the other side is gone")
            rest = rest[count:]
        return data


def packed(value: Any, arrays: list[Tensor]) -> Any:
    """A function's argument as JSON. Tensors are added to `arrays`, and a model is only named."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, nn.Module):
        return {"model": type(value).__name__}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [packed(item, arrays) for item in value]}
    raise TypeError(f"value: a {type(value).__name__} cannot be sent")


def unpacked(value: Any, arrays: list[Tensor], model: nn.Module | None = None) -> Any:
    """What `packed` made; `model` stands in for a model."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "array":
        return arrays[held]
    if kind == "model":
        return model
    return {"list": list, "tuple": tuple}[kind](unpacked(item, arrays, model) for item in held)


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _shape(shape: object) -> list[int]:
    if not isinstance(shape, list) or len(shape) > DIMENSIONS:
        raise ValueError("shape")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("shape")
    return shape


def _bytes(array: Tensor) -> bytes:
    return array.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _array(data: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:  # a byte may be anything
        return torch.frombuffer(data, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
