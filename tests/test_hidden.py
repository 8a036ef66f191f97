"""The hidden tests of each graded exercise pass every right answer and fail every wrong one."""

import importlib
import time

import pytest
import torch
from conftest import SECRETS, fails, right_answer
from hidden import draw

from segcourse.exercises import EXERCISES
from segcourse.exercises.contract import LocalCall

EXERCISE = {name: importlib.import_module(f"segcourse.exercises.{name}") for name in EXERCISES}
ALSO_RIGHT = {
    name: importlib.import_module(f"hidden.{name}.reference").ALSO_RIGHT for name in EXERCISES
}
WRONG = {name: importlib.import_module(f"hidden.{name}.wrong").WRONG for name in EXERCISES}

each_exercise = pytest.mark.parametrize("name", EXERCISES)
each_property = pytest.mark.parametrize(
    "name, item", [(n, item.name) for n in EXERCISES for item in EXERCISE[n].CONTRACT.properties]
)
each_right_answer = pytest.mark.parametrize(
    "name, function",
    [
        pytest.param(n, function, id=f"{n}-{function.__name__}")
        for n in EXERCISES
        for function in (right_answer(n), *ALSO_RIGHT[n])
    ],
)
each_wrong_answer = pytest.mark.parametrize(
    "name, fault", [(n, fault) for n in EXERCISES for fault in WRONG[n]]
)


def every_test(name):
    """Public and hidden ones."""
    hidden = sum(draw.tests(name, SECRETS[0]).values(), [])
    return [*EXERCISE[name].PUBLIC.values(), *hidden]


@each_exercise
def test_every_property_has_a_public_and_a_hidden_test(name):
    names = [item.name for item in EXERCISE[name].CONTRACT.properties]
    hidden = draw.tests(name, SECRETS[0])
    assert list(EXERCISE[name].PUBLIC) == list(hidden) == names
    assert all(hidden.values()) and sum(map(len, hidden.values())) >= 25


@each_exercise
def test_the_contract_gives_20_points_and_has_gates(name):
    contract = EXERCISE[name].CONTRACT
    assert contract.total == 20
    assert any(item.points is None for item in contract.properties)


@each_right_answer
@pytest.mark.parametrize("secret", SECRETS, ids=bytes.hex)
def test_a_right_answer_passes_the_hidden_tests(name, function, secret):
    for tests in draw.tests(name, secret).values():
        for test in tests:
            test(LocalCall(function))


@each_right_answer
def test_a_right_answer_passes_the_public_tests(name, function):
    for test in EXERCISE[name].PUBLIC.values():
        test(LocalCall(function))


@each_wrong_answer
def test_a_wrong_answer_fails_the_hidden_tests_of_a_property(name, fault):
    function, item = WRONG[name][fault]
    for secret in SECRETS:
        assert fails(function, draw.tests(name, secret)[item])


@each_wrong_answer
def test_a_wrong_answer_fails_a_public_test(name, fault):
    function, _ = WRONG[name][fault]
    assert fails(function, EXERCISE[name].PUBLIC.values())


@each_exercise
def test_each_property_fails_a_wrong_answer(name):
    found = {item for _, item in WRONG[name].values()}
    assert found == {item.name for item in EXERCISE[name].CONTRACT.properties}


@each_exercise
def test_a_stub_counts_as_not_attempted(name):
    def stub(*args, **options):
        raise NotImplementedError

    for test in every_test(name):
        with pytest.raises(NotImplementedError):
            test(LocalCall(stub))


@each_property
def test_an_answer_that_does_nothing_fails_each_property(name, item):
    def nothing(*args, **options):
        return None

    assert fails(nothing, [EXERCISE[name].PUBLIC[item]])
    assert fails(nothing, draw.tests(name, SECRETS[0])[item])


@each_right_answer
def test_the_tests_are_fast(name, function):
    hidden = sum(draw.tests(name, SECRETS[0]).values(), [])
    for tests, limit in ((EXERCISE[name].PUBLIC.values(), 3), (hidden, 5)):
        start = time.perf_counter()
        assert not fails(function, tests)
        assert time.perf_counter() - start < limit


@pytest.mark.parametrize(
    "name, item",
    [
        ("boundary_loss", "any mask"),
        ("tta_predict", "equal to the definition"),
        ("dense_crf", "the mean field"),
    ],
)
def test_another_secret_draws_other_inputs_and_the_same_secret_the_same(name, item):
    def drawn(secret):
        shown = []

        def function(*args, **options):
            shown.append(args[1])
            return right_answer(name)(*args, **options)

        draw.tests(name, secret)[item][0](LocalCall(function))
        return shown[0]

    first, again, other = (drawn(secret) for secret in (SECRETS[0], SECRETS[0], SECRETS[1]))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_inputs_follow_from_the_secret_and_the_name():
    numbers = {
        (secret, name): torch.rand(4, generator=draw.generator(secret, name)).tolist()
        for secret in SECRETS[:2]
        for name in ("a", "b")
    }
    assert len({tuple(drawn) for drawn in numbers.values()}) == 4
    again = torch.rand(4, generator=draw.generator(SECRETS[0], "a")).tolist()
    assert again == numbers[SECRETS[0], "a"]
