"""Exercise 2: the oracle, the probes and the wrong answers' parts are what they should be."""

import pytest
import torch
from conftest import SECRETS, fails
from hidden import draw
from hidden.tta_predict import suite, wrong
from torch import nn

from segcourse.exercises.contract import LocalCall, expect_close
from segcourse.exercises.tta_predict import PUBLIC, Fussy, Probe, Ramp


def test_the_wrong_answers_are_right_but_for_one_part():
    assert not fails(wrong.answer(), PUBLIC.values())
    assert not fails(wrong.answer(), sum(draw.tests("tta_predict", SECRETS[0]).values(), []))


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
