"""Mask R-CNN: find objects as boxes, and say for each box which of its pixels are the object.

Sources: K. He, G. Gkioxari, P. Dollár, R. Girshick, "Mask R-CNN", ICCV 2017. S. Ren, K. He,
R. Girshick, J. Sun, "Faster R-CNN", NIPS 2015. T.-Y. Lin et al., "Feature Pyramid Networks for
Object Detection", CVPR 2017.

The stages from an image to its objects, and their names here:

    resize, normalise, pad to a batch     MaskRCNN.prepare
    bottom-up maps C2 to C5               backbone            strides 4, 8, 16 and 32
    feature pyramid P2 to P6              fpn                 one width, strides 4 to 64
    region proposal network               rpn                 anchors -> proposals, boxes that may
                                                              hold an object of any class
    RoIAlign                              MaskRCNN.pool       the features of a box, 7x7 or 14x14
    box head                              box_head            class of a proposal, and a better box
    mask head                             mask_head           a 28x28 mask for each class
    masks back into the image             boxes.paste_masks

The mask head gives every class a mask of its own, by a sigmoid: the pixels need not choose between
classes, because the box head has already chosen one. Only the mask of that class is trained and
shown.

The rules and settings are those of torchvision's `maskrcnn_resnet50_fpn`, whose weights load (see
`MaskRCNN.load_torchvision`). They depart from the papers in small things:

- **Box loss.** It is linear from an error of 1/9 on, not from 1, and is divided by the number of
  boxes that are trained, background included.
- **Anchors** that stick out of the image are trained as well.
- **Proposals.** In training the true boxes are among them.
- **Mask targets** are what RoIAlign makes of the true masks, with values between 0 and 1.

**The toy.** `toy_mask_rcnn` is the same class with other arguments.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcourse.models.backbones import ResNet, resnet50, toy_resnet
from segcourse.models.boxes import (
    cell_anchors,
    check_boxes,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    image_of,
    match_boxes,
    nms_per_class,
    paste_masks,
    pyramid_roi_align,
    roi_align,
)
from segcourse.models.layers import check_counts, conv1x1

Target = Mapping[str, Tensor]
Size = tuple[int, int]  # height and width

DIVISOR = 32  # of the sides of a batch
BOX_BINS = 7  # RoIAlign for the box head; for the mask head twice as many
BOX_WEIGHTS = (10, 10, 5, 5)  # of the box head's deltas, see encode_boxes


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation that has learned: [B, C, H, W] with fixed scale, shift and statistics.

    With one or two large images a batch, as detectors are trained, the statistics of the batch
    are worse than those that came with the backbone's weights.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


class FPN(nn.Module):
    """The feature pyramid: maps C2, C3, ... -> P2, P3, ... and one coarser, finest first.

    From the coarsest map down, a level is a 1x1 convolution of the map, plus the level above
    enlarged to its size. So also fine levels know what only the deep layers recognise. A 3x3
    convolution of each sum is the level's result. `in_channels` are those of the maps; every
    level has `channels`.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv1x1(n, channels, bias=True) for n in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        for layer in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sums = [lateral(c) for c, lateral in zip(maps, self.lateral, strict=True)]
        for i in reversed(range(len(sums) - 1)):
            above = F.interpolate(sums[i + 1], size=sums[i].shape[2:], mode="nearest")
            sums[i] = sums[i] + above
        levels = [output(x) for x, output in zip(sums, self.output, strict=True)]
        return [*levels, levels[-1][:, :, ::2, ::2]]


def sample(matched: Tensor, number: int, positive_share: float) -> Tensor:
    """Indices of at most `number` boxes to train on, drawn at random from int64 [N].

    At most `positive_share` of them hold an object (`matched` >= 0); the others are background
    (-1). Most boxes are background, and would outweigh the rest.
    """
    positive, negative = ((matched >= 0).nonzero().flatten(), (matched == -1).nonzero().flatten())
    most = int(number * positive_share)
    positive = positive[torch.randperm(len(positive), device=positive.device)[:most]]
    most = number - len(positive)
    negative = negative[torch.randperm(len(negative), device=negative.device)[:most]]
    return torch.cat([positive, negative])


