"""The network that ships with the exercises."""

import pytest

from segcourse import results
from segcourse.exercises.model import FILE, trained_unet
from segcourse.experiments import METRICS
from segcourse.toyscape import Toyscape
from segcourse.training import evaluate


def test_the_trained_network_is_small_and_as_good_as_those_of_chapter_02():
    assert FILE.stat().st_size < 300_000
    scores = evaluate(trained_unet(), Toyscape("val", length=200).prerender())
    low, high = results.find("unet", "miou").band()
    assert low <= scores.miou <= high


@pytest.mark.parametrize("start", ["boundary_start", "tta_none", "crf_none"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_recorded_effects_start_from_the_networks_of_chapter_02(start, metric):
    found = results.find(f"effect {start}", metric).values
    assert found == pytest.approx(results.find("unet", metric).values, abs=1e-4)
