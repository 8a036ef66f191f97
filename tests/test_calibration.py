"""Calibration by hand, and on answers whose odds are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from segcourse.calibration import Calibration, best_temperature


def drawn(temperature, seed=0, size=(4, 5, 40, 40)):
    """Logits, and labels drawn with the probabilities of softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, generator=generator)
    odds = (logits / temperature).softmax(1).movedim(1, -1).flatten(0, 2)
    labels = odds.multinomial(1, generator=generator)
    return logits, labels.view(size[0], *size[2:])


def test_two_bins_by_hand():
    """Four pixels: two of confidence 0.6, one of them right; two of 0.9, both right."""
    p = torch.tensor([0.6, 0.6, 0.9, 0.9])
    logits = torch.stack([p.log(), (1 - p).log()])[None, :, None]
    target = torch.tensor([[[0, 1, 0, 0]]])
    counted = Calibration(bins=4)
    counted.update(logits, target)
    assert counted.pixels.tolist() == [0, 0, 2, 2]
    assert counted.accuracy[2:].tolist() == [0.5, 1.0]
    assert counted.confidence[2:].tolist() == pytest.approx([0.6, 0.9])
    assert counted.accuracy[:2].isnan().all()
    assert counted.error() == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)


def test_batches_add_up_and_void_does_not_count():
    logits, target = drawn(2.0)
    target[:, :7] = 255
    whole, parts = Calibration(), Calibration()
    whole.update(logits, target)
    for i in range(4):
        parts.update(logits[i : i + 1], target[i : i + 1])
    assert parts.error() == pytest.approx(whole.error(), abs=1e-12)
    logits[:, :, :7] = 100 * torch.randn(logits[:, :, :7].shape)
    again = Calibration()
    again.update(logits, target)
    assert again.error() == whole.error()
    assert math.isnan(Calibration().error())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_drew_the_labels_is_found_and_calibrates(temperature):
    logits, target = drawn(temperature, size=(8, 5, 80, 80))
    found = best_temperature(logits, target)
    assert found == pytest.approx(temperature, rel=0.05)
    before, after = Calibration(), Calibration()
    before.update(logits, target)
    after.update(logits / found, target)
    assert after.error() < 0.01
    assert (before.error() > 0.04) == (temperature != 1)


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one():
    counted = Calibration(bins=4)
    counted.update(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert counted.pixels.tolist() == [0, 1, 0, 0]  # a half, in (1/4, 1/2]


@pytest.mark.parametrize("void", [0, 255])
def test_void_pixels_change_no_temperature_and_no_error(void):
    logits, target = drawn(2.0)
    target[:, :7] = void
    kept, logits_kept = target[:, 7:], logits[:, :, 7:]
    found = best_temperature(logits, target, ignore_index=void)
    assert found == pytest.approx(best_temperature(logits_kept, kept, ignore_index=void))
    whole, part = Calibration(ignore_index=void), Calibration(ignore_index=void)
    whole.update(logits, target)
    part.update(logits_kept, kept)
    assert whole.error() == pytest.approx(part.error())


@given(st.floats(0.2, 5), st.integers(0, 100))
def test_no_other_temperature_has_a_smaller_cross_entropy(scale, seed):
    logits, target = drawn(1.0, seed, (1, 3, 6, 6))
    logits = logits * scale
    found = best_temperature(logits, target)

    def entropy(t):
        return F.cross_entropy(logits.double() / t, target).item()

    assert all(entropy(found) <= entropy(found * f) + 1e-9 for f in (0.8, 0.99, 1.01, 1.25))


def test_the_temperature_stays_finite_for_a_perfect_network():
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], dim=1)
    assert best_temperature(logits, target) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: Calibration(bins=0), "bins: .* 0"),
        (lambda x, y: Calibration().update([1.0], y), "logits: expected a tensor; got list"),
        (lambda x, y: Calibration().update(x[0], y), "logits: "),
        (lambda x, y: Calibration().update(x, y[:, :2]), "target: expected int64"),
        (lambda x, y: Calibration().update(x, y + 7), "target"),
        (lambda x, y: Calibration().update(x / 0, y), "logits: expected finite"),
        (lambda x, y: best_temperature(x, torch.full_like(y, 255)), "target: .* not void"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