def box_loss(deltas: Tensor, expected: Tensor, number: int) -> Tensor:
    """Smooth L1 of deltas [N, 4]: squared up to an error of 1/9, linear beyond; over `number`."""
    return F.smooth_l1_loss(deltas, expected, beta=1 / 9, reduction="sum") / max(1, number)


class RPN(nn.Module):
    """The region proposal network: which anchors hold an object, and where its box is.

    At every place of every level it scores A anchors, each by its objectness (a logit) and the
    deltas from the anchor to the object's box. The layers are shared by the levels.

    `anchor_sizes` are those of each level, with `anchor_ratios` (height over width). `samples` is
    the number of anchors of an image that are trained at a time; they are on an object from an
    IoU of `positive_iou` on. `proposals_train` and
    `proposals_test` limit the anchors of a level that enter non-maximum suppression, and the
    proposals of an image that come out of it.
    """

    iou_threshold = 0.7  # of non-maximum suppression

    def __init__(
        self,
        channels: int,
        anchor_sizes: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float],
        *,
        samples: int,
        positive_iou: float,
        proposals_train: int,
        proposals_test: int,
    ) -> None:
        super().__init__()
        check_counts(
            samples=samples, proposals_train=proposals_train, proposals_test=proposals_test
        )
        if len({len(sizes) for sizes in anchor_sizes}) != 1:
            raise ValueError(
                f"anchor_sizes: expected as many sizes for each level; got {anchor_sizes!r}"
            )
        self.samples, self.positive_iou = samples, positive_iou
        self.proposals_train, self.proposals_test = proposals_train, proposals_test
        cells = torch.stack([cell_anchors(sizes, anchor_ratios) for sizes in anchor_sizes])
        self.register_buffer("cells", cells, persistent=False)  # [levels, A, 4]
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = conv1x1(channels, cells.shape[1], bias=True)
        self.deltas = conv1x1(channels, 4 * cells.shape[1], bias=True)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def anchors(self, pyramid: Sequence[Tensor], image: Size) -> list[Tensor]:
        """The anchors of each level, [places * A, 4]; `image` is the size of the batch."""
        return [
            grid_anchors(cell, tuple(level.shape[2:]), image)
            for cell, level in zip(self.cells, pyramid, strict=True)
        ]

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness [B, places * A] and deltas [B, places * A, 4] of each level."""
        objectness, deltas = [], []
        for level in pyramid:
            x = F.relu(self.conv(level))
            objectness.append(self.objectness(x).movedim(1, -1).flatten(1))
            deltas.append(self.deltas(x).movedim(1, -1).reshape(len(x), -1, 4))
        return objectness, deltas

    def propose(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[Size],
    ) -> list[Tensor]:
        """The proposals of each image, [N, 4], best first. `sizes` are those of the images.

        The levels do not suppress each other.
        """
        limit = self.proposals_train if self.training else self.proposals_test
        boxes, scores, levels = [], [], []
        for level, anchor in enumerate(anchors):
            score, best = objectness[level].detach().topk(min(limit, len(anchor)), dim=1)
            delta = deltas[level].detach().gather(1, best[..., None].expand(-1, -1, 4))
            box = decode_boxes(delta.flatten(0, 1).to(anchor.dtype), anchor[best.flatten()])
            boxes.append(box.view(*best.shape, 4))
            scores.append(score)
            levels.append(torch.full_like(best, level))
        proposals = []
        for box, score, level, size in zip(
            *(torch.cat(parts, dim=1) for parts in (boxes, scores, levels)), sizes, strict=True
        ):
            box = clip_boxes(box, *size)
            (kept,) = is_wide(box, 1e-3).nonzero(as_tuple=True)
            kept = kept[nms_per_class(box[kept], score[kept], level[kept], self.iou_threshold)]
            proposals.append(box[kept[:limit]])
        return proposals

    def losses(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Cross-entropy of the objectness, and the loss of the deltas of anchors on objects.

        An anchor is on an object from `positive_iou` on, or if none has a larger IoU with that
        object; it is background below 0.3; in between it is not trained.
        """
        objectness, deltas, anchors = (
            torch.cat(objectness, dim=1),
            torch.cat(deltas, dim=1),
            torch.cat(list(anchors)),
        )
        logits, is_object, found, expected = [], [], [], []
        for logit, delta, target in zip(objectness, deltas, targets, strict=True):
            matched = match_boxes(anchors, target["boxes"], 0.3, self.positive_iou, keep_best=True)
            chosen = sample(matched, self.samples, positive_share=0.5)
            logits.append(logit[chosen])
            is_object.append(matched[chosen] >= 0)
            chosen = chosen[matched[chosen] >= 0]
            found.append(delta[chosen])
            expected.append(encode_boxes(target["boxes"][matched[chosen]], anchors[chosen]))
        logits, is_object = torch.cat(logits), torch.cat(is_object)
        cross_entropy = F.binary_cross_entropy_with_logits(
            logits, is_object.to(logits.dtype), reduction="sum"
        )
        return {
            "loss_objectness": cross_entropy / max(1, len(logits)),
            "loss_rpn_box_reg": box_loss(torch.cat(found), torch.cat(expected), len(logits)),
        }


