"""The trusted side: points are those of a run in one process, and every failure has its reason."""

import inspect
import json
import time

import pytest
import torch
from conftest import ROOT, SECRETS, fails
from hidden import draw
from hidden.boundary_loss import wrong as boundary_loss
from hidden.cheats import CELLS, cell, notebook
from hidden.dense_crf import wrong as dense_crf
from hidden.tta_predict import wrong as tta_predict
from hidden.tta_predict.reference import ALSO_RIGHT
from torch import nn

from segcourse.exercises import EXERCISES
from segcourse.exercises.contract import AnswerError, LocalCall, expect_error
from segcourse.exercises.tta_predict import CONTRACT, Fussy, Probe, Ramp
from segcourse.grading import judge as judging
from segcourse.grading.judge import Failed, Judge, Raised, RemoteCall, Stub
from segcourse.grading.sandbox import Bubblewrap, Limits

HIDDEN = ROOT / "tests" / "hidden"
pytestmark = pytest.mark.usefixtures("bubblewrap")

WRONG = {"boundary_loss": boundary_loss, "tta_predict": tta_predict, "dense_crf": dense_crf}


@pytest.fixture(scope="module")
def box():
    box = Bubblewrap(Limits(memory=1 << 30, seconds=60))
    yield box
    box.close()


@pytest.fixture
def judge(box):
    return Judge(HIDDEN, SECRETS[0], timeout=60, box=box)


@pytest.fixture
def remote(box):
    """Makes a call of a function in the sandbox."""
    calls = []

    def make(source):
        for call in calls:
            call.end()  # the sandbox serves one at a time
        text = f"# exercise: f\nimport torch\nfrom torch import nn\n{source}"
        calls.append(RemoteCall(box, "f", {"a.ipynb": notebook(text)}, timeout=60))
        return calls[-1]

    yield make
    for call in calls:
        call.end()


def source(name):
    return (HIDDEN / name / "reference.py").read_text()


# Points


@pytest.mark.parametrize("name", EXERCISES)
def test_right_answers_get_all_points(judge, name):
    variants = [name]
    if name == "tta_predict":  # those of the others differ in arithmetic alone
        variants += [function.__name__ for function in ALSO_RIGHT]
    for variant in variants:
        text = f"# exercise: {name}\n{source(name)}\n{name} = {variant}"
        found = judge.grade({"a.ipynb": notebook(text)})
        assert found[name]["status"] == "graded" and found[name]["points"] == 20, variant
        assert all(item["held"] and item["reason"] == "" for item in found[name]["properties"])
        others = {other: found[other]["status"] for other in EXERCISES if other != name}
        assert set(others.values()) == {"absent"}


