"""Exercise 3: the oracle, the stored numbers, and the parts of the wrong answers are what they
should be; what is no CRF fails the gates."""

import math

import pytest
import torch
from conftest import SECRETS, fails
from hidden import draw
from hidden.dense_crf import effects, reference, suite, wrong

from segcourse.exercises import dense_crf as exercise
from segcourse.exercises import recorded
from segcourse.exercises.contract import expect_close
from segcourse.exercises.dense_crf import PUBLIC
from segcourse.exercises.model import trained_unet


def test_the_wrong_answers_are_right_but_for_one_part():
    def right(image, probs, *, iters=5, **options):
        return wrong._infer(wrong._kernel(image, **wrong.DEFAULTS | options), probs, iters)

    for function in (right, wrong.on_the_lattice(before=-0.5, after=-0.5)):
        assert not fails(function, PUBLIC.values())
        assert not fails(function, sum(draw.tests("dense_crf", SECRETS[0]).values(), []))


@pytest.mark.parametrize("answer", ["the probabilities", "all classes equal", "the likeliest"])
def test_answers_without_a_crf_fail_the_gate(answer):
    def function(image, probs, **options):
        if answer == "the probabilities":
            return probs
        if answer == "all classes equal":
            return torch.full_like(probs, 1 / len(probs))
        return torch.zeros_like(probs).scatter_(0, probs.argmax(0, keepdim=True), 1.0)

    hidden = draw.tests("dense_crf", SECRETS[0])
    for item in ("one message", "the mean field"):
        assert fails(function, [PUBLIC[item]]) and fails(function, hidden[item])


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


def test_the_recorded_iterations_are_those_of_the_reference():
    scenes = effects.pictures_and_probabilities(trained_unet())
    labels = recorded("dense_crf")["steps"]
    assert len(labels) == len(effects.STEPS)
    for n, stored in zip(effects.STEPS, labels, strict=True):
        q = reference.dense_crf(*scenes[effects.WATCHED], **effects.SETTINGS["crf"], iters=n)
        assert (q.argmax(dim=0) != stored).float().mean() < 0.001  # another machine may round
