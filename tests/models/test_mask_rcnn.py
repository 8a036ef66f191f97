"""Mask R-CNN: what goes in and out, what each loss trains, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segcourse.models import mask_rcnn
from segcourse.models.backbones import resnet18, toy_resnet
from segcourse.models.boxes import box_iou, match_boxes
from segcourse.models.mask_rcnn import FPN, FrozenBatchNorm2d, MaskRCNN, sample, toy_mask_rcnn

CLASSES = 4
LOSSES = {
    "loss_objectness",
    "loss_rpn_box_reg",
    "loss_classifier",
    "loss_box_reg",
    "loss_mask",
}


def tiny(**changes):
    """The toy, smaller still."""
    torch.manual_seed(0)
    small = {"backbone": toy_resnet(4, 8, stages=3), "channels": 8, "hidden": 16, "mask_depth": 1}
    return toy_mask_rcnn(CLASSES, **small | changes)


def target(height, width, *boxes, labels=None):
    """Objects that fill their boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    masks = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    labels = [1 + i % (CLASSES - 1) for i in range(len(boxes))] if labels is None else labels
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}


def scene(seed=0):
    """Two images of different sizes, with two objects and with one."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=generator) for size in ((64, 64), (50, 70))]
    return images, [
        target(64, 64, (8, 8, 28, 20), (30, 30, 50, 60)),
        target(50, 70, (5, 10, 30, 30)),
    ]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(32, 90), st.integers(32, 90)), min_size=1, max_size=3))
def test_images_of_any_sizes_give_objects_in_their_own_pixels(sizes):
    model = tiny(score_threshold=0.0, most_detections=7).eval()
    images = [torch.rand(3, *size) for size in sizes]
    with torch.no_grad():
        found = model(images)
    assert len(found) == len(images)
    for objects, (height, width) in zip(found, sizes, strict=True):
        boxes, labels, scores, masks = (
            objects[key] for key in ("boxes", "labels", "scores", "masks")
        )
        assert boxes.shape == (7, 4) and masks.shape == (7, 1, height, width)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-4).all()
        assert labels.dtype == torch.int64 and labels.min() >= 1 and labels.max() < CLASSES
        assert torch.equal(scores, scores.sort(descending=True).values) and 0 < scores.min()
        assert 0 <= masks.min() and masks.max() <= 1


@pytest.mark.parametrize("frozen", (True, False))
def test_every_weight_is_trained_at_batch_one_too(frozen):
    norm = {"norm": FrozenBatchNorm2d} if frozen else {}
    backbone = resnet18(**norm) if frozen else toy_resnet(4, 8, stages=3)
    levels = len(backbone.channels) + 1
    model = tiny(backbone=backbone, anchor_sizes=[[8 * 2**i] for i in range(levels)]).train()
    images, targets = scene()
    losses = model(images[:1], targets[:1])
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def test_an_overfitted_scene_is_found_again():
    """All five losses together teach what the objects of one image are."""
    images, targets = scene()
    model = tiny(channels=16, hidden=32).train()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(images[:1], targets[:1]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval()(images[:1])
    best = found["scores"] > 0.5
    iou, nearest = box_iou(targets[0]["boxes"], found["boxes"][best]).max(dim=1)
    assert (iou > 0.6).all()
    assert torch.equal(found["labels"][best][nearest], targets[0]["labels"])
    masks, truth = found["masks"][best][nearest, 0] > 0.5, targets[0]["masks"]
    assert ((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2)) > 0.6).all()


def test_an_image_without_objects_trains():
    images, targets = scene()
    empty = target(64, 64)
    for model in (tiny(), tiny(min_size=80, max_size=100)):
        for batch in ([empty], [empty, targets[1]]):
            model.train().zero_grad()
            losses = model(images[: len(batch)], batch)
            sum(losses.values()).backward()
            for name, weight in model.named_parameters():
                assert weight.grad is None or weight.grad.isfinite().all(), name
            only = len(batch) == 1
            for loss in ("loss_rpn_box_reg", "loss_box_reg", "loss_mask"):
                assert losses[loss].isfinite() and (losses[loss] == 0) == only
            assert losses["loss_objectness"] > 0 and losses["loss_classifier"] > 0


def test_nothing_found_is_an_empty_answer():
    (found,) = tiny(score_threshold=1.0).eval()([torch.rand(3, 40, 50)])
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 1, 40, 50)
    assert found["labels"].shape == found["scores"].shape == (0,)


def test_a_batch_is_its_images():
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = tiny(score_threshold=0.0).eval().double()
    with torch.no_grad():
        together = model(images.double())
        for image, found in zip(images.double(), together, strict=True):
            (alone,) = model([image])
            for key, value in alone.items():
                torch.testing.assert_close(found[key], value)


def test_detections_keep_to_the_thresholds():
    images, _ = scene()
    low, high = (tiny(score_threshold=s, iou_threshold=0.3).eval() for s in (0.0, 0.3))
    with torch.no_grad():
        (many,), (few,) = low(images[:1]), high(images[:1])
    assert len(many["scores"]) == 100 and (few["scores"] > 0.3).all()
    assert len(few["scores"]) == (many["scores"] > 0.3).sum()
    same = many["labels"][:, None] == many["labels"]
    iou = box_iou(many["boxes"], many["boxes"]).fill_diagonal_(0)
    assert iou[same].max() <= 0.3 + 1e-6 and iou.max() > 0.3


def test_each_class_has_a_mask_of_its_own():
    """Only the mask of the true class is trained, and only that of the found class is shown."""
    images, targets = scene()
    model = tiny().train()
    one = target(64, 64, (8, 8, 28, 20), labels=[2])
    model(images[:1], [one])["loss_mask"].backward()
    rows = model.mask_head.logits.weight.grad.flatten(1).abs().sum(dim=1)
    assert (rows > 0).tolist() == [False, False, True, False]

    nn.init.zeros_(model.mask_head.logits.weight)
    model.mask_head.logits.bias.data = torch.arange(CLASSES).float()
    labels = torch.tensor([3, 1, 2])
    boxes = torch.tensor([[5.0, 5, 30, 30]]).expand(3, 4)
    pyramid = model.fpn(model.backbone(images[0][None]))
    (masks,) = model.detect_masks(pyramid, [{"boxes": boxes, "labels": labels}])
    expected = labels.float().sigmoid()[:, None, None].expand(3, 14, 14)
    torch.testing.assert_close(masks, expected)


@pytest.mark.parametrize("aligned", (True, False))
def test_pooling_mask_targets_and_pasting_are_aligned_alike(aligned, monkeypatch):
    names, seen = ("pyramid_roi_align", "roi_align", "paste_masks"), set()

    def spy(name):
        function = getattr(mask_rcnn, name)

        def call(*args, **options):
            seen.add((name, options["aligned"]))
            return function(*args, **options)

        return call

    for name in names:
        monkeypatch.setattr(mask_rcnn, name, spy(name))
    images, targets = scene()
    model = tiny(aligned=aligned).train()
    model(images, targets)
    model.eval()(images)
    assert seen == {(name, aligned) for name in names}


def test_a_lower_iou_gives_more_anchors_on_objects(monkeypatch):
    images, targets = scene()
    seen = {}

    def counted(matched, number, positive_share):
        seen.setdefault(threshold, []).append(int((matched >= 0).sum()))
        return sample(matched, number, positive_share)

    monkeypatch.setattr(mask_rcnn, "sample", counted)
    for threshold in (0.7, 0.5, 0.3):
        tiny(rpn_positive_iou=threshold).train()(images, targets)
    counts = [sum(seen[threshold]) for threshold in (0.7, 0.5, 0.3)]
    assert counts == sorted(counts) and len(set(counts)) == 3


def test_the_region_proposals_know_no_classes():
    images, targets = scene()
    others = [t | {"labels": t["labels"] % (CLASSES - 1) + 1} for t in targets]
    model = tiny().train()
    losses = []
    for some in (targets, others):
        torch.manual_seed(0)
        losses.append(model(images, some))
    for loss in LOSSES:
        same = torch.equal(losses[0][loss], losses[1][loss])
        assert same == (loss in ("loss_objectness", "loss_rpn_box_reg")), loss


def test_the_pyramid_brings_coarse_maps_to_all_finer_levels():
    torch.manual_seed(0)
    fpn = FPN((2, 4, 6), 5)
    sides = ((24, 33), (12, 17), (6, 9))
    maps = [torch.rand(1, c, *side) for c, side in zip((2, 4, 6), sides, strict=True)]
    levels = fpn(maps)
    assert [level.shape for level in levels[:3]] == [(1, 5, *side) for side in sides]
    assert torch.equal(levels[3], levels[2][:, :, ::2, ::2]) and levels[3].shape[2:] == (3, 5)
    for changed in range(3):
        other = fpn([c + (i == changed) for i, c in enumerate(maps)])
        for i in range(3):
            assert torch.equal(other[i], levels[i]) == (i > changed)


def test_which_boxes_are_on_which_objects():
    truth = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 44, 4]])
    boxes = torch.tensor([
        [0.0, 0, 10, 10],  # is the first object
        [0, 0, 10, 5],  # half of it
        [20, 0, 30, 8],  # most of the second
        [60, 60, 70, 70],  # nothing
        [40, 0, 50, 10],  # all of the third, and much more
        [0, 0, 2, 2],  # a corner of the first
    ])  # fmt: skip
    assert match_boxes(boxes, truth, 0.3, 0.7).tolist() == [0, -2, 1, -1, -1, -1]
    assert match_boxes(boxes, truth, 0.3, 0.7, keep_best=True).tolist() == [0, -2, 1, -1, 2, -1]
    assert match_boxes(boxes, truth, 0.5, 0.5).tolist() == [0, 0, 1, -1, -1, -1]
    assert match_boxes(boxes, truth[:0], 0.3, 0.7, keep_best=True).tolist() == [-1] * 6
    far = torch.tensor([[500.0, 500, 600, 600]])  # no box overlaps it, so that none is the best
    assert match_boxes(boxes, far, 0.3, 0.7, keep_best=True).tolist() == [-1] * 6


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_a_sample_holds_objects_up_to_its_share_and_background_for_the_rest(on, off, number):
    matched = torch.cat([torch.arange(on), torch.full((off,), -1), torch.full((9,), -2)])
    chosen = sample(matched[torch.randperm(len(matched))], number, 0.25)
    assert len(chosen.unique()) == len(chosen)
    matched = matched.sort().values  # any order will do to count
    positive = min(on, int(0.25 * number))
    assert len(chosen) == positive + min(off, number - positive)


def test_a_sample_is_drawn_at_random():
    matched = torch.tensor([0] * 20 + [-1] * 20)
    torch.manual_seed(0)
    draws = [sample(matched, 10, 0.5) for _ in range(60)]
    assert all((matched[draw] == 0).sum() == 5 for draw in draws)
    assert len(torch.cat(draws).unique()) == 40


def test_images_are_normalised_resized_and_padded():
    model = tiny(min_size=48, max_size=80, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    images = [torch.full((3, 24, 30), 0.6), torch.full((3, 40, 100), 0.6)]
    batch, sizes = model.prepare(images)
    assert sizes == [(48, 60), (32, 80)]  # twice as large; 0.8 times, for the longer side
    assert batch.shape == (2, 3, 64, 96)
    for padded, (height, width) in zip(batch, sizes, strict=True):
        inside = padded[:, :height, :width]
        expected = torch.tensor([1.0, 0.4, 0.15]).view(3, 1, 1).expand_as(inside)
        torch.testing.assert_close(inside, expected)
        assert padded.abs().sum() == pytest.approx(inside.abs().sum().item())

    objects = target(24, 30, (3, 4, 12, 10))
    (resized,) = model.prepare_targets(images[:1], [objects], sizes[:1])
    assert resized["boxes"].tolist() == [[6, 8, 24, 20]]
    expected = target(48, 60, (6, 8, 24, 20))["masks"].float()
    assert torch.equal(resized["masks"], expected)


def test_what_is_found_in_a_resized_image_is_scaled_back():
    images, _ = scene()
    doubled = [F.interpolate(image[None], scale_factor=2)[0] for image in images]
    small, large = tiny(score_threshold=0.0).eval(), tiny(score_threshold=0.0).eval()
    large.min_size, large.max_size = 64, 64
    with torch.no_grad():
        (found,) = small(images[:1])
        pixels = F.interpolate(doubled[0][None], (64, 64), mode="bilinear")
        torch.testing.assert_close(pixels[0], images[0])
        (scaled,) = large(doubled[:1])
    torch.testing.assert_close(scaled["boxes"], 2 * found["boxes"])
    torch.testing.assert_close(scaled["scores"], found["scores"])
    assert scaled["masks"].shape[2:] == (128, 128)


def test_frozen_batch_norm_stays_as_it_is():
    model = MaskRCNN(2, resnet18(norm=FrozenBatchNorm2d), channels=4, hidden=4).train()
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    assert before
    model.min_size = None
    sum(model(torch.rand(1, 3, 64, 64), [target(64, 64, (9, 9, 40, 40), labels=[1])]).values())
    for name, value in model.backbone.named_buffers():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(2, 3)}, r"targets\[1\] boxes: expected a floating-point \[N, 4\]"),
        ({"boxes": torch.tensor([[9.0, 9, 9, 20]])}, r"boxes: expected x1 < x2 and y1 < y2; got"),
        ({"boxes": torch.tensor([[9.0, 9, 5, 20]])}, r"got \[9.0, 9.0, 5.0, 20.0\]"),
        ({"boxes": torch.tensor([[9.0, 9, 12, float("nan")]])}, "boxes: expected x1 < x2"),
        ({"boxes": torch.tensor([[9.0, 9, 12, float("inf")]])}, "boxes: expected x1 < x2"),
        ({"labels": torch.tensor([4])}, r"targets\[1\] labels: expected 1 .. 3; got 4"),
        ({"labels": torch.tensor([0])}, "labels: expected 1 .. 3; got 0"),
        ({"labels": torch.tensor([1, 1])}, r"labels: expected int64 \[1\], one for each box"),
        ({"labels": torch.tensor([1.0])}, r"labels: .* got torch.float32 \[1\]"),
        ({"masks": torch.ones(1, 70, 50)}, r"masks: expected \[1, 50, 70\].* got \[1, 70, 50\]"),
        ({"masks": torch.ones(2, 50, 70)}, r"masks: expected \[1, 50, 70\]"),
    ],
)
def test_a_wrong_target_is_refused(change, message):
    images, targets = scene()
    targets[1] |= change
    with pytest.raises(ValueError, match=message):
        tiny().train()(images, targets)


def test_wrong_calls_are_refused():
    images, targets = scene()
    model = tiny().train()
    with pytest.raises(ValueError, match="targets: expected one for each of 2 images; got none"):
        model(images)
    with pytest.raises(ValueError, match="targets: expected one for each of 2 images; got 1"):
        model(images, targets[:1])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected boxes, labels and masks"):
        model(images[:1], [{"boxes": targets[0]["boxes"], "labels": targets[0]["labels"]}])
    with pytest.raises(ValueError, match="images: expected at least one; got none"):
        model([], [])
    with pytest.raises(ValueError, match=r"images\[0\]: expected a floating-point \[3, H, W\]"):
        model([torch.rand(1, 64, 64)], targets[:1])
    with pytest.raises(ValueError, match=r"images\[1\]: .* got torch.uint8"):
        model([images[0], images[1].byte()], targets)
    with pytest.raises(TypeError, match=r"images\[0\]: expected a tensor; got str"):
        model(["image"], targets[:1])
    with pytest.raises(ValueError, match="anchor_sizes: expected the sizes of 4 levels"):
        tiny(anchor_sizes=[[8], [16]])
    with pytest.raises(ValueError, match="anchor_sizes: expected as many sizes for each level"):
        tiny(anchor_sizes=[[8], [16], [32, 40], [64]])
    with pytest.raises(ValueError, match="num_classes: expected a whole number of at least 1"):
        toy_mask_rcnn(0)


def test_the_toy_is_the_model_with_other_arguments():
    toy, other = toy_mask_rcnn(7), toy_mask_rcnn(7, box_samples=5)
    assert type(toy) is MaskRCNN and other.box_samples == 5
    assert sum(p.numel() for p in toy.parameters()) < 1e6
