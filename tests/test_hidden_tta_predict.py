"""Exercise 2: its hidden tests pass every right answer and fail every wrong one."""

import time

import pytest
import torch
from hidden.tta_predict import reference, suite, wrong
from torch import nn

from segcourse.exercises.contract import AnswerError, LocalCall, expect_close
from segcourse.exercises.tta_predict import CONTRACT, PUBLIC, Fussy, Probe, Ramp

SECRETS = [bytes([n]) * 16 for n in range(5)]
NAMES = {item.name for item in CONTRACT.properties}
RIGHT = (reference.tta_predict, *reference.ALSO_RIGHT)

each_right_answer = pytest.mark.parametrize("function", RIGHT, ids=lambda f: f.__name__)

# These are wrong in a corner that no public test visits.
FOR_THE_HIDDEN_TESTS_ALONE = {"one view of each size", "eval mode only if the root trains"}


def stub(model, x, *, scales=(0.75, 1.0, 1.25), flip=True):
    raise NotImplementedError


def fails(function, tests):
    """Does a test fail? The first failure is enough."""
    for test in tests:
        try:
            test(LocalCall(function))
        except (AssertionError, AnswerError):
            return True
    return False


def test_every_property_has_a_public_and_a_hidden_test():
    hidden = suite.tests(SECRETS[0])
    assert set(PUBLIC) == set(hidden) == NAMES
    assert all(hidden.values()) and sum(map(len, hidden.values())) >= 25
    assert CONTRACT.total == 20
    assert any(item.points is None for item in CONTRACT.properties)


@each_right_answer
@pytest.mark.parametrize("secret", SECRETS, ids=bytes.hex)
def test_a_right_answer_passes_the_hidden_tests(function, secret):
    for tests in suite.tests(secret).values():
        for test in tests:
            test(LocalCall(function))


@each_right_answer
def test_a_right_answer_passes_the_public_tests(function):
    for test in PUBLIC.values():
        test(LocalCall(function))


@pytest.mark.parametrize("name", wrong.WRONG)
def test_a_wrong_answer_fails_the_hidden_tests_of_a_property(name):
    function, item = wrong.WRONG[name]
    for secret in SECRETS:
        assert fails(function, suite.tests(secret)[item])


@pytest.mark.parametrize("name", wrong.WRONG)
def test_a_wrong_answer_fails_a_public_test(name):
    function, _ = wrong.WRONG[name]
    assert fails(function, PUBLIC.values()) == (name not in FOR_THE_HIDDEN_TESTS_ALONE)


def test_the_wrong_answers_are_right_but_for_one_part():
    assert not fails(wrong.answer(), PUBLIC.values())
    assert not fails(wrong.answer(), sum(suite.tests(SECRETS[0]).values(), []))


def test_each_property_fails_a_wrong_answer():
    assert {item for _, item in wrong.WRONG.values()} == NAMES


def test_a_stub_counts_as_not_attempted():
    hidden = sum(suite.tests(SECRETS[0]).values(), [])
    for test in [*PUBLIC.values(), *hidden]:
        with pytest.raises(NotImplementedError):
            test(LocalCall(stub))


@pytest.mark.parametrize("item", sorted(NAMES))
def test_an_answer_that_does_nothing_fails_each_property(item):
    def nothing(model, x, *, scales=(0.75, 1.0, 1.25), flip=True):
        return None

    assert fails(nothing, [PUBLIC[item]]) and fails(nothing, suite.tests(SECRETS[0])[item])


def test_the_tests_are_fast():
    start = time.perf_counter()
    fails(reference.tta_predict, PUBLIC.values())
    assert time.perf_counter() - start < 3
    start = time.perf_counter()
    fails(reference.tta_predict, sum(suite.tests(SECRETS[0]).values(), []))
    assert time.perf_counter() - start < 5


def test_another_secret_draws_other_inputs_and_the_same_secret_the_same():
    def recorded(secret):
        shown = []

        def function(model, x, **options):
            shown.append(x)
            return reference.tta_predict(model, x, **options)

        suite.tests(secret)["equal to the definition"][0](LocalCall(function))
        return shown[0]

    first, again, other = (recorded(secret) for secret in (SECRETS[0], SECRETS[0], SECRETS[1]))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_oracle_interpolates_as_torch_does():
    maps = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    for size in ((5, 7), (1, 1), (3, 11), (13, 4), (2, 29)):
        expected = nn.functional.interpolate(maps.double(), size, mode="bilinear")
        expect_close(suite.resized(maps, *size), expected, 1e-12)


def test_a_probe_keeps_its_record_through_copies_and_names_the_one_it_gave_away():
    model = Probe(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
    assert model.given is model

    def function(model, x):
        model.network[1].eval()
        model(x)
        return x

    LocalCall(function)(model, torch.rand(2, 3, 4, 5))
    assert model.given is not model
    assert model.modes() == [True] * 4 and model.given.modes() == [True, True, True, False]
    assert model.sizes() == {(4, 5): 2}
    assert model.views[0].training and model.views[0].gradients
    assert model.given.network[0].weight is not model.network[0].weight


def test_a_ramp_runs_from_edge_to_edge_and_a_fussy_model_refuses_one_height():
    logits = Ramp(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))(torch.rand(1, 3, 2, 4))
    assert logits[0, 0, :, 0].tolist() == [0.25, 0.75]
    assert logits[0, 1, 0].tolist() == [0.25, 0.75, 1.25, 1.75]
    images = torch.rand(1, 3, 2, 4)
    assert Fussy(3)(images) is images
    with pytest.raises(RuntimeError):
        Fussy(2)(images)