# One wrong answer for each way in which the sandbox could change what a test finds.
FAULTS = [
    ("boundary_loss", "edges only"),
    ("boundary_loss", "0 / 0"),
    ("boundary_loss", "a 0 without gradient"),
    ("boundary_loss", "a fresh 0"),
    ("boundary_loss", "a loss for each image"),
    ("boundary_loss", "float16 throughout"),
    ("boundary_loss", "sizes broadcast"),
    ("tta_predict", "no eval mode"),
    ("tta_predict", "mode not restored"),
    ("tta_predict", "mode lost in an exception"),
    ("tta_predict", "the root's mode for all"),
    ("tta_predict", "root alone in eval mode"),
    ("tta_predict", "gradients recorded"),
    ("tta_predict", "the model's type"),
    ("tta_predict", "one view of each size"),
    ("tta_predict", "sides of 0"),
    ("tta_predict", "scales unchecked"),
    ("dense_crf", "wrong sign"),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_wrong_answer_loses_the_same_properties_as_in_one_process(judge, name, fault):
    function, item = WRONG[name].WRONG[fault]
    text = inspect.getsource(WRONG[name]) + f"\n{name} = WRONG[{fault!r}][0]"
    found = judge.grade({"a.ipynb": notebook(f"# exercise: {name}\n{text}")})[name]
    held = {p["name"]: p["held"] for p in found["properties"]}
    here = {p: not fails(function, tests) for p, tests in draw.tests(name, SECRETS[0]).items()}
    assert held == here and not held[item]
    assert found["points"] < 20


def test_another_secret_asks_other_questions(box):
    """An answer that only knows the questions of one secret earns points with that one alone."""
    asked = []
    inner = Judge(HIDDEN, SECRETS[0], 60, box)
    for secret in SECRETS[:2]:
        inner.secret = secret
        tests = inner.draw.tests("boundary_loss", secret)["any mask"]

        def spy(pred, target, **options):
            asked.append(target.sum().item())
            raise ValueError

        fails(spy, tests[:1])
    assert asked[0] != asked[1]


# Reasons


def grade(judge, text, name="boundary_loss", timeout=60):
    judge.timeout = timeout
    return judge.grade({"a.ipynb": notebook(f"# exercise: {name}\n{text}")})[name]


def test_a_stub_was_not_attempted_and_a_late_stub_was(judge):
    stub = "def boundary_loss(pred, target, **options):\n    raise NotImplementedError"
    assert grade(judge, stub)["status"] == "not attempted"
    late = source("boundary_loss") + (
        "\nright = boundary_loss\n"
        "def boundary_loss(pred, target, *, width=1, **options):\n"
        "    if width > 1:\n        raise NotImplementedError\n"
        "    return right(pred, target, **options)"
    )
    found = grade(judge, late)
    assert found["status"] == "graded" and found["points"] == 0  # a gate uses width
    (item,) = [p for p in found["properties"] if p["name"] == "width"]
    assert item["reason"] == "your function raised NotImplementedError"


PART = """
right = boundary_loss
def boundary_loss(pred, target, **options):
    if pred.shape[-2:].numel() < 10:
        {}
    return right(pred, target, **options)
"""


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("while True: pass", "took longer than 1 s"),
        ("import os; os._exit(3)", "ended its process (exit code 3)"),
        ("import ctypes; ctypes.string_at(0)", "crashed its process (SIGSEGV)"),
        ("x = b'x' * (1 << 31)", "raised MemoryError (cell 1, line"),
        ("{}['x']", "raised KeyError (cell 1, line"),
        ("raise type('Mine', (IndexError,), {})('x')", "raised IndexError (cell 1, line"),
        ("import sys; sys.exit()", "raised SystemExit (cell 1, line"),
        ("return None", ""),
        ("return pred", ""),
    ],
)
def test_a_fault_in_some_calls_costs_some_points_and_has_a_reason(judge, what, reason):
    found = grade(judge, source("boundary_loss") + PART.format(what), timeout=6)
    failed = [p for p in found["properties"] if not p["held"]]
    assert {p["name"] for p in failed} <= {"thin images", "all void"}
    told = {p["name"]: p["reason"] for p in failed}["thin images"]
    assert reason in told if reason else told == ""
    assert found["points"] >= 18


def test_memory_of_all_processes_together_is_bounded(judge):
    text = source("boundary_loss") + PART.format(
        "import ctypes, os, time\n"
        "        for n in range(6):\n"
        "            if os.fork() == 0:\n"
        "                ctypes.CDLL(None).prctl(15, b'\\nRssAnon:\\t0 kB', 0, 0, 0)\n"
        "                x = b'x' * (1 << 28); time.sleep(99)\n"
        "        time.sleep(99)"
    )
    found = grade(judge, text, timeout=30)
    reasons = {p["reason"] for p in found["properties"] if not p["held"]}
    assert "your function held more than 1024 MB of memory" in reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1 +", "a.ipynb, cell 1, line 2: SyntaxError: invalid syntax"),
        ("x = 1", "the cell with the marker defines no boundary_loss"),
        ("import os; x = os._exit(1)", "loading your function ended its process (exit code 1)"),
        ("x = [0 for _ in iter(int, 1)]", "loading your function took longer than 1 s"),
        ("x = b'x' * (1 << 40)", "MemoryError"),
    ],
)
def test_what_cannot_be_loaded_is_a_fault_with_a_reason(judge, text, reason):
    found = grade(judge, text, timeout=6)
    assert found["status"] == "fault" and found["points"] == 0
    assert reason in found["reason"]


def test_when_the_time_is_used_up_the_rest_fails_at_once(judge):
    began = time.monotonic()
    found = grade(judge, cell(CELLS["sleeps"]), timeout=3)
    assert time.monotonic() - began < 10
    assert found["points"] == 0 and found["seconds"] < 4
    reasons = [p["reason"] for p in found["properties"]]
    assert reasons[0] == "your function took longer than 0 s"
    assert reasons[-1] == "your function had used up its 3 s in earlier tests"


def test_after_many_processes_the_rest_fails_at_once(judge):
    found = grade(judge, cell(CELLS["exits when called"]))
    reasons = [p["reason"] for p in found["properties"]]
    assert reasons[0] == "your function ended its process (exit code 0)"
    assert reasons[-1] == "your function had ended 20 processes in earlier tests"


def test_reasons_tell_nothing_of_the_questions(judge):
    for how in ("in an exception", "by the name of an exception"):
        found = grade(judge, cell(CELLS[f"tells the inputs {how}"]))
        for item in found["properties"]:
            assert "SECRET" not in item["reason"] and len(item["reason"]) < 80


