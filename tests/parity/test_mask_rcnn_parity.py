"""Mask R-CNN against torchvision's with equal weights: losses, gradients and detections.

torchvision's Python code runs as it is, on its compiled operators where they load and on those of
torchvision_shim elsewhere. All anchors and proposals are trained, so that chance has no part.
"""

import copy
import functools
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from parity.same import equal
from torch import nn
from torchvision.models.detection import faster_rcnn, mask_rcnn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops import FrozenBatchNorm2d as TheirFrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision_shim import operators

from segcourse.models.mask_rcnn import (
    FrozenBatchNorm2d,
    MaskRCNN,
    torchvision_names,
    toy_mask_rcnn,
)

CLASSES = 5
EVERYTHING = 10**6
PROPOSALS = 120
DETECTIONS = 20
SIZES = {"two sizes": [(64, 90), (80, 70)], "another": [(100, 60)]}
operators()

each_model = pytest.mark.parametrize("name", ["resnet50", "toy"])
each_batch = pytest.mark.parametrize("batch", SIZES)


class ToyBackbone(nn.Module):
    """Our toy backbone under torchvision's pyramid."""

    def __init__(self, body, channels):
        super().__init__()
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(body.channels, channels, extra_blocks=LastLevelMaxPool())

    def forward(self, image):
        return self.fpn(OrderedDict((str(i), c) for i, c in enumerate(self.body(image))))


def toy_parts(ours):
    """torchvision's backbone and heads in the sizes of our toy."""
    channels, hidden = ours.fpn.output[0].out_channels, ours.box_head.fc7.in_features
    maps = [str(i) for i in range(len(ours.backbone.channels))]
    pool = functools.partial(
        MultiScaleRoIAlign, maps, sampling_ratio=2, canonical_scale=ours.canonical_size
    )
    depth = sum(isinstance(layer, nn.Conv2d) for layer in ours.mask_head) - 1
    return ToyBackbone(copy.deepcopy(ours.backbone), channels), {
        "box_roi_pool": pool(output_size=7),
        "mask_roi_pool": pool(output_size=ours.mask_bins),
        "box_head": faster_rcnn.TwoMLPHead(channels * 49, hidden),
        "box_predictor": faster_rcnn.FastRCNNPredictor(hidden, CLASSES),
        "mask_head": mask_rcnn.MaskRCNNHeads(channels, [channels] * depth, 1),
        "mask_predictor": mask_rcnn.MaskRCNNPredictor(channels, channels, CLASSES),
    }


def win_nowhere(layer, _, logits):
    """Give all classes the same mean score, so that none of them wins for every box."""
    layer.bias.sub_(logits.mean(dim=0))


@functools.cache
def pair(name):
    """Our model and torchvision's with equal weights, in float64."""
    torch.manual_seed(0)
    settings = {
        "min_size": 64,
        "max_size": 110,
        "rpn_samples": EVERYTHING,
        "box_samples": EVERYTHING,
        "proposals_train": PROPOSALS,
        "proposals_test": PROPOSALS,
        "most_detections": DETECTIONS,
    }
    if name == "resnet50":
        sizes, ratios = ((8,), (16,), (32,), (64,), (90,)), (0.5, 1.0, 2.0)
        ours = MaskRCNN(CLASSES, anchor_sizes=sizes, **settings)
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
        parts = {"num_classes": CLASSES}
    else:
        sizes, ratios = ((6,), (12,), (24,), (48,)), (0.5, 1.0, 2.0, 4.0)
        settings |= {"anchor_sizes": sizes, "anchor_ratios": ratios, "aligned": False}
        ours = toy_mask_rcnn(CLASSES, **settings)
        backbone, parts = toy_parts(ours)
    theirs = mask_rcnn.MaskRCNN(
        backbone,
        min_size=64,
        max_size=110,
        rpn_anchor_generator=AnchorGenerator(sizes, (ratios,) * len(sizes)),
        rpn_head=RPNHead(backbone.out_channels, len(ratios)),
        rpn_batch_size_per_image=EVERYTHING,
        rpn_fg_iou_thresh=ours.rpn.positive_iou,
        box_batch_size_per_image=EVERYTHING,
        rpn_pre_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_pre_nms_top_n_test=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=DETECTIONS,
        **parts,
    )
    with torch.no_grad():  # let no two stages agree because they hardly do anything
        for key, value in theirs.state_dict().items():
            if "bbox_pred.weight" in key:
                value.mul_(10)
            elif key.endswith("running_var"):
                value.add_(torch.rand_like(value))
            elif key.endswith(("bias", "running_mean")):
                value.add_(0.1 * torch.randn_like(value))
    theirs.double()
    with torch.no_grad():
        score = theirs.roi_heads.box_predictor.cls_score
        hook = score.register_forward_hook(win_nowhere)
        theirs.eval()(scene(SIZES["another"])[0])
        hook.remove()
    ours.double().load_torchvision(theirs.state_dict())
    return ours, theirs


