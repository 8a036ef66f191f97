"""Messages between grader and sandbox: they arrive as they were, and nothing else is taken."""

import json
import socket
import struct
import threading
import time

import pytest
import torch
from torch import nn

from segcourse.grading.wire import DTYPES, HEADER, Channel, Closed, WireError, packed, unpacked


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    yield Channel(near, 1 << 20), Channel(far, 1 << 20)
    near.close()
    far.close()


def raw(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(header)) + header + data


def test_tensors_of_every_type_arrive_as_they_were(ends):
    g = torch.Generator().manual_seed(0)
    noise = 100 * torch.randn(3, 4, generator=g)
    sent = [noise.to(dtype) for dtype in DTYPES.values()]
    sent += [torch.tensor(3.5), torch.zeros(0, 3), noise.T, noise.flip(0), noise[:, 1]]
    sent += [torch.ones(1).expand(5), torch.tensor([float("nan"), float("inf")])]
    ends[0].send({"id": 7, "text": "ä"}, sent)
    message, found = ends[1].receive()
    assert message == {"id": 7, "text": "ä"}
    for a, b in zip(sent, found, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.double().nan_to_num(), b.double().nan_to_num())
    found[0].zero_()  # they are writable


def test_what_comes_needs_no_gradient_and_what_goes_may(ends):
    ends[0].send({}, [torch.ones(2, requires_grad=True)])
    _, (found,) = ends[1].receive()
    assert not found.requires_grad


@pytest.mark.parametrize(
    "array", [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, 2).to_sparse()]
)
def test_other_tensors_are_not_sent(ends, array):
    with pytest.raises(WireError, match="cannot be sent"):
        ends[0].send({}, [array])


def kind(dtype="float32", shape=(2,)):
    return {"arrays": [{"dtype": dtype, "shape": shape}]}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", HEADER + 1),
        b"\xff" * 100,
        raw(b""),
        raw(b"[]"),
        raw(b'"text"'),
        raw(b"{"),
        raw(b"\xff\xfe"),
        raw(b"[" * 100_000),
        raw({"id": 1}),
        raw({"arrays": 3}),
        raw({"arrays": [3]}),
        raw({"arrays": [{"dtype": "float32"}]}),
        raw(kind(dtype="object")),
        raw(kind(dtype="complex64")),
        raw(kind(dtype=["float32"])),
        raw(kind(shape=3)),
        raw(kind(shape=[-1])),
        raw(kind(shape=[2.0])),
        raw(kind(shape=[True])),
        raw(kind(shape=["2"])),
        raw(kind(shape=[1] * 9)),
        raw(kind(shape=[1 << 40])),
        raw(kind(shape=[1 << 62, 1 << 62])),
        raw(kind(shape=[0, 1 << 40])),
        raw(kind(shape=[1 << 18, 2])),
        raw({"arrays": [{"dtype": "uint8", "shape": [1 << 19]}] * 3}),
    ],
)
def test_what_is_no_message_is_refused_before_it_is_read(ends, data):
    ends[0].socket.sendall(data)
    with pytest.raises(WireError):
        ends[1].receive(time.monotonic() + 5)


def test_the_limit_is_for_all_arrays_together(ends):
    sender = threading.Thread(
        target=ends[0].send, args=({}, [torch.zeros(1 << 19, dtype=torch.uint8)] * 2)
    )
    sender.start()
    assert len(ends[1].receive()[1]) == 2
    sender.join()


def test_any_byte_of_a_truth_value_becomes_true_or_false(ends):
    ends[0].socket.sendall(raw(kind("bool", [4]), bytes([0, 1, 2, 255])))
    _, (found,) = ends[1].receive()
    assert found.tolist() == [False, True, True, True]
    assert found.view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_reading_and_writing_end_at_the_deadline(ends):
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ends[1].receive(began + 0.2)
    ends[0].socket.sendall(raw(kind())[:-1])  # a part counts for nothing
    with pytest.raises(TimeoutError):
        ends[1].receive(time.monotonic() + 0.2)
    with pytest.raises(TimeoutError):  # nobody reads
        ends[1].send({}, [torch.zeros(1 << 24)], time.monotonic() + 0.2)
    with pytest.raises(TimeoutError):
        ends[1].receive(time.monotonic() - 1)
    assert time.monotonic() - began < 5


def test_a_closed_end_is_told(ends):
    ends[0].socket.sendall(raw(kind())[:-3])
    ends[0].close()
    with pytest.raises(Closed):
        ends[1].receive()
    with pytest.raises(Closed):
        for _ in range(9):
            ends[1].send({}, [torch.zeros(1 << 16)])


def test_arguments_arrive_as_they_were():
    model, tensor = nn.Identity(), torch.ones(2)
    arguments = (model, tensor, (0.75, 1.0), [1, None, "x", True], 3.5, float("inf"))
    arrays = []
    found = unpacked(json.loads(json.dumps(packed(arguments, arrays))), arrays, model)
    assert found == arguments and found[1] is tensor and found[0] is model
    assert type(found[2]) is tuple and type(found[3]) is list
    with pytest.raises(TypeError, match="a set cannot be sent"):
        packed({1}, [])