# One call


def test_a_value_and_a_gradient_come_back(remote):
    call = remote("def f(x, *, power=2.0):\n    return (x ** power).sum()")
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    value, gradient = call.gradient(x, power=3.0)
    assert value.item() == 9 and gradient.tolist() == [3, 12]
    assert value.dtype == gradient.dtype == torch.float64 and not value.requires_grad
    assert call(x).item() == 5


def test_arguments_are_copies_and_the_process_keeps_its_state(remote):
    call = remote("n = []\ndef f(x):\n    n.append(1)\n    x += 1\n    return x * len(n)")
    x = torch.zeros(2)
    assert call(x).tolist() == [1, 1] and call(x).tolist() == [2, 2]
    assert x.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ("3.0", "a tensor is expected; got float"),
        ("None", "a tensor is expected; got NoneType"),
        ("[x]", "a tensor is expected; got list"),
        ("x.numpy()", "a tensor is expected; got ndarray"),
    ],
)
def test_what_is_no_tensor_fails_the_test(remote, result, error):
    with pytest.raises(AssertionError, match=error):
        remote(f"def f(x):\n    return {result}")(torch.ones(2))


def test_a_gradient_needs_a_number_that_depends_on_the_argument(remote):
    for result in ("x", "torch.tensor(1.0)", "3.0", "torch.tensor(1.0, requires_grad=True)"):
        with pytest.raises(AssertionError):
            remote(f"def f(x):\n    return {result}").gradient(torch.ones(2))


def test_exceptions_are_of_the_nearest_kind_that_python_has(remote):
    call = remote(
        "class Mine(ValueError):\n    pass\n"
        "def f(kind):\n    raise {'mine': Mine('x'), 'type': TypeError('y')}[kind]"
    )
    expect_error(ValueError, call, "mine")
    expect_error(TypeError, call, "type")
    with pytest.raises(AnswerError, match="ValueError: x") as error:
        call("mine")
    assert isinstance(error.value, Raised) and error.value.place == "cell 1, line 7"
    with pytest.raises(AnswerError):
        expect_error(TypeError, call, "mine")
    odd = remote("def f():\n    raise UnicodeDecodeError('a', b'', 0, 1, 'b')")
    expect_error(UnicodeError, odd)
    with pytest.raises(Stub):
        remote("def f():\n    raise NotImplementedError")()
    with pytest.raises(NotImplementedError) as error:
        remote("def f(x):\n    return torch.bincount(x)")(torch.ones(2))
    assert not isinstance(error.value, Stub)


def test_a_failure_is_followed_by_a_new_process(remote):
    call = remote("import os\ndef f(x):\n    if x.sum() == 0:\n        os._exit(7)\n    return x")
    assert call(torch.ones(1)).item() == 1
    with pytest.raises(Failed, match=r"ended its process \(exit code 7\)"):
        call(torch.zeros(1))
    assert call(torch.ones(1)).item() == 1


# Models


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_the_model_is_run_here_and_what_it_is_shown_is_logged_here(remote):
    model, images = Probe(network()).eval(), torch.rand(2, 3, 9, 9)
    call = remote("def f(model, x):\n    with torch.no_grad():\n        return model(x.flip(3))")
    assert torch.equal(call(model, images), model.network(images.flip(3)).detach())
    (view,) = model.views
    assert torch.equal(view.images, images.flip(3))
    assert not view.training and not view.gradients
    remote("def f(model, x):\n    return model.train()(x).detach()")(model, images)
    assert model.views[1].training and model.views[1].gradients


def test_the_copy_has_parts_parameters_and_modes_like_the_model(remote):
    model = Probe(network())
    model.network[1].eval()
    kinds = remote(
        "def f(model):\n"
        "    kinds = (nn.Module, nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.Dropout)\n"
        "    return torch.tensor([[isinstance(m, k) for k in kinds] + [m.training]\n"
        "                         for m in model.modules()])"
    )
    expected = [
        [True, False, False, False, False, True],
        [True, True, False, False, False, True],
        [True, False, True, False, False, True],
        [True, False, False, True, False, False],
        [True, False, False, False, True, True],
    ]
    assert kinds(model).tolist() == expected
    total = remote(
        "def f(model):\n    assert len(model.network) == 3 and repr(model)\n"
        "    assert next(model.parameters()).device.type == 'cpu'\n"
        "    return sum(t.double().sum() for t in model.state_dict().values()).detach()"
    )
    wanted = sum(t.double().sum() for t in model.state_dict().values())
    assert torch.isclose(total(model), wanted)


