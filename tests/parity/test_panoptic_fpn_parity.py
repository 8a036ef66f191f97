"""The semantic branch and the merge against detectron2's, the branch also against smp's.

detectron2 is not on the package index; its answers are in data/panoptic_fpn.npz (see record.py).
The decoder of segmentation-models-pytorch has the same blocks, but aligns the corner pixels when
it enlarges a map. With that one argument changed it is a second reference.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import segmentation_models_pytorch.decoders.fpn.decoder as smp_fpn
import torch
import torch.nn.functional as F
from networks import randomise
from parity.same import copy_in_order, equal
from torch import nn

from segcourse.models.panoptic_fpn import SemanticBranch, merge, resize

RECORDED = Path(__file__).parent / "data" / "panoptic_fpn.npz"
IN_CHANNELS, CHANNELS, CLASSES = 6, 32, 5
SCENES, STUFF, THINGS = 40, 3, 2


def fill(module, seed=0):
    """The same weights for modules that list the same layers in the same order."""
    rng = np.random.RandomState(seed)
    for weight in module.parameters():
        scale = 1 / np.sqrt(weight[0].numel()) if weight.ndim > 1 else 1
        weight.data = torch.from_numpy(scale * rng.normal(size=tuple(weight.shape)))
    return module


def pyramid(seed=1):
    """Four levels of two images, and the class of each pixel, some void."""
    rng = np.random.RandomState(seed)
    levels = [
        torch.from_numpy(rng.normal(size=(2, IN_CHANNELS, 16 // 2**i, 24 // 2**i)))
        for i in range(4)
    ]
    mask = rng.randint(0, CLASSES, (2, 64, 96))
    return levels, torch.from_numpy(np.where(rng.uniform(size=mask.shape) < 0.1, 255, mask))


def test_the_semantic_branch_is_that_of_detectron2():
    branch = fill(SemanticBranch(4, IN_CHANNELS, CHANNELS, CLASSES, groups=32).double())
    levels, mask = pyramid()
    coarsest = levels[-1].requires_grad_()
    logits = branch(levels)
    loss = F.cross_entropy(resize(logits, (64, 96)), mask, ignore_index=255)
    loss.backward()
    with np.load(RECORDED) as data:
        found = (logits, loss, coarsest.grad, branch.levels[3][0].weight.grad[:2])
        for name, value in zip(("logits", "loss", "coarsest", "weight"), found, strict=True):
            equal(value.detach(), torch.from_numpy(data[name]))


def test_the_semantic_branch_is_that_of_smp(monkeypatch):
    def interpolate(x, **options):
        return F.interpolate(x, **options | {"align_corners": False})

    monkeypatch.setattr(smp_fpn, "F", SimpleNamespace(interpolate=interpolate))
    torch.manual_seed(0)
    blocks = [smp_fpn.SegmentationBlock(IN_CHANNELS, CHANNELS, i) for i in range(4)]
    theirs = nn.ModuleList([*blocks, nn.Conv2d(CHANNELS, CLASSES, 1)])
    ours = SemanticBranch(4, IN_CHANNELS, CHANNELS, CLASSES, groups=32).double()
    pairs = copy_in_order(randomise(theirs).double(), ours)

    levels, _ = pyramid()
    logits = ours(levels)
    features = [block(level) for block, level in zip(blocks, levels, strict=True)]
    expected = theirs[-1](smp_fpn.MergeBlock("add")(features))
    direction = torch.randn_like(expected)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    equal(logits, expected)
    weights = dict(ours.named_parameters())
    for name, weight in theirs.named_parameters():
        equal(weights.pop(pairs[name]).grad, weight.grad)
    assert not weights


def scene(seed):
    """Objects that overlap, their things and scores, and a map of stuff and "other"."""
    rng = np.random.RandomState(2000 + seed)
    n, height, width = rng.randint(0, 9), 24, 32
    y, x = np.mgrid[:height, :width]
    centre, reach = rng.uniform(size=(n, 2)) * (height, width), rng.uniform(1, 9, (n, 2))
    masks = [
        ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        for (cy, cx), (ry, rx) in zip(centre, reach, strict=True)
    ]
    masks = np.array(masks, dtype=bool).reshape(n, height, width)
    masks[rng.uniform(size=n) < 0.1] = False
    semantic = np.kron(rng.randint(0, STUFF + 1, (6, 8)), np.ones((4, 4), dtype=np.int64))
    return masks, rng.randint(0, THINGS, n), rng.uniform(0.2, 1, n), semantic


def merged(seed, **changes):
    masks, things, scores, semantic = (torch.from_numpy(array) for array in scene(seed))
    settings = {"thing_score": 0.5, "overlap": 0.4, "stuff_area": 60} | changes
    return merge(masks, STUFF + things, scores, semantic, STUFF, **settings)


def same_as_recorded(**changes):
    """In how many scenes the ids, categories and kinds of the segments are those recorded."""
    with np.load(RECORDED) as data:
        ids, segments = data["ids"], np.split(data["segments"], data["numbers"].cumsum()[:-1])
    same = 0
    for seed in range(SCENES):
        found, known = merged(seed, **changes)
        known = [[s["id"], s["category_id"], s["isthing"]] for s in known]
        same += np.array_equal(found, ids[seed]) and known == segments[seed].tolist()
    return same


def test_the_merge_is_that_of_detectron2():
    assert same_as_recorded() == SCENES


@pytest.mark.parametrize("change", [{"thing_score": 0.4}, {"overlap": 0.6}, {"stuff_area": 100}])
def test_the_scenes_tell_another_threshold(change):
    assert same_as_recorded(**change) < SCENES - 3
