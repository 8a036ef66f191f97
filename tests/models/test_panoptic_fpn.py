"""Panoptic FPN: what goes in and out, what the semantic branch sees, and how segments merge."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segcourse.models.backbones import toy_resnet
from segcourse.models.mask_rcnn import MaskRCNN, toy_mask_rcnn
from segcourse.models.panoptic_fpn import PanopticFPN, SemanticBranch, merge, toy_panoptic_fpn

STUFF, THINGS = 3, 2
VOID = 255


def tiny(**changes):
    torch.manual_seed(0)
    small = {
        "backbone": toy_resnet(4, 8, stages=3),
        "channels": 8,
        "hidden": 16,
        "mask_depth": 1,
        "semantic_channels": 8,
        "semantic_groups": 2,
        "thing_score": 0.0,
    }
    return toy_panoptic_fpn(STUFF, THINGS, **small | changes)


def scene(height=64, width=64):
    """Stripes of stuff, a thing of each kind, and a void border below."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, height, width, generator=generator)
    mask = (torch.arange(height) * STUFF // height)[:, None].repeat(1, width)
    boxes = torch.tensor([[8.0, 8, 30, 20], [25, 30, 45, 44]])
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    for i, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):
        masks[i, y1:y2, x1:x2] = True
        mask[y1:y2, x1:x2] = STUFF + i
    mask[-2:] = VOID
    return image, {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "mask": mask}


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (97, 45)])
def test_every_pixel_belongs_to_one_segment_or_none(size):
    model = tiny(stuff_area=5).eval()
    image, _ = scene(*size)
    with torch.no_grad():
        (found,) = model([image])
    ids, segments = found["panoptic"], found["segments"]
    assert found["semantic"].shape == (STUFF + 1, *size) and ids.shape == size
    assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in segments}
    assert any(s["isthing"] for s in segments) and not all(s["isthing"] for s in segments)
    for segment in segments:
        assert segment["area"] == (ids == segment["id"]).sum() > 0
        assert (segment["category_id"] >= STUFF) == segment["isthing"] == ("score" in segment)
        assert 0 <= segment["category_id"] < STUFF + THINGS
    stuff = [s["category_id"] for s in segments if not s["isthing"]]
    assert len(stuff) == len(set(stuff))  # one segment for each kind


def test_there_are_six_losses_and_all_weights_are_trained():
    image, target = scene()
    model = tiny().train()
    losses = model([image], [target])
    assert len(losses) == 6 and all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad.isfinite().all() and weight.grad.abs().max() > 0, name


def test_half_precision_changes_the_losses_little_and_trains():
    image, target = scene()
    losses = {}
    for half in (False, True):
        model = tiny().train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses[half] = model([image], [target])
    for name, loss in losses[False].items():
        torch.testing.assert_close(losses[True][name].float(), loss, rtol=0.1, atol=0.02)
    sum(losses[True].values()).backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_the_semantic_branch_learns_stuff_and_that_things_are_other():
    image, target = scene()
    model = tiny().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model([image], [target])["loss_semantic"].backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval()([image])
    seen = found["semantic"].argmax(dim=0)
    expected, valid = target["mask"].clamp(max=STUFF), target["mask"] != VOID
    assert (seen == expected)[valid].float().mean() > 0.9
    assert (seen == STUFF)[target["masks"].any(dim=0)].float().mean() > 0.8


def test_the_semantic_branch_can_name_the_things_and_the_merge_stays_the_same():
    image, target = scene()
    model = tiny(semantic_things=True, thing_score=1.0).train()
    (prepared,) = model.prepare_targets([image], [target], [(64, 64)])
    assert torch.equal(prepared["semantic"], target["mask"])
    assert model([image], [target])["loss_semantic"] > 0
    with torch.no_grad():
        (found,) = model.eval()([image])
    seen = found["semantic"].argmax(dim=0)
    assert len(found["semantic"]) == STUFF + THINGS and seen.max() >= STUFF
    assert not found["panoptic"][seen >= STUFF].any()  # no object is sure enough


