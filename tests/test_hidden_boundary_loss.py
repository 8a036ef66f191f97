"""Exercise 1: its hidden tests pass every right answer and fail every wrong one."""

import time

import pytest
import torch
from hidden import draw
from hidden.boundary_loss import reference, suite, wrong

from segcourse.exercises.boundary_loss import CONTRACT, PUBLIC
from segcourse.exercises.contract import AnswerError, LocalCall

SECRETS = [bytes([n]) * 16 for n in range(5)]
NAMES = [item.name for item in CONTRACT.properties]
RIGHT = (reference.boundary_loss, *reference.ALSO_RIGHT)

each_right_answer = pytest.mark.parametrize("function", RIGHT, ids=lambda f: f.__name__)
each_wrong_answer = pytest.mark.parametrize("name", wrong.WRONG)


def fails(function, tests):
    """Does a test fail? The first failure is enough."""
    for test in tests:
        try:
            test(LocalCall(function))
        except (AssertionError, AnswerError):
            return True
    return False


def everything(secret):
    return sum(suite.tests(secret).values(), [])


def points(function, tests):
    return CONTRACT.score({item: not fails(function, group) for item, group in tests.items()})


def test_every_property_has_a_public_and_hidden_tests():
    assert list(PUBLIC) == list(suite.TESTS) == NAMES
    assert all(suite.TESTS.values()) and len(everything(SECRETS[0])) >= 25


def test_the_contract_gives_20_points_and_has_gates():
    assert CONTRACT.total == 20
    assert [item.points for item in CONTRACT.properties].count(None) == 3


@each_right_answer
@pytest.mark.parametrize("secret", SECRETS, ids=bytes.hex)
def test_a_right_answer_passes_the_hidden_tests(function, secret):
    for test in everything(secret):
        test(LocalCall(function))


@each_right_answer
def test_a_right_answer_passes_the_public_tests(function):
    for test in PUBLIC.values():
        test(LocalCall(function))


@each_wrong_answer
def test_a_wrong_answer_fails_the_hidden_tests_of_a_property(name):
    function, item = wrong.WRONG[name]
    for secret in SECRETS:
        assert fails(function, suite.tests(secret)[item])


@each_wrong_answer
def test_a_wrong_answer_fails_the_public_test_of_that_property(name):
    function, item = wrong.WRONG[name]
    assert fails(function, [PUBLIC[item]])


def test_the_wrong_answers_are_right_but_for_one_part():
    assert not fails(wrong.answer(), [*PUBLIC.values(), *everything(SECRETS[0])])


def test_each_property_fails_a_wrong_answer():
    assert {item for _, item in wrong.WRONG.values()} == set(NAMES)


@pytest.mark.parametrize("item", NAMES)
@pytest.mark.parametrize("value", [None, 0.0, torch.tensor(0.0), torch.tensor([1.0])], ids=repr)
def test_a_constant_fails_each_property(item, value):
    def constant(pred, target, **options):
        return value

    assert fails(constant, [PUBLIC[item]]) and fails(constant, suite.tests(SECRETS[0])[item])


def test_not_a_number_fails_each_property():
    def not_a_number(pred, target, **options):
        return pred.sum() * float("nan")

    for item in NAMES:
        assert fails(not_a_number, [PUBLIC[item]]), item
        assert fails(not_a_number, suite.tests(SECRETS[0])[item]), item


@pytest.mark.parametrize("name", ["cross entropy alone", "edges only"])
def test_what_knows_no_edges_or_nothing_else_earns_nothing(name):
    assert points(wrong.WRONG[name][0], suite.tests(SECRETS[0])) == 0


@pytest.mark.parametrize(
    "name", ["0 / 0", "four neighbours", "unnormalised mean", "void as a class", "width ignored"]
)
def test_an_answer_with_one_fault_keeps_points(name):
    assert 10 <= points(wrong.WRONG[name][0], suite.tests(SECRETS[0])) < 20


def test_a_stub_counts_as_not_attempted():
    def stub(pred, target, **options):
        raise NotImplementedError

    for test in [*PUBLIC.values(), *everything(SECRETS[0])]:
        with pytest.raises(NotImplementedError):
            test(LocalCall(stub))


def test_the_tests_are_fast():
    for tests, limit in ((PUBLIC.values(), 3), (everything(SECRETS[0]), 5)):
        start = time.perf_counter()
        assert not fails(reference.boundary_loss, tests)
        assert time.perf_counter() - start < limit


def test_inputs_follow_from_the_secret_and_the_name():
    numbers = {
        (secret, name): torch.rand(4, generator=draw.generator(secret, name)).tolist()
        for secret in SECRETS[:2]
        for name in ("a", "b")
    }
    assert len({tuple(drawn) for drawn in numbers.values()}) == 4
    again = torch.rand(4, generator=draw.generator(SECRETS[0], "a")).tolist()
    assert again == numbers[SECRETS[0], "a"]


@pytest.mark.parametrize("test", ["noise_and_loop", "pooled", "width_around_shapes"])
def test_another_secret_draws_another_input_and_the_order_is_irrelevant(test):
    def targets(secret, before=()):
        seen = []

        def function(pred, target, **options):
            seen.append(target)
            return reference.boundary_loss(pred, target, **options)

        tests = {t.__name__: t for t in everything(secret)}
        for name in (*before, test):
            seen.clear()
            tests[name](LocalCall(function))
        return torch.cat([target.flatten() for target in seen]).tolist()

    first = targets(SECRETS[0])
    assert targets(SECRETS[0], before=["void_strip", "constant"]) == first
    assert targets(SECRETS[1]) != first