def scene(sizes):
    """Images with four objects each, but for the last one, which has one."""
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for i, (height, width) in enumerate(sizes):
        n = 1 if i == 1 else 4
        images.append(torch.rand(3, height, width, generator=generator, dtype=torch.float64))
        corner = 0.6 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        size = 0.1 + 0.3 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        boxes = torch.cat([corner, corner + size], dim=1) * torch.tensor([width, height] * 2)
        blobs = torch.rand(n, 1, 8, 8, generator=generator)
        masks = F.interpolate(blobs, (height, width), mode="bilinear")[:, 0] > 0.5
        labels = torch.randint(1, CLASSES, (n,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


@each_model
@each_batch
def test_losses_and_gradients_are_torchvisions(name, batch):
    ours, theirs = pair(name)
    images, targets = scene(SIZES[batch])
    our_losses, their_losses = (model.train()(images, targets) for model in (ours, theirs))
    assert set(our_losses) == set(their_losses)
    for loss, value in their_losses.items():
        assert value > 1e-4
        assert our_losses[loss].item() == pytest.approx(value.item(), rel=1e-6), loss

    gradients = {}
    for model, losses in ((ours, our_losses), (theirs, their_losses)):
        model.zero_grad()
        sum(losses.values()).backward()
    gradients = {key: weight.grad for key, weight in theirs.named_parameters()}
    renamed = torchvision_names({key: key for key in gradients})
    for key, weight in ours.named_parameters():
        equal(weight.grad, gradients[renamed[key]], tolerance=1e-5)


@each_model
@each_batch
def test_detections_are_torchvisions(name, batch):
    ours, theirs = pair(name)
    images, _ = scene(SIZES[batch])
    with torch.no_grad():
        found, expected = (model.eval()(images) for model in (ours, theirs))
    assert len(torch.cat([their["labels"] for their in expected]).unique()) > 1
    for our, their, image in zip(found, expected, images, strict=True):
        assert set(our) == set(their) and len(their["labels"]) == DETECTIONS
        assert torch.equal(our["labels"], their["labels"])
        assert our["masks"].shape == (len(our["labels"]), 1, *image.shape[1:])
        for key in ("boxes", "scores", "masks"):
            equal(our[key], their[key], tolerance=1e-5)


def test_frozen_batch_norm_is_torchvisions():
    ours, theirs = FrozenBatchNorm2d(5), TheirFrozenBatchNorm2d(5)
    for value in theirs.state_dict().values():
        value += torch.rand_like(value)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 5, 4, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not list(ours.parameters())


def test_the_default_model_loads_the_weights_of_maskrcnn_resnet50_fpn():
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
        ours, theirs = MaskRCNN(91), mask_rcnn.MaskRCNN(backbone, 91)
    renamed = torchvision_names(theirs.state_dict())
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in renamed.items()}
    assert sum(p.numel() for p in theirs.parameters()) == 44_401_393