def test_the_semantic_loss_is_the_mean_over_pixels_that_are_not_void():
    image, target = scene(50, 70)  # padded to 64 x 96
    model = tiny(semantic_weight=0.25).train()
    loss = model([image], [target])["loss_semantic"]
    batch, _ = model.prepare([image])
    logits = model.segment(batch, model.fpn(model.backbone(batch)))[0, :, :50, :70]
    valid = target["mask"] != VOID
    wrong = -logits.log_softmax(dim=0).gather(0, target["mask"].clamp(max=STUFF)[None])[0]
    torch.testing.assert_close(loss, 0.25 * wrong[valid].mean())
    void = target | {"mask": torch.full_like(target["mask"], VOID)}
    assert model([image], [void])["loss_semantic"] == 0


def test_a_scene_without_things_trains_and_is_segmented():
    image, target = scene()
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.bool),
        "mask": target["mask"].clamp(max=STUFF - 1),
    }
    model = tiny(thing_score=1.0, stuff_area=1).train()
    losses = model([image], [empty])
    sum(losses.values()).backward()
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["segments"] and not any(segment["isthing"] for segment in found["segments"])


def test_a_level_is_upsampled_as_often_as_it_is_coarser():
    branch = SemanticBranch(4, 6, 8, 3, groups=2)
    stages = [[type(layer) for layer in level] for level in branch.levels]
    block = [nn.Conv2d, nn.GroupNorm, nn.ReLU]
    assert stages == [block, [*block, nn.Upsample], 2 * [*block, nn.Upsample]] + [
        3 * [*block, nn.Upsample]
    ]
    pyramid = [torch.rand(2, 6, 16 // 2**i, 24 // 2**i) for i in range(4)]
    logits = branch(pyramid)
    assert logits.shape == (2, 3, 16, 24)
    for i in range(4):
        changed = [level + (i == j) * torch.rand_like(level) for j, level in enumerate(pyramid)]
        assert not torch.allclose(branch(changed), logits)


def rectangles(*corners, height=10, width=12):
    masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def merged(masks, scores, semantic=None, **changes):
    categories = torch.full((len(masks),), STUFF)
    semantic = torch.full((10, 12), STUFF) if semantic is None else semantic
    settings = {"thing_score": 0.5, "overlap": 0.5, "stuff_area": 10} | changes
    return merge(masks, categories, torch.tensor(scores), semantic, STUFF, **settings)


def test_the_better_object_keeps_the_pixels_that_two_claim():
    masks = rectangles((0, 0, 6, 10), (4, 0, 10, 10))
    ids, segments = merged(masks, [0.6, 0.9])
    assert [s["score"] for s in segments] == pytest.approx([0.9, 0.6])
    assert [s["area"] for s in segments] == [60, 40]
    assert torch.equal(ids == 1, masks[1]) and torch.equal(ids == 2, masks[0] & ~masks[1])


@pytest.mark.parametrize(("overlap", "kept"), [(0.5, 2), (0.49, 1), (0.0, 1)])
def test_an_object_that_is_mostly_hidden_is_left_out(overlap, kept):
    masks = rectangles((0, 0, 6, 10), (3, 0, 9, 10))  # half of the second is hidden
    ids, segments = merged(masks, [0.9, 0.8], overlap=overlap)
    assert len(segments) == kept and (ids == 2).any() == (kept == 2)


def test_a_hidden_object_hides_nothing():
    """The second object is left out, and the third gets the pixels that it would have taken."""
    masks = rectangles((0, 0, 6, 10), (0, 0, 7, 10), (6, 0, 9, 10))
    ids, segments = merged(masks, [0.9, 0.8, 0.7])
    assert [s["area"] for s in segments] == [60, 30]


def test_weak_and_empty_objects_are_left_out():
    masks = rectangles((0, 0, 3, 3), (5, 5, 5, 9), (6, 6, 9, 9))
    _, segments = merged(masks, [0.49, 0.9, 0.5])
    assert [s["area"] for s in segments] == [9] and segments[0]["score"] == 0.5


def test_stuff_fills_what_is_free_unless_it_is_too_small():
    semantic = torch.full((10, 12), 1)
    semantic[:, :2] = 0
    semantic[:3, 2:5] = 2  # 9 pixels
    semantic[:, 10:] = STUFF  # other
    masks = rectangles((0, 0, 1, 10))
    ids, segments = merged(masks, [0.9], semantic)
    assert [(s["category_id"], s["area"]) for s in segments] == [(STUFF, 10), (0, 10), (1, 71)]
    assert (ids[:3, 2:5] == 0).all() and (ids[:, 10:] == 0).all()
    _, segments = merged(masks, [0.9], semantic, stuff_area=9)
    assert [s["category_id"] for s in segments] == [STUFF, 0, 1, 2]
    _, segments = merged(rectangles(), [], torch.zeros(10, 12, dtype=torch.int64), stuff_area=0)
    assert [s["category_id"] for s in segments] == [0]


@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_the_order_of_the_objects_does_not_matter(seed, order):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(6, 10, 12, generator=generator) < 0.4
    scores = torch.rand(6, generator=generator)
    semantic = torch.randint(0, STUFF + 1, (10, 12), generator=generator)
    categories = torch.randint(STUFF, STUFF + THINGS, (6,), generator=generator)
    settings = {"thing_score": 0.2, "overlap": 0.8, "stuff_area": 3}
    ids, segments = merge(masks, categories, scores, semantic, STUFF, **settings)
    order = torch.tensor(order)
    again = merge(masks[order], categories[order], scores[order], semantic, STUFF, **settings)
    assert torch.equal(again[0], ids) and again[1] == segments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(64, 60, dtype=torch.int64)}, r"mask: expected int64 \[64, 64\]"),
        ({"mask": torch.zeros(64, 64)}, r"targets\[0\] mask: .* got torch.float32 \[64, 64\]"),
        ({"mask": torch.full((64, 64), 5)}, r"mask: expected 0 .. 4 or 255 \(void\); got 5"),
        ({"mask": torch.full((64, 64), -1)}, "got -1"),
        ({"labels": torch.tensor([1, 3])}, "labels: expected 1 .. 2; got 3"),
    ],
)
def test_a_wrong_target_is_refused(change, message):
    image, target = scene()
    with pytest.raises(ValueError, match=message):
        tiny().train()([image], [target | change])


def test_wrong_calls_are_refused():
    image, target = scene()
    del target["mask"]
    with pytest.raises(ValueError, match=r"targets\[0\]: expected a mask, the category of each"):
        tiny().train()([image], [target])
    with pytest.raises(ValueError, match="num_stuff: expected a whole number of at least 1"):
        toy_panoptic_fpn(0, 2)
    with pytest.raises(ValueError, match="semantic_channels|channels: expected a whole number"):
        tiny(semantic_channels=0)


def test_around_it_is_the_same_mask_rcnn():
    image, target = scene()
    panoptic = tiny()
    assert isinstance(panoptic, MaskRCNN) and type(toy_panoptic_fpn(4, 6)) is PanopticFPN
    small = {"channels": 8, "hidden": 16, "mask_depth": 1}
    alone = toy_mask_rcnn(THINGS + 1, backbone=toy_resnet(4, 8, stages=3), **small)
    state = panoptic.state_dict()
    alone.load_state_dict({k: v for k, v in state.items() if not k.startswith("semantic.")})
    with torch.no_grad():
        (one,), (other,) = alone.eval()([image]), panoptic.eval()([image])
    for key in ("boxes", "labels", "scores", "masks"):
        assert torch.equal(one[key], other[key])
