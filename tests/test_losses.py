"""What every loss must satisfy on any input, and what it must refuse."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segcourse.losses import (
    cross_entropy,
    dice_loss,
    focal_loss,
    lovasz_softmax,
    tversky_loss,
    weighted_sum,
)
from segcourse.metrics import ConfusionMatrix, iou_per_class
from segcourse.training import pixel_loss

C = 4
VOID = 255

jaccard_loss = functools.partial(tversky_loss, alpha=1, beta=1)
PIXEL_LOSSES = {
    "cross_entropy": cross_entropy,
    "smoothed": functools.partial(cross_entropy, label_smoothing=0.1),
    "focal": focal_loss,
    "focal_half": functools.partial(focal_loss, gamma=0.5),
}
REGION_LOSSES = {
    "dice": dice_loss,
    "jaccard": jaccard_loss,
    "tversky": functools.partial(tversky_loss, smooth=1),
    "recall": functools.partial(tversky_loss, alpha=0, beta=1),
    "precision": functools.partial(tversky_loss, alpha=1, beta=0),
    "dice_per_image": functools.partial(dice_loss, per_image=True),
    "dice_all": functools.partial(dice_loss, classes="all"),
    "lovasz": lovasz_softmax,
    "lovasz_per_image": functools.partial(lovasz_softmax, per_image=True),
    "lovasz_all": functools.partial(lovasz_softmax, classes="all"),
}
LOSSES = PIXEL_LOSSES | REGION_LOSSES

# One failure at a time: a wrong loss must fail with the one error that tells what is wrong.
quick = settings(deadline=None, max_examples=25, report_multiple_bugs=False)
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_pixel_loss = pytest.mark.parametrize("loss", PIXEL_LOSSES.values(), ids=PIXEL_LOSSES)
each_region_loss = pytest.mark.parametrize("loss", REGION_LOSSES.values(), ids=REGION_LOSSES)


def example(seed=0, shape=(2, 5, 6), void=0.2, scale=2.0, present=C):
    """Logits float64 [B, C, H, W], target [B, H, W] with some void, weight [C]."""
    generator = torch.Generator().manual_seed(seed)
    images, rows, columns = shape
    logits = torch.randn(images, C, rows, columns, dtype=torch.float64, generator=generator)
    target = torch.randint(0, present, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < void] = VOID
    weight = torch.rand(C, dtype=torch.float64, generator=generator) + 0.5
    return scale * logits, target, weight


@st.composite
def examples(draw):
    shape = tuple(draw(st.integers(1, 4)) for _ in range(3))
    return example(
        seed=draw(st.integers(0, 2**31)),
        shape=shape,
        void=draw(st.sampled_from((0.0, 0.3, 1.0))),
        scale=draw(st.sampled_from((0.0, 1.0, 30.0))),
        present=draw(st.integers(1, C)),
    )


def value_and_gradient(loss, logits, target, **options):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target, **options)
    value.sum().backward()
    return value.detach(), logits.grad


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=False)


# Properties


@each_loss
@quick
@given(examples(), st.randoms(use_true_random=False))
def test_the_order_of_the_pixels_does_not_matter(loss, batch, random):
    logits, target, weight = batch
    height, width = target.shape[1:]
    places = list(range(height * width))
    random.shuffle(places)
    moved_logits = logits.flatten(2)[:, :, places].view_as(logits)
    moved_target = target.flatten(1)[:, places].view_as(target)
    same(loss(moved_logits, moved_target, weight=weight), loss(logits, target, weight=weight))


@each_loss
@quick
@given(examples(), st.permutations(range(C)))
def test_the_names_of_the_classes_do_not_matter(loss, batch, order):
    logits, target, weight = batch
    renamed = target.clone()
    for new, old in enumerate(order):
        renamed[target == old] = new
    found = loss(logits[:, list(order)], renamed, weight=weight[list(order)])
    same(found, loss(logits, target, weight=weight))


@each_loss
@quick
@given(examples(), st.sampled_from((-1e4, 0.0, 1e4)))
def test_void_pixels_change_neither_value_nor_gradient(loss, batch, noise):
    logits, target, weight = batch
    void = (target == VOID).unsqueeze(1).expand_as(logits)
    changed = torch.where(void, noise * logits.flip(1), logits)
    value, gradient = value_and_gradient(loss, logits, target, weight=weight)
    other_value, other_gradient = value_and_gradient(loss, changed, target, weight=weight)
    same(other_value, value)
    same(other_gradient, gradient)
    assert gradient[void].abs().sum() == 0


@each_loss
@quick
@given(examples(), st.integers(1, 3))
def test_adding_void_pixels_changes_nothing(loss, batch, rows):
    logits, target, weight = batch
    wider_logits = F.pad(logits, (0, 0, 0, rows), value=3.0)
    wider_target = F.pad(target, (0, 0, 0, rows), value=VOID)
    expected = loss(logits, target, weight=weight)
    same(loss(wider_logits, wider_target, weight=weight), expected)


@each_region_loss
@quick
@given(examples())
def test_region_losses_lie_between_0_and_1(loss, batch):
    logits, target, weight = batch
    assert -1e-12 <= loss(logits, target, weight=weight) <= 1 + 1e-12


@each_pixel_loss
@quick
@given(examples())
def test_pixel_losses_are_at_least_0(loss, batch):
    logits, target, weight = batch
    assert loss(logits, target, weight=weight, reduction="none").min() >= 0


@quick
@given(examples(), st.floats(0, 5))
def test_focal_loss_is_at_most_cross_entropy(batch, gamma):
    logits, target, _ = batch
    focal = focal_loss(logits, target, gamma=gamma, reduction="none")
    assert (focal <= cross_entropy(logits, target, reduction="none")).all()


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@quick
@given(examples())
def test_focal_loss_with_gamma_0_is_cross_entropy(reduction, batch):
    logits, target, weight = batch
    options = {"weight": weight, "reduction": reduction}
    for ours, expected in zip(
        value_and_gradient(focal_loss, logits, target, gamma=0, **options),
        value_and_gradient(cross_entropy, logits, target, **options),
        strict=True,
    ):
        same(ours, expected, 1e-14)


def one_hot_logits(prediction, size=1e4):
    return size * F.one_hot(prediction, C).movedim(-1, 1).double()


@pytest.mark.parametrize("loss", (lovasz_softmax, jaccard_loss))
@quick
@given(examples())
def test_on_certain_predictions_lovasz_and_jaccard_are_1_minus_iou(loss, batch):
    logits, target, _ = batch
    prediction = logits.argmax(dim=1)
    confusion = ConfusionMatrix(C)
    confusion.update(prediction, target)
    present = confusion.matrix.sum(dim=1) > 0
    expected = (1 - iou_per_class(confusion.matrix))[present]
    same(loss(one_hot_logits(prediction), target), expected.sum() / max(present.sum(), 1))


# With smoothed labels a certain prediction is not perfect, and in a Dice loss over all classes an
# absent one costs 1.
@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"smoothed", "dice_all"}))
@quick
@given(examples())
def test_a_perfect_prediction_costs_nothing(name, batch):
    loss = LOSSES[name]
    _, target, weight = batch
    logits = one_hot_logits(target.where(target != VOID, 0))
    same(loss(logits, target, weight=weight), torch.zeros((), dtype=torch.float64))


@each_loss
def test_a_step_against_the_gradient_lowers_the_loss(loss):
    logits, target, _ = example(shape=(2, 8, 8))
    value, gradient = value_and_gradient(loss, logits, target)
    assert loss(logits - 0.1 * gradient, target) < value


# Values worked out by hand


def two_pixels():
    """Probabilities 3/4, 1/4 and 1/2, 1/2 of two classes; the truth is 0 and 1."""
    p = torch.tensor([[0.75, 0.5], [0.25, 0.5]], dtype=torch.float64)
    return p.log().view(1, 2, 1, 2), torch.tensor([[[0, 1]]])


BY_HAND = {
    "cross_entropy": (cross_entropy, [-math.log(3 / 4), -math.log(1 / 2)]),
    "focal": (focal_loss, [-math.log(3 / 4) / 16, -math.log(1 / 2) / 4]),
    # TP 3/4, FP 1/2, FN 1/4 for class 0; TP 1/2, FP 1/4, FN 1/2 for class 1.
    "dice": (dice_loss, [1 - 1.5 / 2.25, 1 - 1 / 1.75]),
    "jaccard": (jaccard_loss, [1 - 0.75 / 1.5, 1 - 0.5 / 1.25]),
    "smooth_dice": (functools.partial(dice_loss, smooth=1), [1 - 3.5 / 4.25, 1 - 3 / 3.75]),
    "tversky": (tversky_loss, [1 - 0.75 / 1.075, 1 - 0.5 / 0.925]),
    # Class 0: errors 1/2 outside, then 1/4 inside, so that 1 - IoU goes 0, 1/2, 1.
    # Class 1: errors 1/2 inside, then 1/4 outside, so that it goes 0, 1, 1.
    "lovasz": (lovasz_softmax, [0.25 + 0.125, 0.5]),
}


@pytest.mark.parametrize(("loss", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_two_pixels_by_hand(loss, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    weight = torch.tensor([1.0, 3.0], dtype=torch.float64)
    same(loss(*two_pixels(), reduction="none").flatten(), expected)
    same(loss(*two_pixels(), reduction="none", weight=weight).flatten(), weight * expected)
    same(loss(*two_pixels(), reduction="sum", weight=weight), weight @ expected)
    same(loss(*two_pixels()), expected.mean())
    same(loss(*two_pixels(), weight=weight), weight @ expected / 4)


def test_label_smoothing_by_hand():
    smoothed = cross_entropy(*two_pixels(), label_smoothing=0.2, reduction="none").flatten()
    first = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    same(smoothed, torch.tensor([first, math.log(2)], dtype=torch.float64))


@pytest.mark.parametrize("loss", (dice_loss, jaccard_loss, lovasz_softmax))
def test_all_classes_count_when_asked(loss):
    logits, target, _ = example(present=2, void=0)
    found = loss(logits, target, classes="all", reduction="none")
    same(found[:2], loss(logits, target, reduction="none")[:2])
    largest = logits.softmax(dim=1).amax(dim=(0, 2, 3))[2:]
    same(found[2:], largest if loss is lovasz_softmax else torch.ones(2, dtype=torch.float64))
    same(loss(logits, target, classes="all"), found.mean())


def test_smoothing_prices_the_false_positives_of_an_absent_class():
    logits, target, _ = example(present=2, void=0)
    wrong = logits.softmax(dim=1).sum(dim=(0, 2, 3))[2:]
    found = dice_loss(logits, target, classes="all", smooth=3, reduction="none")[2:]
    same(found, 1 - 3 / (wrong / 2 + 3))


@pytest.mark.parametrize("loss", (dice_loss, jaccard_loss, lovasz_softmax))
@pytest.mark.parametrize("classes", ("present", "all"))
def test_per_image_is_the_mean_over_the_images_that_have_valid_pixels(loss, classes):
    logits, target, weight = example(shape=(4, 5, 6))
    target[1] = VOID
    target[2] = target[2].clamp(max=1)
    options = {"classes": classes, "weight": weight}
    alone = [loss(logits[i : i + 1], target[i : i + 1], **options) for i in (0, 2, 3)]
    same(loss(logits, target, per_image=True, **options), torch.stack(alone).mean())
    rows = loss(logits, target, per_image=True, reduction="none", **options)
    assert rows.shape == (4, C) and rows[1].abs().sum() == 0
    same(rows[2], loss(logits[2:3], target[2:3], reduction="none", **options))
    same(loss(logits, target, per_image=True, reduction="sum", **options), rows.sum())


@each_loss
def test_another_label_can_be_void(loss):
    logits, target, weight = example()
    expected = loss(logits, target.where(target != 0, VOID), weight=weight)
    same(loss(logits, target.where(target != VOID, 0), weight=weight, ignore_index=0), expected)
    negative = target.where(target != VOID, -1)
    same(
        loss(logits, negative, weight=weight, ignore_index=-1),
        loss(logits, target, weight=weight),
    )


# Gradients and numbers at the edge


@each_loss
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("weighted", (False, True))
def test_gradients_are_those_of_finite_differences(loss, reduction, weighted):
    logits, target, weight = example(shape=(2, 3, 3), present=3)
    options = {"reduction": reduction, "weight": weight if weighted else None}
    assert torch.autograd.gradcheck(
        lambda x: loss(x, target, **options), logits.requires_grad_(), atol=1e-7
    )


@each_loss
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("weighted", (False, True))
def test_all_void_is_0_with_zero_gradient(loss, reduction, weighted):
    logits, target, weight = example(void=1.0)
    options = {"reduction": reduction, "weight": weight if weighted else None}
    value, gradient = value_and_gradient(loss, logits, target, **options)
    assert value.abs().sum() == 0
    assert gradient.abs().sum() == 0


@each_loss
def test_weights_of_0_are_0_with_zero_gradient(loss):
    logits, target, weight = example()
    value, gradient = value_and_gradient(loss, logits, target, weight=0 * weight)
    assert value == 0 and gradient.abs().sum() == 0


@each_loss
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("size", (1.0, 1e4))
@pytest.mark.parametrize("right", (True, False))
def test_half_precision_and_large_logits_stay_finite(loss, dtype, size, right):
    _, target, weight = example(shape=(2, 16, 16))
    labels = target.where(target != VOID, 0)
    logits = one_hot_logits(labels if right else (labels + 1) % C, size).to(dtype)
    value, gradient = value_and_gradient(loss, logits, target, weight=weight.to(dtype))
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert value.isfinite() and gradient.isfinite().all()
    wide = loss(logits.double(), target, weight=weight.to(dtype).double())
    torch.testing.assert_close(value.double(), wide, rtol=1e-5, atol=1e-6)


@each_loss
def test_autocast_changes_nothing(loss):
    logits, target, _ = example(shape=(2, 16, 16))
    expected = value_and_gradient(loss, logits.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradient(loss, logits.float(), target)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(logits, target).dtype == torch.float64


@pytest.mark.parametrize("gamma", (0, 0.01, 0.5, 1, 2, 50))
def test_focal_gradient_is_right_where_the_probability_is_1_to_rounding(gamma):
    for margin in (0.0, 1.0, 20.0, 40.0, 200.0, 1e4):
        logits = torch.tensor([margin, 0.0]).view(1, 2, 1, 1)
        target = torch.zeros(1, 1, 1, dtype=torch.int64)
        value, gradient = value_and_gradient(focal_loss, logits, target, gamma=gamma)
        expected = value_and_gradient(focal_loss, logits.double(), target, gamma=gamma)
        torch.testing.assert_close(value.double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), expected[1], rtol=1e-5, atol=1e-5)


@each_region_loss
def test_float32_keeps_its_digits_over_half_a_million_pixels(loss):
    logits, target, _ = example(shape=(2, 512, 512))
    found = loss(logits.float(), target).double()
    torch.testing.assert_close(found, loss(logits, target), rtol=1e-6, atol=0)


def test_float32_keeps_its_digits_where_one_class_fills_a_million_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1024, 1024, generator=generator)
    target = (torch.rand(1, 1024, 1024, generator=generator) < 0.02).long()
    found = dice_loss(logits, target).double()
    torch.testing.assert_close(found, dice_loss(logits.double(), target), rtol=1e-6, atol=0)


@pytest.mark.parametrize("combined", (True, False))
def test_a_second_derivative_of_dice_is_refused_and_not_left_out(combined):
    loss = weighted_sum((1, cross_entropy), (1, dice_loss)) if combined else dice_loss
    logits, target, _ = example()
    logits.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss(logits, target), logits, create_graph=True)


@pytest.mark.parametrize("loss", (dice_loss, lovasz_softmax))
def test_float32_keeps_the_digits_of_the_gradient(loss):
    # No two errors are so close that rounding could exchange their order.
    pixels = 2**16
    margin = 8 * (torch.arange(pixels).double() + 0.25) / pixels - 4
    logits = torch.stack([margin, -margin]).div(2).view(1, 2, 256, 256)
    target = torch.randint(0, 2, (1, 256, 256), generator=torch.Generator().manual_seed(0))
    _, gradient = value_and_gradient(loss, logits.float(), target)
    _, expected = value_and_gradient(loss, logits, target)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("loss", (dice_loss, jaccard_loss, lovasz_softmax))
def test_two_of_21_classes_all_right_is_not_punished_for_the_other_19(loss):
    target = torch.arange(2).repeat_interleave(32).view(1, 8, 8)
    logits = 20 * F.one_hot(target, 21).movedim(-1, 1).float()
    assert loss(logits, target) < 1e-6


@each_loss
def test_the_layout_in_memory_does_not_matter(loss):
    logits, target, weight = example(shape=(2, 4, 6))
    expected = value_and_gradient(loss, logits, target, weight=weight)
    channels_last = logits.to(memory_format=torch.channels_last)
    turned = logits.transpose(2, 3).contiguous().transpose(2, 3)
    turned_target = target.transpose(1, 2).contiguous().transpose(1, 2)
    for x, y in ((channels_last, target), (turned, turned_target)):
        assert not x.is_contiguous()
        for found, value in zip(
            value_and_gradient(loss, x, y, weight=weight), expected, strict=True
        ):
            same(found, value)


# Sums of losses


def test_a_weighted_sum_adds_values_and_gradients():
    logits, target, weight = example()
    total = weighted_sum((1, cross_entropy), (0.5, lovasz_softmax))
    value, gradient = value_and_gradient(total, logits, target, weight=weight)
    first = value_and_gradient(cross_entropy, logits, target, weight=weight)
    second = value_and_gradient(lovasz_softmax, logits, target, weight=weight)
    same(value, first[0] + 0.5 * second[0])
    same(gradient, first[1] + 0.5 * second[1])


def test_a_weighted_sum_is_a_loss_to_train_with():
    logits, target, weight = example()
    model = torch.nn.Conv2d(C, C, 1)
    total = weighted_sum((1, cross_entropy), (2, functools.partial(focal_loss, gamma=1)))
    loss = pixel_loss(total, weight=weight)
    batch = {"image": logits.float(), "mask": target}
    expected = total(model(batch["image"]), target, weight=weight)
    same(loss(model, batch), expected)


def test_a_weighted_sum_refuses_what_it_cannot_add():
    with pytest.raises(ValueError, match="terms: .* none"):
        weighted_sum()
    with pytest.raises(TypeError, match="terms: .*0.5"):
        weighted_sum((cross_entropy, 0.5))
    with pytest.raises(ValueError, match="factor: .* -1"):
        weighted_sum((-1, cross_entropy))
    logits, target, _ = example()
    mixed = weighted_sum((1, cross_entropy), (1, dice_loss))
    with pytest.raises(ValueError, match="reduction: .*one shape"):
        mixed(logits, target, reduction="none")


# Refusals

LOGITS = torch.zeros(2, 3, 4, 5)
TARGET = torch.zeros(2, 4, 5, dtype=torch.int64)


@each_loss
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits: .* list"),
        ({"logits": LOGITS.long()}, TypeError, "logits: .* torch.int64"),
        ({"logits": LOGITS[0]}, ValueError, r"logits: .* \[3, 4, 5\]"),
        ({"logits": LOGITS[:0]}, ValueError, r"logits: .* \[0, 3, 4, 5\]"),
        ({"logits": LOGITS[:, :1]}, ValueError, r"logits: .* C >= 2 .* \[2, 1, 4, 5\]"),
        ({"target": None}, TypeError, "target: .* NoneType"),
        ({"target": TARGET.int()}, TypeError, "target: .*int64.* torch.int32"),
        ({"target": TARGET[:, :3]}, ValueError, r"target: .*\[2, 4, 5\].* \[2, 3, 5\]"),
        ({"target": TARGET.to("meta")}, ValueError, "target: .*cpu.* meta"),
        ({"target": TARGET + 3}, ValueError, r"target: .*0\.\.2 or be 255 \(void\); found 3"),
        ({"target": TARGET - 1}, ValueError, "target: .*found -1"),
        ({"target": TARGET + 255, "ignore_index": 0}, ValueError, "target: .*found 255"),
        ({"ignore_index": None}, TypeError, "ignore_index: .* NoneType"),
        ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight: .* list"),
        ({"weight": torch.ones(2)}, ValueError, r"weight: .*\[3\].* \[2\]"),
        ({"weight": torch.ones(3, device="meta")}, ValueError, "weight: .*cpu.* meta"),
        ({"weight": torch.tensor([1.0, -1.0, 1.0])}, ValueError, "weight: .*-1"),
        ({"weight": torch.tensor([1.0, math.nan, 1.0])}, ValueError, "weight: .*nan"),
        ({"weight": torch.tensor([1.0, math.inf, 1.0])}, ValueError, "weight: .*inf"),
        ({"reduction": "average"}, ValueError, "reduction: .*mean, sum, none.*'average'"),
    ],
)
def test_a_wrong_argument_is_named(loss, arguments, error, message):
    with pytest.raises(error, match=message):
        loss(**({"logits": LOGITS, "target": TARGET} | arguments))


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (cross_entropy, {"label_smoothing": 1.5}, r"label_smoothing: .*\[0, 1\].* 1.5"),
        (cross_entropy, {"label_smoothing": -0.1}, "label_smoothing: .* -0.1"),
        (focal_loss, {"gamma": -1}, "gamma: .* -1"),
        (focal_loss, {"gamma": math.inf}, "gamma: .*finite.* inf"),
        (focal_loss, {"gamma": math.nan}, "gamma: .* nan"),
        (focal_loss, {"gamma": "2"}, "gamma: .* '2'"),
        (tversky_loss, {"alpha": -0.3}, "alpha: .* -0.3"),
        (tversky_loss, {"beta": -0.7}, "beta: .* -0.7"),
        (tversky_loss, {"alpha": 0, "beta": 0}, "alpha, beta: .* 0 and 0"),
        (dice_loss, {"smooth": -1}, "smooth: .* -1"),
        (dice_loss, {"classes": "some"}, "classes: .*present, all.*'some'"),
        (lovasz_softmax, {"classes": "some"}, "classes: .*present, all.*'some'"),
    ],
)
def test_a_wrong_option_is_named(loss, arguments, message):
    with pytest.raises(ValueError, match=message):
        loss(LOGITS, TARGET, **arguments)


# Wrong losses, each with the test above that tells it from a right one


def lovasz_by_steps(logits, target, *, dims=(-3, -2, -1), descending=True, **options):
    """Lovász-Softmax as differences of 1 - IoU, the pixels sorted within `dims` only."""
    losses = []
    for c in range(C):
        inside = (target == c).flatten(dims[0], dims[-1])
        errors = (inside.double() - logits.softmax(dim=1)[:, c].flatten(dims[0], dims[-1])).abs()
        errors = errors.masked_fill((target == VOID).flatten(dims[0], dims[-1]), -1)
        errors, order = errors.sort(dim=-1, descending=descending)
        inside = inside.gather(-1, order).double()
        pixels = inside.sum(dim=-1, keepdim=True)
        iou = (pixels - inside.cumsum(-1)) / (pixels + (1 - inside).cumsum(-1))
        if pixels.sum() > 0:
            losses.append((errors * (1 - iou).diff(prepend=0 * pixels)).sum())
    return torch.stack(losses).mean() if losses else 0 * logits.sum()


def dice_of_one_hot(logits, target, *, weight=None, over=slice(None), void=0.0, absent=False):
    """Dice over the classes `over`, void pixels counted `void` times, absent classes if asked."""
    valid = (target != VOID).unsqueeze(1)
    probability = logits.softmax(dim=1) * valid.double().clamp_min(void)
    truth = F.one_hot(target.where(target != VOID, 0), logits.shape[1]).movedim(-1, 1) * valid
    right, predicted, pixels = (
        part.sum(dim=(0, 2, 3)) for part in (probability * truth, probability, truth)
    )
    weight = torch.ones(logits.shape[1]) if weight is None else weight
    shares = (weight * ((pixels > 0) | absent))[over]
    losses = (1 - 2 * right / (predicted + pixels).clamp_min(1e-7))[over]
    return (shares * losses).sum() / shares.sum().clamp_min(1e-7)


def focal_of_powers(logits, target, *, gamma=2.0, weight=None, reduction="mean", alpha=1.0):
    entropy = F.cross_entropy(logits.float(), target, ignore_index=VOID, reduction="none")
    losses = alpha * (1 - torch.exp(-entropy)) ** gamma * entropy
    return losses if reduction == "none" else losses.mean()


def entropy_of_torch(logits, target, **options):
    return F.cross_entropy(logits, target, ignore_index=VOID, **options)


def entropy_over_all_pixels(logits, target, **options):
    return F.cross_entropy(logits, target, ignore_index=VOID, reduction="none", **options).mean()


def half_precision_dice(logits, target, **options):
    return dice_of_one_hot(logits, target, **options).to(logits.dtype)


def tversky_swapped(logits, target, **options):
    return tversky_loss(logits, target, alpha=0.7, beta=0.3, **options)


wrong = functools.partial
WRONG = {
    "Lovász of every row": (
        wrong(lovasz_by_steps, dims=(-1, -1)),
        test_the_order_of_the_pixels_does_not_matter,
    ),
    "Lovász from the smallest error": (
        wrong(lovasz_by_steps, descending=False),
        test_on_certain_predictions_lovasz_and_jaccard_are_1_minus_iou,
    ),
    "Dice for Jaccard": (
        dice_loss,
        test_on_certain_predictions_lovasz_and_jaccard_are_1_minus_iou,
    ),
    "Dice with absent classes": (
        wrong(dice_of_one_hot, absent=True),
        test_two_of_21_classes_all_right_is_not_punished_for_the_other_19,
    ),
    "Dice without the background": (
        wrong(dice_of_one_hot, over=slice(1, None)),
        test_the_names_of_the_classes_do_not_matter,
    ),
    "Dice that predicts on void": (
        wrong(dice_of_one_hot, void=1.0),
        test_void_pixels_change_neither_value_nor_gradient,
    ),
    "Dice in half precision": (
        half_precision_dice,
        wrong(
            test_half_precision_and_large_logits_stay_finite,
            dtype=torch.float16,
            size=1.0,
            right=True,
        ),
    ),
    "Tversky with alpha for beta": (
        tversky_swapped,
        wrong(test_two_pixels_by_hand, expected=BY_HAND["tversky"][1]),
    ),
    "focal with one alpha": (
        wrong(focal_of_powers, alpha=0.25),
        wrong(test_two_pixels_by_hand, expected=BY_HAND["focal"][1]),
    ),
    "focal with an infinite slope": (
        wrong(focal_of_powers, gamma=0.5),
        wrong(
            test_half_precision_and_large_logits_stay_finite,
            dtype=torch.float32,
            size=1e4,
            right=True,
        ),
    ),
    "cross entropy of nothing": (
        entropy_of_torch,
        wrong(test_all_void_is_0_with_zero_gradient, reduction="mean", weighted=False),
    ),
    "cross entropy over void": (
        entropy_over_all_pixels,
        test_adding_void_pixels_changes_nothing,
    ),
}


@pytest.mark.parametrize(("loss", "test"), WRONG.values(), ids=WRONG)
def test_a_wrong_loss_fails(loss, test):
    with pytest.raises(AssertionError):
        test(loss=loss)


@pytest.mark.parametrize("loss", (lovasz_by_steps, dice_of_one_hot))
def test_without_their_mistake_they_pass(loss):
    test_the_order_of_the_pixels_does_not_matter(loss=loss)
    test_void_pixels_change_neither_value_nor_gradient(loss=loss)
    test_two_of_21_classes_all_right_is_not_punished_for_the_other_19(loss=loss)