class BoxHead(nn.Module):
    """Pooled features [K, channels, 7, 7] -> class logits [K, C] and deltas [K, C, 4].

    Two fully connected layers of `hidden` units; class 0 is background. There is a box for each
    class.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * BOX_BINS**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, num_classes)
        self.deltas = nn.Linear(hidden, 4 * num_classes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(1)))))
        return self.score(x), self.deltas(x).view(len(x), -1, 4)


class MaskHead(nn.Sequential):
    """Pooled features [K, channels, 14, 14] -> mask logits [K, C, 28, 28], one mask a class."""

    def __init__(self, channels: int, num_classes: int, *, depth: int) -> None:
        super().__init__()
        for i in range(1, depth + 1):
            self.add_module(f"conv{i}", nn.Conv2d(channels, channels, 3, padding=1))
            self.add_module(f"relu{i}", nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.up_relu = nn.ReLU(inplace=True)
        self.logits = conv1x1(channels, num_classes, bias=True)
        for layer in self:
            if not isinstance(layer, nn.ReLU):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)


def is_wide(boxes: Tensor, least: float) -> Tensor:
    """Which boxes [N, 4] have both sides of at least `least` pixels, bool [N]."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(dim=1)


class MaskRCNN(nn.Module):
    """Mask R-CNN, called as torchvision's detectors are.

    In train mode `model(images, targets)` returns a dict of the five losses, to be added up. In
    eval mode `model(images)` returns for each image a dict of its N objects, best first:

        boxes   float [N, 4], x1 y1 x2 y2 in pixels of the image
        labels  int64 [N], 1 .. num_classes - 1
        scores  float [N], 0 .. 1
        masks   float [N, 1, H, W], 0 .. 1; the object is where they are above 0.5

    `images` are floating point [3, H, W], 0 .. 1, of any sizes, in a list or a batch. `targets`
    are dicts of the M true objects of each image: `boxes` float [M, 4] with an area, `labels`
    int64 [M] in 1 .. num_classes - 1, `masks` bool or uint8 [M, H, W]. M may be 0.

    Args:
        num_classes: with background, which is class 0.
        backbone: a ResNet of backbones.py. The default is the paper's ResNet-50, its batch
            normalisation frozen, which makes sense with trained weights only.
        channels: width of the pyramid, the RPN and the mask head.
        hidden: width of the box head.
        mask_bins: sides of what RoIAlign gives the mask head; masks have twice the side.
        mask_depth: 3x3 convolutions of the mask head.
        anchor_sizes, anchor_ratios, rpn_samples, rpn_positive_iou, proposals_train,
            proposals_test: see `RPN`.
        box_samples: proposals of an image that are trained at a time; a quarter of them at most
            hold an object.
        canonical_size: sides of a box that is pooled from stride 16, see `boxes.pyramid_levels`.
        aligned: whether RoIAlign and pasting keep to the centres of pixels, see `boxes.roi_align`
            and `boxes.paste_masks`. torchvision's do not, which costs half a pixel and more.
        score_threshold, iou_threshold, most_detections: the detections of an image are those with
            a better score, without those that have a larger IoU with a better one of their class,
            and at most so many.
        min_size, max_size: images are resized so that their shorter side is `min_size` pixels, or
            less where the longer one would be above `max_size`. None: they stay as they are.
        mean, std: of the colours, taken off and divided by.

    Raises ValueError or TypeError for images and targets other than these.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet | None = None,
        *,
        channels: int = 256,
        hidden: int = 1024,
        mask_bins: int = 14,
        mask_depth: int = 4,
        anchor_sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_samples: int = 256,
        rpn_positive_iou: float = 0.7,
        proposals_train: int = 2000,
        proposals_test: int = 1000,
        box_samples: int = 512,
        canonical_size: float = 224,
        aligned: bool = False,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        most_detections: int = 100,
        min_size: int | None = 800,
        max_size: int = 1333,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        check_counts(
            num_classes=num_classes,
            channels=channels,
            hidden=hidden,
            mask_bins=mask_bins,
            mask_depth=mask_depth,
            box_samples=box_samples,
            most_detections=most_detections,
        )
        self.backbone = resnet50(norm=FrozenBatchNorm2d) if backbone is None else backbone
        if len(anchor_sizes) != len(self.backbone.channels) + 1:
            raise ValueError(
                f"anchor_sizes: expected the sizes of {len(self.backbone.channels) + 1} levels, "
                f"one more than the backbone has maps; got {len(anchor_sizes)}"
            )
        self.num_classes, self.mask_bins, self.box_samples = num_classes, mask_bins, box_samples
        self.canonical_size, self.aligned = canonical_size, aligned
        self.score_threshold, self.iou_threshold = score_threshold, iou_threshold
        self.most_detections = most_detections
        self.min_size, self.max_size = min_size, max_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

        self.fpn = FPN(self.backbone.channels, channels)
        self.rpn = RPN(
            channels,
            anchor_sizes,
            anchor_ratios,
            samples=rpn_samples,
            positive_iou=rpn_positive_iou,
            proposals_train=proposals_train,
            proposals_test=proposals_test,
        )
        self.box_head = BoxHead(channels, hidden, num_classes)
        self.mask_head = MaskHead(channels, num_classes, depth=mask_depth)

    def forward(
        self, images: Sequence[Tensor] | Tensor, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch, sizes = self.prepare(images)
        if self.training:
            targets = self.prepare_targets(images, targets, sizes)
        pyramid = self.fpn(self.backbone(batch))
        if self.training:
            return self.losses(batch, pyramid, sizes, targets)
        return self.detect(batch, pyramid, sizes, [image.shape[1:] for image in images])

    def losses(
        self,
        batch: Tensor,
        pyramid: Sequence[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """The five losses of a batch and its pyramid."""
        anchors = self.rpn.anchors(pyramid, tuple(batch.shape[2:]))
        objectness, deltas = self.rpn(pyramid)
        losses = self.rpn.losses(objectness, deltas, anchors, targets)
        proposals = self.rpn.propose(objectness, deltas, anchors, sizes)
        return losses | self.head_losses(pyramid, proposals, targets)

    def detect(
        self,
        batch: Tensor,
        pyramid: Sequence[Tensor],
        sizes: Sequence[Size],
        original_sizes: Sequence[Size],
    ) -> list[dict[str, Tensor]]:
        """The objects of each image, in its own pixels, from a batch and its pyramid."""
        anchors = self.rpn.anchors(pyramid, tuple(batch.shape[2:]))
        proposals = self.rpn.propose(*self.rpn(pyramid), anchors, sizes)
        detections = self.detect_boxes(pyramid, proposals, sizes)
        masks = self.detect_masks(pyramid, detections)
        for found, mask, size, (height, width) in zip(
            detections, masks, sizes, original_sizes, strict=True
        ):
            found["boxes"] = resize_boxes(found["boxes"], size, (height, width))
            found["masks"] = paste_masks(
                mask, found["boxes"], height, width, aligned=self.aligned
            )[:, None]
        return detections

    def prepare(self, images: Sequence[Tensor] | Tensor) -> tuple[Tensor, list[Size]]:
        """Normalise and resize the images and pad them to a batch [B, 3, H, W].

        H and W are multiples of 32. Returns the batch and the size of each image in it.
        """
        if not len(images):
            raise ValueError("images: expected at least one; got none")
        for i, image in enumerate(images):
            if not isinstance(image, Tensor):
                raise TypeError(f"images[{i}]: expected a tensor; got {type(image).__name__}")
            if image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
                raise ValueError(
                    f"images[{i}]: expected a floating-point [3, H, W]; "
                    f"got {image.dtype} {list(image.shape)}"
                )
        resized = [self.resize((image - self.mean) / self.std) for image in images]
        sizes = [tuple(image.shape[1:]) for image in resized]
        sides = torch.tensor(sizes).amax(dim=0)
        batch = images[0].new_zeros(len(images), 3, *(-(-sides // DIVISOR) * DIVISOR).tolist())
        for padded, image, (height, width) in zip(batch, resized, sizes, strict=True):
            padded[:, :height, :width] = image
        return batch, sizes

    def resize(self, x: Tensor, mode: str = "bilinear") -> Tensor:
        """An image or masks [C, H, W], resized as `min_size` and `max_size` say."""
        short, long = sorted(x.shape[1:])
        if self.min_size is None:
            return x
        scale = min(self.min_size / short, self.max_size / long)
        if scale == 1:
            return x
        size = [int(side * scale) for side in x.shape[1:]]
        return F.interpolate(x[:, None], size=size, mode=mode)[:, 0]

    def prepare_targets(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target] | None,
        sizes: Sequence[Size],
    ) -> list[dict[str, Tensor]]:
        """Check the targets of the images and resize them to `sizes`; other keys are left out."""
        if targets is None or len(targets) != len(images):
            found = "none" if targets is None else len(targets)
            raise ValueError(
                f"targets: expected one for each of {len(images)} images; got {found}"
            )
        prepared = []
        for i, (image, target, size) in enumerate(zip(images, targets, sizes, strict=True)):
            check_target(f"targets[{i}]", target, image, self.num_classes)
            boxes = target["boxes"].to(image.dtype)
            prepared.append(
                {
                    "boxes": resize_boxes(boxes, image.shape[1:], size),
                    "labels": target["labels"],
                    "masks": self.resize(target["masks"].to(image.dtype), mode="nearest"),
                }
            )
        return prepared

    def pool(self, pyramid: Sequence[Tensor], boxes: Sequence[Tensor], bins: int) -> Tensor:
        """RoIAlign: the features [K, channels, bins, bins] of the boxes of all images.

        `boxes` are [N, 4] for each image. Each is pooled from the level that fits its size, never
        from the last one.
        """
        return pyramid_roi_align(
            pyramid[:-1],
            self.backbone.strides,
            torch.cat(list(boxes)),
            image_of(boxes),
            (bins, bins),
            aligned=self.aligned,
            canonical_size=self.canonical_size,
        )

    def head_losses(
        self, pyramid: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The losses of class, box and mask, for a sample of the proposals and true boxes."""
        boxes, labels, on_objects = [], [], []
        for proposal, target in zip(proposals, targets, strict=True):
            proposal = torch.cat([proposal, target["boxes"]])
            matched = match_boxes(proposal, target["boxes"], 0.5, 0.5)
            chosen = sample(matched, self.box_samples, positive_share=0.25)
            proposal, matched = proposal[chosen], matched[chosen]
            on_object = matched >= 0
            label = torch.zeros_like(matched)
            label[on_object] = target["labels"][matched[on_object]]
            boxes.append(proposal)
            labels.append(label)
            on_objects.append((proposal[on_object], matched[on_object]))

        logits, deltas = self.box_head(self.pool(pyramid, boxes, BOX_BINS))
        label = torch.cat(labels)
        classes = F.cross_entropy(logits, label, reduction="sum") / max(1, len(label))

        (object_rows,) = (label > 0).nonzero(as_tuple=True)
        label = label[object_rows]
        expected = [
            encode_boxes(target["boxes"][matched], box, BOX_WEIGHTS)
            for (box, matched), target in zip(on_objects, targets, strict=True)
        ]
        found = deltas[object_rows, label]

        masks = self.mask_head(self.pool(pyramid, [box for box, _ in on_objects], self.mask_bins))
        side = masks.shape[-1]
        expected_masks = [
            roi_align(target["masks"][:, None], box, matched, (side, side), aligned=self.aligned)[
                :, 0
            ]
            for (box, matched), target in zip(on_objects, targets, strict=True)
        ]
        return {
            "loss_classifier": classes,
            "loss_box_reg": box_loss(found, torch.cat(expected), len(logits)),
            "loss_mask": self.mask_loss(masks, label, torch.cat(expected_masks)),
        }

    def mask_loss(self, logits: Tensor, label: Tensor, expected: Tensor) -> Tensor:
        """Cross-entropy of the masks [K, C, M, M] of each box's own class; the others are free."""
        own = of_class(logits, label)
        loss = F.binary_cross_entropy_with_logits(own, expected, reduction="sum")
        return loss / max(1, own.numel())

    def mask_probabilities(self, logits: Tensor, label: Tensor) -> Tensor:
        """The masks [K, M, M] to show, from logits [K, C, M, M]."""
        return of_class(logits, label).sigmoid()

    def detect_boxes(
        self, pyramid: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[dict[str, Tensor]]:
        """The boxes, labels and scores of each image, in pixels of the batch, best first."""
        logits, deltas = self.box_head(self.pool(pyramid, proposals, BOX_BINS))
        flat = torch.cat(list(proposals)).repeat_interleave(self.num_classes, dim=0)
        boxes = decode_boxes(deltas.reshape(-1, 4).to(flat.dtype), flat, BOX_WEIGHTS)
        boxes = boxes.view(-1, self.num_classes, 4)
        numbers = [len(proposal) for proposal in proposals]
        detections = []
        for box, score, size in zip(
            boxes.split(numbers), logits.softmax(dim=1).split(numbers), sizes, strict=True
        ):
            # Each class of each proposal is a detection of its own; class 0 is background.
            label = torch.arange(1, self.num_classes, device=score.device).repeat(len(score))
            box, score = clip_boxes(box[:, 1:].flatten(0, 1), *size), score[:, 1:].flatten()
            (kept,) = ((score > self.score_threshold) & is_wide(box, 1e-2)).nonzero(as_tuple=True)
            best = nms_per_class(box[kept], score[kept], label[kept], self.iou_threshold)
            kept = kept[best[: self.most_detections]]
            detections.append({"boxes": box[kept], "labels": label[kept], "scores": score[kept]})
        return detections

    def detect_masks(
        self, pyramid: Sequence[Tensor], detections: Sequence[Mapping[str, Tensor]]
    ) -> list[Tensor]:
        """The mask [N, 28, 28] of each detection, of its own class, for each image."""
        pooled = self.pool(pyramid, [found["boxes"] for found in detections], self.mask_bins)
        label = torch.cat([found["labels"] for found in detections])
        masks = self.mask_probabilities(self.mask_head(pooled), label)
        return list(masks.split([len(found["labels"]) for found in detections]))

    def load_torchvision(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the weights of torchvision's `maskrcnn_resnet50_fpn` (0.13 and later).

        For a model with frozen batch normalisation, torchvision's published weights want
        `eps` 0 in it. torch raises a RuntimeError that lists what is missing, foreign or of
        another shape.
        """
        self.load_state_dict(torchvision_names(state_dict))


# Patterns of torchvision's names, and what stands for them here.
TORCHVISION = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"fpn.lateral.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"fpn.output.\1."),
    (r"^rpn\.head\.conv\.0\.0\.", "rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", "rpn.deltas."),
    (r"^roi_heads\.box_head\.", "box_head."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "box_head.score."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "box_head.deltas."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", lambda m: f"mask_head.conv{int(m[1]) + 1}."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.up."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.logits."),
)


def torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's model by the names of ours."""
    renamed = {}
    for name, value in state_dict.items():
        for theirs, ours in TORCHVISION:
            name = re.sub(theirs, ours, name)
        renamed[name] = value
    return renamed


def of_class(values: Tensor, label: Tensor) -> Tensor:
    """What is of class label[k] in row k: [K, C, ...] -> [K, ...]."""
    return values[torch.arange(len(label), device=label.device), label]


def resize_boxes(boxes: Tensor, before: Size, after: Size) -> Tensor:
    """Boxes [N, 4] of an image of size `before` after it is resized to `after`."""
    rows, columns = (new / old for new, old in zip(after, before, strict=True))
    return boxes * boxes.new_tensor([columns, rows, columns, rows])


def check_target(name: str, target: Target, image: Tensor, num_classes: int) -> None:
    """Raise ValueError or TypeError unless `target` is as `MaskRCNN` expects it."""
    missing = [key for key in ("boxes", "labels", "masks") if key not in target]
    if missing:
        raise ValueError(f"{name}: expected boxes, labels and masks; {', '.join(missing)} missing")
    boxes, labels, masks = target["boxes"], target["labels"], target["masks"]
    check_boxes(f"{name} boxes", boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    wrong = ~((sides > 0).all(dim=1) & boxes.isfinite().all(dim=1))
    if wrong.any():
        raise ValueError(
            f"{name} boxes: expected x1 < x2 and y1 < y2; got {boxes[wrong][0].tolist()}"
        )
    if labels.shape != boxes.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{name} labels: expected int64 [{len(boxes)}], one for each box; "
            f"got {labels.dtype} {list(labels.shape)}"
        )
    wrong = (labels < 1) | (labels >= num_classes)
    if wrong.any():
        raise ValueError(
            f"{name} labels: expected 1 .. {num_classes - 1}; got {labels[wrong][0].item()}"
        )
    expected = (len(boxes), *image.shape[1:])
    if masks.shape != expected:
        raise ValueError(
            f"{name} masks: expected {list(expected)}, one of the image's size for each box; "
            f"got {list(masks.shape)}"
        )


def toy_settings(side: int = 64) -> dict[str, Any]:
    """Arguments of `MaskRCNN` for small images: smaller strides and widths, and other anchors.

    The anchors fit the objects of Toyscape, in images of `side` pixels. Pixels keep their centres
    (`aligned`), because half a pixel is much of a small object.
    """
    return dict(
        backbone=toy_resnet(32, output_stride=8, stages=3),
        channels=48,
        hidden=128,
        mask_bins=7,
        mask_depth=2,
        anchor_sizes=[(size * side / 64,) for size in (7, 14, 26, 40)],
        anchor_ratios=(0.5, 1.0, 1.6, 3.0, 8.0),
        rpn_positive_iou=0.5,
        proposals_train=100,
        proposals_test=100,
        box_samples=48,
        canonical_size=4 * side,
        aligned=True,
        min_size=None,
    )


def toy_mask_rcnn(num_classes: int, *, side: int = 64, **changes: Any) -> MaskRCNN:
    """The toy; `changes` are arguments of `MaskRCNN` other than those of `toy_settings`."""
    return MaskRCNN(num_classes, **toy_settings(side) | changes)
