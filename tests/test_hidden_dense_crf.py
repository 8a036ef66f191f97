"""Exercise 3: its hidden tests pass every right answer and fail every wrong one."""

import math
import time

import pytest
import torch
from hidden.dense_crf import reference, suite, wrong

from segcourse.exercises import dense_crf as exercise
from segcourse.exercises.contract import AnswerError, LocalCall, expect_close
from segcourse.exercises.dense_crf import CONTRACT, PUBLIC

SECRETS = [bytes([n]) * 16 for n in range(5)]
NAMES = {item.name for item in CONTRACT.properties}
RIGHT = (reference.dense_crf, *reference.ALSO_RIGHT)

each_right_answer = pytest.mark.parametrize("function", RIGHT, ids=lambda f: f.__name__)

# The public images are too small or too plain to show what these do wrong.
FOR_THE_HIDDEN_TESTS_ALONE = {"rows normalised"}


def stub(image, probs, **options):
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
    def right(image, probs, *, iters=5, **options):
        return wrong._infer(wrong._kernel(image, **wrong.DEFAULTS | options), probs, iters)

    assert not fails(right, PUBLIC.values())
    assert not fails(right, sum(suite.tests(SECRETS[0]).values(), []))


def test_each_property_fails_a_wrong_answer():
    assert {item for _, item in wrong.WRONG.values()} == NAMES


def test_a_stub_counts_as_not_attempted():
    hidden = sum(suite.tests(SECRETS[0]).values(), [])
    for test in [*PUBLIC.values(), *hidden]:
        with pytest.raises(NotImplementedError):
            test(LocalCall(stub))


@pytest.mark.parametrize("item", sorted(NAMES))
def test_an_answer_that_does_nothing_fails_each_property(item):
    def nothing(image, probs, **options):
        return None

    assert fails(nothing, [PUBLIC[item]]) and fails(nothing, suite.tests(SECRETS[0])[item])


@pytest.mark.parametrize("answer", ["the probabilities", "all classes equal", "the likeliest"])
def test_answers_without_a_crf_fail_the_gate(answer):
    def function(image, probs, **options):
        if answer == "the probabilities":
            return probs
        if answer == "all classes equal":
            return torch.full_like(probs, 1 / len(probs))
        return torch.zeros_like(probs).scatter_(0, probs.argmax(0, keepdim=True), 1.0)

    hidden = suite.tests(SECRETS[0])
    for item in ("one message", "the mean field"):
        assert fails(function, [PUBLIC[item]]) and fails(function, hidden[item])


def test_the_tests_are_fast():
    for function in RIGHT:
        start = time.perf_counter()
        fails(function, PUBLIC.values())
        assert time.perf_counter() - start < 3
        start = time.perf_counter()
        fails(function, sum(suite.tests(SECRETS[0]).values(), []))
        assert time.perf_counter() - start < 5


def test_another_secret_draws_other_inputs_and_the_same_secret_the_same():
    def recorded(secret):
        shown = []

        def function(image, probs, **options):
            shown.append(probs)
            return reference.dense_crf(image, probs, **options)

        suite.tests(secret)["the mean field"][0](LocalCall(function))
        return shown[0]

    first, again, other = (recorded(secret) for secret in (SECRETS[0], SECRETS[0], SECRETS[1]))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_oracle_is_the_definition_pixel_by_pixel():
    """Plain loops over pixels and labels, the Potts penalty as it stands in the contract."""
    g = torch.Generator().manual_seed(0)
    image = torch.randint(100, 140, (3, 4, 3), generator=g).byte()
    probs = torch.rand(3, 3, 4, generator=g)
    probs[0, 1, 2] = 0
    probs /= probs.sum(0)
    options = {"w_bilateral": 1.3, "sxy": 2.0, "srgb": 15.0, "w_gauss": 0.7, "sg": 1.4}
    pixels = [(y, x) for y in range(3) for x in range(4)]

    def alike(i, j, kernel):
        far = sum((a - b) ** 2 for a, b in zip(i, j, strict=True))
        if kernel == "w_gauss":
            return math.exp(-far / (2 * 1.4**2))
        colours = zip(image[i].tolist(), image[j].tolist(), strict=True)
        unlike = sum((a - b) ** 2 for a, b in colours)
        return math.exp(-far / (2 * 2.0**2) - unlike / (2 * 15.0**2))

    unary = {i: [-math.log(max(p, 1e-5)) for p in probs[:, i[0], i[1]].tolist()] for i in pixels}

    def softmax(paid):
        exps = [math.exp(-x) for x in paid]
        return [x / sum(exps) for x in exps]

    weights = {}
    for kernel in ("w_bilateral", "w_gauss"):
        n = {i: sum(alike(i, j, kernel) for j in pixels) for i in pixels}
        for i in pixels:
            for j in pixels:
                factor = options[kernel] * alike(i, j, kernel) / math.sqrt(n[i] * n[j])
                weights[i, j] = weights.get((i, j), 0) + factor

    q = {i: softmax(unary[i]) for i in pixels}
    for _ in range(2):
        message = {
            i: [sum(weights[i, j] * q[j][c] for j in pixels) for c in range(3)] for i in pixels
        }
        q = {
            i: softmax([unary[i][c] + sum(message[i]) - message[i][c] for c in range(3)])
            for i in pixels
        }
    expected = torch.tensor([q[i] for i in pixels], dtype=torch.float64).T.view(3, 3, 4)
    expect_close(suite.mean_field(image, probs, iters=2, **options), expected, 1e-6)


def test_the_stored_numbers_are_those_of_the_oracle():
    image, probs = exercise._image(8, 9), exercise._probs(2, 8, 9)
    stored = {"VARIED 0": exercise.VARIED[0], "VARIED 1": exercise.VARIED[1]}
    stored |= {"VARIED 2": exercise.VARIED[2], "MEAN_FIELD": exercise.MEAN_FIELD}
    stored |= {"TEN_ITERATIONS": exercise.TEN_ITERATIONS}
    options = {f"VARIED {i}": some for i, some in enumerate(exercise.SOME_OPTIONS)}
    options["MEAN_FIELD"] = {"w_bilateral": 4.0, "w_gauss": 1.0}
    options["TEN_ITERATIONS"] = {"iters": 10, "w_bilateral": 1.0, "w_gauss": 0.5}
    for name, text in stored.items():
        second = suite.mean_field(image, probs, **options[name])[1]
        assert (exercise._stored(text) - second).abs().max() < 0.00051

    probs = probs / 2 + 0.25
    before = exercise.log_odds(probs, probs)
    for text, w_bilateral, w_gauss in ((exercise.BILATERAL, 1.0, 0.0), (exercise.GAUSS, 0.0, 1.0)):
        found = suite.mean_field(image, probs, iters=1, w_bilateral=w_bilateral, w_gauss=w_gauss)
        message = (exercise.log_odds(found, probs) - before)[1]
        assert (exercise._stored(text) - message).abs().max() < 0.00051
