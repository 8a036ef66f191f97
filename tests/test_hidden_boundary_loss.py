"""Exercise 1: constants fail each property, one fault costs few points, and the parts of the wrong
answers are what they should be."""

import pytest
import torch
from conftest import SECRETS, fails
from hidden import draw
from hidden.boundary_loss import reference, wrong

from segcourse.exercises.boundary_loss import CONTRACT, PUBLIC
from segcourse.exercises.contract import LocalCall

NAMES = [item.name for item in CONTRACT.properties]


def points(function):
    tests = draw.tests("boundary_loss", SECRETS[0])
    return CONTRACT.score({item: not fails(function, group) for item, group in tests.items()})


def test_there_are_three_gates():
    assert [item.points for item in CONTRACT.properties].count(None) == 3


@pytest.mark.parametrize("name", wrong.WRONG)
def test_a_wrong_answer_fails_the_public_test_of_its_property(name):
    function, item = wrong.WRONG[name]
    assert fails(function, [PUBLIC[item]])


def test_the_wrong_answers_are_right_but_for_one_part():
    hidden = sum(draw.tests("boundary_loss", SECRETS[0]).values(), [])
    assert not fails(wrong.answer(), [*PUBLIC.values(), *hidden])


@pytest.mark.parametrize("item", NAMES)
@pytest.mark.parametrize("value", [None, 0.0, torch.tensor(0.0), torch.tensor([1.0])], ids=repr)
def test_a_constant_fails_each_property(item, value):
    def constant(pred, target, **options):
        return value

    assert fails(constant, [PUBLIC[item]])
    assert fails(constant, draw.tests("boundary_loss", SECRETS[0])[item])


def test_not_a_number_fails_each_property():
    def not_a_number(pred, target, **options):
        return pred.sum() * float("nan")

    for item in NAMES:
        assert fails(not_a_number, [PUBLIC[item]]), item
        assert fails(not_a_number, draw.tests("boundary_loss", SECRETS[0])[item]), item


@pytest.mark.parametrize("name", ["cross entropy alone", "edges only"])
def test_what_knows_no_edges_or_nothing_else_earns_nothing(name):
    assert points(wrong.WRONG[name][0]) == 0


@pytest.mark.parametrize(
    "name", ["0 / 0", "four neighbours", "unnormalised mean", "void as a class", "width ignored"]
)
def test_an_answer_with_one_fault_keeps_points(name):
    assert 10 <= points(wrong.WRONG[name][0]) < 20


@pytest.mark.parametrize("test", ["noise_and_loop", "pooled", "width_around_shapes"])
def test_another_secret_draws_another_input_and_the_order_is_irrelevant(test):
    def targets(secret, before=()):
        seen = []

        def function(pred, target, **options):
            seen.append(target)
            return reference.boundary_loss(pred, target, **options)

        hidden = draw.tests("boundary_loss", secret).values()
        tests = {test.__name__: test for group in hidden for test in group}
        for name in (*before, test):
            seen.clear()
            tests[name](LocalCall(function))
        return torch.cat([target.flatten() for target in seen]).tolist()

    first = targets(SECRETS[0])
    assert targets(SECRETS[0], before=["void_strip", "constant"]) == first
    assert targets(SECRETS[1]) != first