def test_modes_and_statistics_are_those_of_the_model_that_was_handed_out(remote):
    images = torch.rand(2, 3, 9, 9)
    model = Probe(network())
    before = [b.clone() for b in model.buffers()]
    copied = "import copy\ndef f(model, x):\n    return copy.deepcopy(model).eval()(x).detach()"
    remote(copied)(model, images)
    assert model.given.modes() == [True] * 5 and model.views[0].training is False
    assert all(map(torch.equal, model.given.buffers(), before))
    model = Probe(network())
    remote("def f(model, x):\n    return model.eval()(x).detach()")(model, images)
    assert model.given.modes() == [False] * 5
    model = Probe(network())
    remote("def f(model, x):\n    return model(x).detach()")(model, images)
    assert not all(map(torch.equal, model.given.buffers(), before))


def test_a_models_exception_reaches_the_function_and_modes_come_back_with_it(remote):
    model = Probe(nn.Sequential(Fussy(4), network()))
    call = remote("def f(model, x):\n    model.network[1].eval()\n    return model(x)")
    with pytest.raises(AnswerError, match="RuntimeError: this model refuses images"):
        call(model, torch.rand(1, 3, 4, 4))
    assert model.given.modes() == [True, True, True, False, False, False, False]
    handled = remote(
        "def f(model, x):\n    try:\n        model(x[0])\n"
        "    except ValueError as error:\n        return torch.tensor(len(str(error)))"
    )
    assert handled(Probe(network()), torch.rand(1, 3, 4, 4)).item() > 10


def test_gradients_of_an_answer_are_as_they_would_be_here(remote):
    model, images = Probe(Ramp(torch.rand(2, 2))), torch.rand(1, 3, 4, 4)
    call = remote("def f(model, x):\n    return torch.tensor(model(x).requires_grad)")
    assert call(model, images).item() is True
    call = remote(
        "def f(model, x):\n    with torch.inference_mode():\n"
        "        return torch.tensor(model(x).requires_grad)"
    )
    assert call(model, images).item() is False


def test_a_model_may_be_asked_from_threads(remote):
    call = remote(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f(model, x):\n    with ThreadPoolExecutor(4) as pool:\n"
        "        return torch.stack([y.detach() for y in pool.map(model, [x] * 8)])"
    )
    model, images = Probe(Ramp(torch.rand(2, 2))), torch.rand(1, 3, 4, 4)
    assert torch.equal(call(model, images)[7], model.network(images).detach())


@pytest.mark.parametrize(
    "body",
    [
        "for n in range(10_000):\n        model(x)",
        "model(torch.zeros(1, 3, 4000, 4000))",
        "for n in range(100):\n        model(torch.zeros(1, 3, 1000, 1000))",
    ],
)
def test_a_function_that_asks_too_much_fails(remote, body):
    call = remote(f"def f(model, x):\n    {body}\n    return x")
    with pytest.raises(Failed, match="sent what cannot be read|took longer"):
        call(Probe(nn.Identity()), torch.rand(1, 3, 4, 4))


def test_a_judge_that_pytest_leaves_alone_says_so(judge, monkeypatch):
    """A hidden test that is not run must not count as passed."""
    monkeypatch.setattr(judging.pytest, "main", lambda *args, **options: 0)
    with pytest.raises(RuntimeError, match="pytest ran 0 hidden tests"):
        grade(judge, source("boundary_loss"))


@pytest.mark.parametrize("outcome", ["pytest.skip()", "pytest.fail('x')", "raise SystemExit"])
def test_a_hidden_test_that_does_not_pass_does_not_hold(judge, monkeypatch, outcome):
    def odd(call):
        exec(outcome, {"pytest": pytest})

    tests = judge.draw.tests("boundary_loss", SECRETS[0])
    tests["border"] = [*tests["border"], odd]
    monkeypatch.setattr(judge.draw, "tests", lambda *_: tests)
    found = grade(judge, source("boundary_loss"))
    assert [p["name"] for p in found["properties"] if not p["held"]] == ["border"]


def test_results_are_json(judge):
    found = judge.grade({"a.ipynb": notebook("x = 1"), "b.ipynb": b"{"})
    assert json.loads(json.dumps(found)) == found
    assert found["tta_predict"]["of"] == CONTRACT.total
    assert all(e["status"] == "fault" and "b.ipynb" in e["reason"] for e in found.values())


def test_the_local_call_and_the_remote_one_agree(remote):
    def f(x, *, power=2.0):
        return (x**power).sum()

    call = remote("def f(x, *, power=2.0):\n    return (x**power).sum()")
    x = torch.rand(4, generator=torch.Generator().manual_seed(0))
    for one, other in zip(LocalCall(f).gradient(x), call.gradient(x), strict=True):
        assert torch.equal(one, other)
