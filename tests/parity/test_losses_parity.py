"""The losses against other libraries and an author's formula, value and gradient to 1e-6.

Each test says which convention makes the two equal; the table is at the top of the module.
"""

import functools

import kornia.losses as kornia
import monai.losses as monai
import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from kornia.utils.one_hot import one_hot
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

from segcourse.losses import (
    cross_entropy,
    dice_loss,
    focal_loss,
    lovasz_softmax,
    tversky_loss,
)

C = 5
VOID = 255
MULTICLASS = "multiclass"

FLOAT32 = 1e-5  # relative error of a gradient that a library computes in float32 whatever it gets

each_void = pytest.mark.parametrize("void", (0.0, 0.3))
each_gamma = pytest.mark.parametrize("gamma", (0.5, 1.0, 2.0))
each_image = pytest.mark.parametrize("per_image", (False, True))


def example(void=0.0, present=C, num_classes=C, dtype=torch.float64):
    """Logits [3, C, 9, 11], target [3, 9, 11], weight [C]."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, num_classes, 9, 11, dtype=torch.float64, generator=generator)
    target = torch.randint(0, present, (3, 9, 11), generator=generator)
    target[torch.rand(target.shape, generator=generator) < void] = VOID
    weight = torch.rand(num_classes, generator=generator) + 0.5
    return logits.to(dtype), target, weight.to(dtype)


def assert_equal(ours, theirs, logits, relative=1e-6):
    """Two functions of the logits agree to 1e-6 in value, and to `relative` of its largest number
    in the gradient, which is small: it is a mean over the pixels."""
    found, expected = [], []
    for function, results in ((ours, found), (theirs, expected)):
        x = logits.clone().requires_grad_()
        value = function(x)
        value.sum().backward()
        results += [value.detach(), x.grad]
    assert expected[1].abs().max() > 1e-6
    torch.testing.assert_close(found[0], expected[0].to(found[0]), rtol=1e-6, atol=1e-6)
    tolerance = min(relative * expected[1].abs().max().item(), 1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=tolerance)


@pytest.fixture
def exact_one_hot(monkeypatch):
    """kornia adds 1e-6 to every number of its one-hot labels; here it adds nothing."""
    exact = functools.partial(one_hot, eps=0.0)
    monkeypatch.setattr("kornia.losses.focal.one_hot", exact)
    monkeypatch.setattr("kornia.losses.dice.one_hot", exact)


# Cross entropy


@each_void
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
@pytest.mark.parametrize("weighted", (False, True))
def test_cross_entropy_equals_torch(void, reduction, label_smoothing, weighted):
    logits, target, weight = example(void)
    options = {
        "weight": weight if weighted else None,
        "ignore_index": VOID,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    assert_equal(
        lambda x: cross_entropy(x, target, **options),
        lambda x: F.cross_entropy(x, target, **options),
        logits,
    )


@each_void
def test_label_smoothing_equals_smp_whose_mean_is_over_void_too(void):
    logits, target, _ = example(void)
    theirs = smp.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=VOID)
    share = (target != VOID).double().mean()
    assert_equal(
        lambda x: share * cross_entropy(x, target, label_smoothing=0.1),
        lambda x: theirs(x, target),
        logits,
    )


def test_cross_entropy_equals_that_of_monai():
    logits, target, weight = example()
    theirs = monai.DiceCELoss(
        to_onehot_y=True, softmax=True, lambda_dice=0, weight=weight, label_smoothing=0.1
    )
    assert_equal(
        lambda x: cross_entropy(x, target, weight=weight, label_smoothing=0.1),
        lambda x: theirs(x, target.unsqueeze(1)),
        logits,
    )


# Focal loss


@each_void
@each_gamma
def test_focal_equals_kornia_whose_mean_is_over_pixels_times_classes(exact_one_hot, void, gamma):
    logits, target, weight = example(void)
    options = {"alpha": None, "gamma": gamma, "weight": weight, "ignore_index": VOID}
    assert_equal(
        lambda x: focal_loss(x, target, gamma=gamma, weight=weight, reduction="none"),
        lambda x: kornia.focal_loss(x, target, reduction="none", **options).sum(dim=1),
        logits,
    )
    weights = weight[target[target != VOID]].sum()
    assert_equal(
        lambda x: focal_loss(x, target, gamma=gamma, weight=weight) * weights / logits.numel(),
        lambda x: kornia.focal_loss(x, target, reduction="mean", **options),
        logits,
    )


@each_void
@each_gamma
def test_focal_equals_monai_whose_mean_ignores_the_weights(void, gamma):
    logits, target, weight = example(void)
    theirs = monai.FocalLoss(
        to_onehot_y=True, use_softmax=True, gamma=gamma, weight=weight, ignore_index=VOID
    )
    valid = (target != VOID).sum()
    assert_equal(
        lambda x: focal_loss(x, target, gamma=gamma, weight=weight, reduction="sum") / valid,
        lambda x: theirs(x, target.unsqueeze(1)),
        logits,
        relative=FLOAT32,
    )


@each_gamma
def test_focal_equals_the_softmax_focal_of_smp(gamma):
    logits, target, _ = example()
    assert_equal(
        lambda x: focal_loss(x, target, gamma=gamma),
        lambda x: softmax_focal_loss_with_logits(x, target, gamma=gamma),
        logits,
    )


@each_void
@each_gamma
def test_focal_equals_the_sigmoids_of_smp_for_two_opposite_logits(void, gamma):
    # A softmax of z / 2 and -z / 2 is a sigmoid of z, and both classes give the same loss.
    _, target, _ = example(void, present=2)
    theirs = smp.FocalLoss(MULTICLASS, gamma=gamma, ignore_index=VOID)
    z = example()[0][:, :1]
    assert_equal(
        lambda z: focal_loss(torch.cat([z, -z], dim=1) / 2, target, gamma=gamma),
        lambda z: theirs(torch.cat([z, -z], dim=1), target),
        z,
    )


# Dice, Jaccard, Tversky


@each_void
@pytest.mark.parametrize("smooth", (0.0, 2.0))
@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [("DiceLoss", 0.5, 0.5), ("JaccardLoss", 1, 1), ("TverskyLoss", 0.2, 0.9)],
)
def test_regions_equal_smp_which_divides_by_the_weights_of_all_classes(
    void, smooth, name, alpha, beta
):
    logits, target, weight = example(void, present=3)
    rest = {"alpha": alpha, "beta": beta} if name == "TverskyLoss" else {}
    theirs = getattr(smp, name)(
        MULTICLASS, smooth=smooth, ignore_index=VOID, class_weights=weight, **rest
    )
    options = {"alpha": alpha, "beta": beta, "smooth": smooth}
    assert_equal(
        lambda x: (
            tversky_loss(x, target, weight=weight, reduction="sum", **options) / weight.sum()
        ),
        lambda x: theirs(x, target),
        logits,
    )


@each_void
def test_dice_equals_kornia_which_counts_all_classes_of_each_image(exact_one_hot, void):
    logits, target, weight = example(void, present=3)
    options = {"weight": weight, "ignore_index": VOID}
    assert_equal(
        lambda x: dice_loss(x, target, classes="all", per_image=True, **options),
        lambda x: kornia.dice_loss(x, target, average="macro", **options),
        logits,
    )


@each_void
@each_image
@pytest.mark.parametrize("jaccard", (False, True))
def test_dice_and_jaccard_equal_monai_with_twice_the_smoothing(void, per_image, jaccard):
    logits, target, weight = example(void, present=3)
    theirs = monai.DiceLoss(
        to_onehot_y=True,
        softmax=True,
        jaccard=jaccard,
        reduction="none",
        smooth_nr=2 * 0.5,
        smooth_dr=2 * 0.5,
        batch=not per_image,
        weight=weight,
        ignore_index=VOID,
    )
    half = 1 if jaccard else 0.5
    assert_equal(
        lambda x: tversky_loss(
            x,
            target,
            alpha=half,
            beta=half,
            smooth=0.5,
            classes="all",
            per_image=per_image,
            weight=weight,
            reduction="none",
        ),
        lambda x: theirs(x, target.unsqueeze(1)).view(-1, C).squeeze(0),
        logits,
    )


@each_void
@each_image
def test_tversky_equals_monai_over_all_classes(void, per_image):
    logits, target, _ = example(void, present=3)
    theirs = monai.TverskyLoss(
        to_onehot_y=True,
        softmax=True,
        alpha=0.2,
        beta=0.9,
        smooth_nr=0.5,
        smooth_dr=0.5,
        batch=not per_image,
        ignore_index=VOID,
    )
    options = {"alpha": 0.2, "beta": 0.9, "smooth": 0.5}
    assert_equal(
        lambda x: tversky_loss(x, target, classes="all", per_image=per_image, **options),
        lambda x: theirs(x, target.unsqueeze(1)),
        logits,
    )


@each_void
def test_tversky_equals_kornia_where_each_image_holds_one_class(void):
    # kornia sums the classes before it divides, so that a pixel's FN is another class's FP. With
    # one class in the image there is nothing else to sum.
    logits, target, _ = example(void)
    target = torch.arange(3).view(3, 1, 1).expand_as(target).where(target != VOID, VOID)
    assert_equal(
        lambda x: tversky_loss(x, target, alpha=0.2, beta=0.9, per_image=True),
        lambda x: kornia.tversky_loss(x, target, alpha=0, beta=0.9, ignore_index=VOID),
        logits,
    )


# Lovász-Softmax


def formula_of_the_paper(logits, target, per_image=False):
    """Berman et al., algorithm 1: sort by class, take differences of the Jaccard index."""
    groups = range(len(logits)) if per_image else [slice(None)]
    means = []
    for group in groups:
        labels = target[group].flatten()
        p = logits[group].softmax(dim=-3).movedim(-3, -1).flatten(0, -2)[labels != VOID]
        labels = labels[labels != VOID]
        losses = []
        for c in labels.unique():
            inside = (labels == c).to(p.dtype)
            errors, order = (inside - p[:, c]).abs().sort(descending=True)
            inside = inside[order]
            intersection = inside.sum() - inside.cumsum(0)
            union = inside.sum() + (1 - inside).cumsum(0)
            steps = (1 - intersection / union).diff(prepend=p.new_zeros(1))
            losses.append((errors * steps).sum())
        means.append(torch.stack(losses).mean())
    return torch.stack(means).mean()


@each_void
@each_image
def test_lovasz_equals_the_authors_formula(void, per_image):
    logits, target, _ = example(void, present=3)
    assert_equal(
        lambda x: lovasz_softmax(x, target, per_image=per_image),
        lambda x: formula_of_the_paper(x, target, per_image),
        logits,
    )


@each_void
@each_image
def test_lovasz_equals_smp_in_float32(void, per_image):
    logits, target, _ = example(void, present=3, dtype=torch.float32)
    theirs = smp.LovaszLoss(MULTICLASS, per_image=per_image, ignore_index=VOID)
    assert_equal(
        lambda x: lovasz_softmax(x, target, per_image=per_image),
        lambda x: theirs(x, target),
        logits,
        relative=FLOAT32,
    )


def test_lovasz_equals_kornia_for_class_1_of_two():
    # kornia sorts the labels themselves, which say membership of class 1 only.
    logits, target, _ = example(present=2, num_classes=2)
    first, second = torch.eye(2, dtype=torch.float64)
    options = {"per_image": True, "reduction": "none"}
    assert_equal(
        lambda x: lovasz_softmax(x, target, **options)[:, 1].mean() / 2,
        lambda x: kornia.lovasz_softmax_loss(x, target, weight=second),
        logits,
        relative=FLOAT32,
    )
    class_0 = lovasz_softmax(logits, target, **options)[:, 0].mean() / 2
    assert (class_0 - kornia.lovasz_softmax_loss(logits, target, weight=first)).abs() > 0.01
