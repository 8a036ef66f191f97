"""The experiments behind `results.json`. `make results` runs them all, each over three seeds.

An experiment is a function of a seed that trains with the settings of its chapter and returns
a `Run`. `python -m segcourse.experiments fcn8s` runs one of them and records it; the name of a
notebook, such as `01_fcn`, records the time that the chapter takes.
"""

import copy
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import segcourse
from segcourse import losses, results
from segcourse.augmentation import Augmented
from segcourse.calibration import Calibration, best_temperature
from segcourse.exercises.model import FEATURES, FILE
from segcourse.instance_metrics import (
    Segments,
    average_precision,
    panoptic_quality,
    panoptic_segments,
    segment_categories,
    split_by_touch,
    touching,
)
from segcourse.models import segformer, setr
from segcourse.models.backbones import toy_resnet
from segcourse.models.boxes import image_of, roi_align, roi_pool
from segcourse.models.deeplab import DeepLabV3Plus
from segcourse.models.fcn import FCN8s, FCN16s, FCN32s
from segcourse.models.layers import Attention
from segcourse.models.mask_rcnn import MaskRCNN, of_class, toy_mask_rcnn
from segcourse.models.panoptic_fpn import PanopticFPN, toy_panoptic_fpn
from segcourse.models.segformer import SegFormer
from segcourse.models.setr import SETR
from segcourse.models.unet import AttentionUNet, UNet
from segcourse.profiling import multiply_adds, parameters, training_memory
from segcourse.toyscape import (
    CLASSES,
    NUM_CLASSES,
    STUFF,
    THINGS,
    VOID,
    Prerendered,
    Toyscape,
    detection_targets,
    void_border,
)
from segcourse.training import (
    class_weights,
    detect,
    evaluate,
    fit,
    pixel_loss,
    predict,
    predict_logits,
    preset,
)

SEEDS = (0, 1, 2)


@lru_cache
def data() -> tuple[Prerendered, Prerendered, torch.Tensor]:
    """Training scenes, validation scenes and class weights, as in the chapters."""
    budget = preset()
    train = Toyscape("train", size=budget.size, length=budget.length(2000))
    val = Toyscape("val", size=budget.size, length=budget.length(200))
    train, val = train.prerender(budget.device), val.prerender(budget.device)
    return train, val, class_weights(train, NUM_CLASSES)


def scenes() -> dict[str, torch.Tensor]:
    """All validation scenes in one batch."""
    _, val, _ = data()
    return val.batch(torch.arange(len(val)))


@dataclass(frozen=True)
class Run:
    """What one run of an experiment did: its steps, and its scores by metric."""

    steps: int
    scores: dict[str, float]


METRICS = ("miou", "boundary_iou", "pixel_accuracy")


def _fcn_of_chapter_01(kind: type[nn.Module]) -> nn.Module:
    return kind(NUM_CLASSES, width=preset().width(8), pad_image=False, batch_norm=True)


def _fcn(kind: type[nn.Module], seed: int, *, steps: int = 1000, only_pool3: bool = False) -> Run:
    """An FCN as in chapter 01."""
    train, val, weights = data()
    torch.manual_seed(seed)
    model = _fcn_of_chapter_01(kind)
    if only_pool3:  # frozen at their zero start, these scores never take part
        model.score_fr.requires_grad_(False)
        model.score_pool4.requires_grad_(False)
    return _trained(model, train, val, weights, steps, seed)


def _first(images: int | None) -> tuple[Prerendered, Prerendered, torch.Tensor]:
    """As `data`, with the first `images` training scenes; None is all."""
    train, val, weights = data()
    if images is not None:
        train = Prerendered(train.images[:images], train.codes[:images])
        weights = class_weights(train, NUM_CLASSES)
    return train, val, weights


def _unet_of_chapter_02(
    kind: type[nn.Module] = UNet, classes: int = NUM_CLASSES, **options: bool
) -> nn.Module:
    return kind(3, classes, [preset().width(n) for n in (12, 24, 48)], **options)


class WithoutFinestSkip(UNet):
    """The third exercise of chapter 02: level 0 reads zeros in place of its skip."""

    def expand(self, level: int, coarser: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return super().expand(level, coarser, skip if level else torch.zeros_like(skip))


def _unet(
    kind: type[nn.Module],
    seed: int,
    *,
    images: int | None = None,
    scale: tuple[float, float] | None = None,
    **options: bool,
) -> Run:
    """A U-Net as in chapter 02, on the first `images` scenes, augmented if `scale` is given."""
    train, val, weights = _first(images)
    if scale:
        train = Augmented(train, scale=scale)
    torch.manual_seed(seed)
    model = _unet_of_chapter_02(kind, **options)
    return _trained(model, train, val, weights, 500, seed)


def _deeplab_of_chapter_03(
    *, stages: int = 4, output_stride: int = 8, low_level: bool = True, **options: Any
) -> DeepLabV3Plus:
    width = preset().width
    return DeepLabV3Plus(
        NUM_CLASSES,
        toy_resnet(width(12), output_stride, stages=stages),
        channels=width(48),
        low_level_channels=width(12) if low_level else 0,
        dropout=0.0,
        **{"rates": (1, 2, 3)} | options,
    )


def _deeplab(seed: int, **options: Any) -> Run:
    """A DeepLabV3+ as in chapter 03."""
    train, val, weights = data()
    torch.manual_seed(seed)
    return _trained(_deeplab_of_chapter_03(**options), train, val, weights, 500, seed)


@lru_cache
def _twice_as_large() -> tuple[Prerendered, Prerendered, torch.Tensor]:
    """As `data`, with twice as many pixels a side."""
    budget = preset()
    train = Toyscape("train", size=2 * budget.size, length=budget.length(2000))
    val = Toyscape("val", size=2 * budget.size, length=budget.length(200))
    train, val = train.prerender(budget.device), val.prerender(budget.device)
    return train, val, class_weights(train, NUM_CLASSES)


def _from_near(make: Callable[[], nn.Module], seed: int) -> Run:
    """Objects of very different size, as in chapter 03: windows enlarged one to four times."""
    train, val, weights = _twice_as_large()
    torch.manual_seed(seed)
    model = make()
    train = Augmented(train, scale=(1, 4), colour=0)
    run = _trained(model, train, _windows(val, 1, 4), weights, 500, seed)
    at_one_scale = {
        f"miou_x{scale}": evaluate(model, _windows(val, scale, scale)).miou for scale in (1, 4)
    }
    return Run(run.steps, run.scores | at_one_scale)


def _windows(val: Prerendered, least: float, greatest: float) -> Prerendered:
    """One window into each scene, enlarged within these bounds; the same ones in each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        windows = Augmented(val, flip=False, scale=(least, greatest), colour=0)
        found = windows.batch(torch.arange(len(val)))
    images = found["image"].mul(255).round().byte()
    return Prerendered(images, (found["mask"] | found["instances"] << 4).byte())


def _segformer_of_chapter_04(classes: int = NUM_CLASSES) -> SegFormer:
    width = preset().width
    return SegFormer(
        classes,
        widths=[width(n) for n in (16, 32, 80, 128)],
        depths=(1, 1, 1, 1),
        channels=width(64),
        drop_path=0.0,
        dropout=0.0,
    )


def _setr_of_chapter_04(classes: int = NUM_CLASSES) -> SETR:
    budget = preset()
    return SETR(
        classes,
        image_size=budget.size,
        patch_size=8,
        width=budget.width(96),
        depth=4,
        heads=4,
        channels=budget.width(32),
    )


class Nothing(nn.Module):
    """In place of attention: every token reads zeros."""

    def forward(self, x: torch.Tensor, *source: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class SplitByView(Attention):
    """The bug of chapter 04: heads that hold a part of the tokens, not of the channels."""

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        size = len(x), self.heads, -1, x.shape[2] // self.heads
        q, k, v = self.q(x).view(size), self.k(source).view(size), self.v(source).view(size)
        return self.proj(F.scaled_dot_product_attention(q, k, v).reshape(x.shape))


def _no_attention(layer: nn.Module) -> None:
    if isinstance(layer, segformer.Block | setr.Block):
        layer.attention = Nothing()


def _no_convolution(layer: nn.Module) -> None:
    if isinstance(layer, segformer.MixFFN):
        layer.conv = nn.Identity()


def _neither(layer: nn.Module) -> None:
    _no_attention(layer)
    _no_convolution(layer)


def _no_position(layer: nn.Module) -> None:
    if isinstance(layer, setr.ViT):  # frozen at zero, it never takes part
        nn.init.zeros_(layer.position).requires_grad_(False)


def _circular(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        layer.padding_mode = "circular"


def _split_by_view(layer: nn.Module) -> None:
    if isinstance(layer, Attention):
        layer.__class__ = SplitByView


def _transformer(
    make: Callable[[], nn.Module],
    seed: int,
    *,
    steps: int,
    lr: float,
    images: int | None = None,
    change: Callable[[nn.Module], None] | None = None,
    pretrained: Callable[[int], nn.Module] | None = None,
) -> Run:
    """A network as in chapter 04, on the first `images` scenes; `change` sees every layer."""
    train, val, weights = _first(images)
    torch.manual_seed(seed)
    model = make()
    if change:
        model.apply(change)
    if pretrained:
        model.encoder.load_state_dict(pretrained(seed).encoder.state_dict())
    return _trained(model, train, val, weights, steps, seed, lr)


_segformer = partial(_transformer, _segformer_of_chapter_04, steps=650, lr=3e-3)
_setr = partial(_transformer, _setr_of_chapter_04, steps=500, lr=2e-3)


class Relabelled:
    """Scenes whose masks are `label(batch)`."""

    def __init__(self, scenes: Any, label: Callable[[dict], torch.Tensor]) -> None:
        self.scenes, self.label = scenes, label

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = self.scenes.batch(indices)
        return batch | {"mask": self.label(batch)}


def water_somewhere(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The far task of chapter 04: 1 on each pixel of sky if the scene has water, else 0."""
    mask = batch["mask"]
    water = (mask == CLASSES.index("water")).flatten(1).any(dim=1)
    return torch.where(mask == CLASSES.index("sky"), water[:, None, None].long(), VOID)


def outlines(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """2 beside the outline of an object, 1 on the rest of it, 0 elsewhere; no class has a name."""
    objects = batch["instances"]
    return torch.where(void_border(objects) == VOID, 2, (objects > 0).long())


def _far(
    make: Callable[..., nn.Module],
    seed: int,
    *,
    lr: float = 1e-2,
    change: Callable[[nn.Module], None] | None = None,
) -> Run:
    """Is there water in the scene? Each pixel of sky answers, as in chapter 04."""
    train, val, _ = data()
    train, val = Relabelled(train, water_somewhere), Relabelled(val, water_somewhere)
    torch.manual_seed(seed)
    model = make(classes=2)
    if change:
        model.apply(change)
    return _trained(model, train, val, class_weights(train, 2), 300, seed, lr)


def _pretrained(classes: int, train: Any, seed: int) -> SegFormer:
    """A SegFormer as in chapter 04 after as many steps on other data."""
    budget = preset()
    torch.manual_seed(seed)
    model = _segformer_of_chapter_04(classes)
    loss = pixel_loss(F.cross_entropy, weight=class_weights(train, classes), ignore_index=VOID)
    steps = budget.steps(650)
    fit(model, train, loss, steps, batch_size=budget.batch_size, lr=3e-3, seed=seed)
    return model


@lru_cache
def _outline_finder(seed: int) -> SegFormer:
    """Another question, in another world: where do objects begin?"""
    return _pretrained(3, Relabelled(_other_world(), outlines), seed)


@lru_cache
def _hard_world(seed: int) -> SegFormer:
    """The same question, in another world whose objects have any colour."""
    return _pretrained(NUM_CLASSES, _other_world(difficulty=1.0), seed)


def _other_world(**options: Any) -> Prerendered:
    budget = preset()
    scenes = Toyscape("train", budget.size, budget.length(2000), seed=1, **options)
    return scenes.prerender(budget.device)


def _hard_world_as_it_is(seed: int) -> Run:
    """Without a step on the scenes that it is scored on."""
    scores = evaluate(_hard_world(seed), data()[1])
    return Run(preset().steps(650), {metric: getattr(scores, metric) for metric in METRICS})


def _trained(
    model: nn.Module,
    train: Any,
    val: Any,
    weights: torch.Tensor,
    steps: int,
    seed: int,
    lr: float = 1e-2,
) -> Run:
    budget = preset()
    loss = pixel_loss(F.cross_entropy, weight=weights, ignore_index=VOID)
    steps = budget.steps(steps)
    batch_size = min(budget.batch_size, len(train))  # the gpu preset's is larger than ten scenes
    fit(model, train, loss, steps, batch_size=batch_size, lr=lr, seed=seed)
    scores = evaluate(model, val)
    return Run(steps, {metric: getattr(scores, metric) for metric in METRICS})


THING_CLASSES = range(len(STUFF), NUM_CLASSES)


def detection_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of a detector's losses."""
    return sum(
        model(batch["image"], detection_targets(batch["mask"], batch["instances"])).values()
    )


def pool_from(level: int, operator: Callable[..., torch.Tensor]) -> Callable[[MaskRCNN], None]:
    """A change of a Mask R-CNN: `operator` pools every box, from one level of the pyramid."""

    def change(model: MaskRCNN) -> None:
        scale = 1 / model.backbone.strides[level]

        def pool(pyramid: Any, boxes: Any, bins: int) -> torch.Tensor:
            rois, image, size = torch.cat(list(boxes)), image_of(boxes), (bins, bins)
            return operator(pyramid[level], rois, image, size, spatial_scale=scale)

        model.pool = pool

    return change


def compete_for_pixels(model: MaskRCNN) -> None:
    """A change of a Mask R-CNN: a softmax over the classes in each pixel of a mask.

    Class 0, which no mask has a use for otherwise, stands for what is not the object.
    """

    def mask_loss(logits: Any, label: Any, expected: Any) -> torch.Tensor:
        target = torch.where(expected >= 0.5, label[:, None, None], 0)
        return F.cross_entropy(logits, target, reduction="sum") / max(1, target.numel())

    def mask_probabilities(logits: Any, label: Any) -> torch.Tensor:
        return of_class(logits.softmax(dim=1), label)

    model.mask_loss, model.mask_probabilities = mask_loss, mask_probabilities


TOY_MASK_RCNN = partial(toy_mask_rcnn, 1 + len(THINGS))
TOY_PANOPTIC_FPN = partial(toy_panoptic_fpn, len(STUFF), len(THINGS), semantic_things=True)
ROI_ALIGN = partial(roi_align, sampling_ratio=2, aligned=True)


def _objects(
    seed: int,
    *,
    make: Callable[..., MaskRCNN] = TOY_MASK_RCNN,
    change: Callable[[MaskRCNN], None] | None = None,
    **options: Any,
) -> Run:
    """A Mask R-CNN or Panoptic FPN as in chapter 05, made with `options`."""
    budget = preset()
    train, _, _ = data()
    torch.manual_seed(seed)
    model = make(side=budget.size, **options)
    if change:
        change(model)
    train, steps = Augmented(train, scale=(1, 1), colour=0), budget.steps(700)
    fit(model, train, detection_loss, steps, batch_size=budget.batch_size, lr=4e-3, seed=seed)

    truth = scenes()
    found = detect(model, truth["image"])
    targets = detection_targets(truth["mask"], truth["instances"])
    scores = {}
    for kind, name in (("boxes", "box"), ("masks", "mask")):
        ap = average_precision(found, targets, 1 + len(THINGS), kind)
        scores |= {f"{name}_ap": ap.ap, f"{name}_ap50": ap.ap50}
    if isinstance(model, PanopticFPN):
        segments = [(image["panoptic"], image["segments"]) for image in found]
        semantic = torch.stack([image["semantic"].argmax(dim=0) for image in found])
        merged = torch.stack([segment_categories(*image) for image in segments])
        scores |= _pq(segments) | _pq_of_components(semantic)
        scores |= _pq(split_by_touch(merged, THING_CLASSES), "_forgotten")
    return Run(steps, scores)


def _unet_and_components(seed: int) -> Run:
    """The U-Net of chapter 02; what touches in its masks is one object."""
    train, val, weights = data()
    torch.manual_seed(seed)
    model = _unet_of_chapter_02()
    steps = _trained(model, train, val, weights, 500, seed).steps
    return Run(steps, _pq_of_components(predict(model, scenes()["image"])))


def _pq_of_components(mask: torch.Tensor) -> dict[str, float]:
    """PQ of masks [B, H, W] whose components are objects: all, or those of 20 pixels at least."""
    large = split_by_touch(mask, THING_CLASSES, least=preset().size ** 2 // 200)
    every = split_by_touch(mask, THING_CLASSES)
    return _pq(every, "_components") | _pq(large, "_large_components")


@lru_cache
def _true_segments() -> tuple[list[Segments], list[bool]]:
    """The segments of the validation scenes, and whether two objects of a class touch in each."""
    truth = scenes()
    mask, instances = truth["mask"], truth["instances"]
    targets = [panoptic_segments(*image) for image in zip(mask, instances, strict=True)]
    return targets, touching(mask, instances).tolist()


def _pq(segments: list[Segments], kind: str = "") -> dict[str, float]:
    """PQ on the validation scenes, and that of the things where two of a class touch."""
    targets, touch = _true_segments()
    pairs = list(zip(segments, targets, strict=True))
    near = [pair for pair, t in zip(pairs, touch, strict=True) if t]
    every = panoptic_quality(*zip(*pairs, strict=True), NUM_CLASSES, THING_CLASSES)
    near = panoptic_quality(*zip(*near, strict=True), NUM_CLASSES, THING_CLASSES)
    return {
        f"pq{kind}": every.all.pq,
        f"pq_things{kind}": every.things.pq,
        f"pq_stuff{kind}": every.stuff.pq,
        f"pq_things_touching{kind}": near.things.pq,
    }


@lru_cache
def _large_stars() -> tuple[Prerendered, Prerendered, torch.Tensor]:
    """As `data`, with taller stars; of usual size they are too few pixels to learn from."""
    budget = preset()
    train = Toyscape("train", size=budget.size, length=budget.length(2000), star_size=1.5)
    val = Toyscape("val", size=budget.size, length=budget.length(200), star_size=1.5)
    train, val = train.prerender(budget.device), val.prerender(budget.device)
    return train, val, class_weights(train, NUM_CLASSES)


@lru_cache
def _before_tuning(seed: int) -> UNet:
    """The network that every loss of chapter 06 starts from: 300 steps of cross entropy."""
    budget = preset()
    train, _, _ = _large_stars()
    torch.manual_seed(seed)
    model = UNet(3, NUM_CLASSES, [budget.width(n) for n in (16, 32)])
    loss = pixel_loss(losses.cross_entropy)
    fit(model, train, loss, budget.steps(300), batch_size=budget.batch_size, seed=seed)
    return model


def _fine_tuned(*terms: tuple[float, losses.Loss], seed: int, weighted: bool = False) -> Run:
    """500 steps with another loss, as in chapter 06, scored on the star and for calibration."""
    budget = preset()
    train, val, weights = _large_stars()
    options = {"weight": weights} if weighted else {}
    loss = pixel_loss(losses.weighted_sum(*terms), **options)
    model, steps = copy.deepcopy(_before_tuning(seed)), budget.steps(500)
    fit(model, train, loss, steps, batch_size=budget.batch_size, seed=seed + 1)
    scores = evaluate(model, val)
    error, scaled_error = _calibration_errors(model, val)
    found = {metric: getattr(scores, metric) for metric in METRICS}
    found |= {"star_iou": scores.iou[CLASSES.index("star")]}
    return Run(steps, found | {"calibration_error": error, "scaled_error": scaled_error})


def _calibration_errors(model: nn.Module, val: Prerendered) -> tuple[float, float]:
    """Of the second half of `val`, before and after scaling by what suits the first half."""
    every = val.batch(torch.arange(len(val)))
    (tune, held_out), (tune_mask, mask) = (
        values.tensor_split(2) for values in (predict_logits(model, every["image"]), every["mask"])
    )
    temperature = best_temperature(tune, tune_mask)
    counted = Calibration(), Calibration()
    for count, scale in zip(counted, (1.0, temperature), strict=True):
        count.update(held_out / scale, mask)
    return counted[0].error(), counted[1].error()


TERMS: dict[str, tuple[tuple[float, losses.Loss], ...]] = {
    "ce": ((1, losses.cross_entropy),),
    "smoothed_ce": ((1, partial(losses.cross_entropy, label_smoothing=0.1)),),
    "focal_2": ((1, partial(losses.focal_loss, gamma=2)),),
    "focal_5": ((1, partial(losses.focal_loss, gamma=5)),),
    "dice": ((1, losses.dice_loss),),
    "lovasz": ((1, losses.lovasz_softmax),),
    "ce_dice": ((1, losses.cross_entropy), (1, losses.dice_loss)),
    "ce_tversky": ((1, losses.cross_entropy), (1, losses.tversky_loss)),
    "ce_lovasz": ((1, losses.cross_entropy), (1, losses.lovasz_softmax)),
}
WEIGHTED = ("ce", "focal_2", "focal_5")

FEW = (10, 30, 100, 300)  # scenes
GENTLE = (0.8, 1.25)  # scales that leave a scene much as it was

NO_PYRAMID = {"rates": (), "image_pooling": False}
PYRAMIDS = {
    "": NO_PYRAMID,
    "_rates": {"image_pooling": False},
    "_pooling": {"rates": ()},
    "_aspp": {},
}
SHALLOW = {"stages": 2, "output_stride": 4}

EXPERIMENTS: dict[str, Callable[[int], Run]] = {
    # 01: three strides, and what the deep maps add
    "fcn32s": partial(_fcn, FCN32s),
    "fcn16s": partial(_fcn, FCN16s),
    "fcn8s": partial(_fcn, FCN8s),
    "fcn8s_only_pool3": partial(_fcn, FCN8s, only_pool3=True),
    # 02: one budget for all; then few scenes, as they are and augmented
    "fcn8s_500": partial(_fcn, FCN8s, steps=500),
    "unet": partial(_unet, UNet),
    "unet_no_skips": partial(_unet, UNet, skips=False),
    "unet_no_finest_skip": partial(_unet, WithoutFinestSkip),
    "attention_unet": partial(_unet, AttentionUNet),
    **{f"unet_{n}": partial(_unet, UNet, images=n) for n in FEW},
    **{f"unet_{n}_augmented": partial(_unet, UNet, images=n, scale=GENTLE) for n in FEW},
    "unet_30_strong": partial(_unet, UNet, images=30, scale=(0.5, 2.0)),
    # 03: what the decoder, the output stride and the pyramid bring; then objects of all sizes
    "deeplab": _deeplab,
    "deeplab_no_low_level": partial(_deeplab, low_level=False),
    "deeplab_stride_16": partial(_deeplab, output_stride=16),
    "deeplab_stride_16_no_low_level": partial(_deeplab, output_stride=16, low_level=False),
    "deeplab_full": partial(_deeplab, separable=False),
    "deeplab_paper_rates": partial(_deeplab, rates=(6, 12, 18)),
    "near_unet": partial(_from_near, _unet_of_chapter_02),
    "near_deep": partial(_from_near, partial(_deeplab_of_chapter_03, **NO_PYRAMID)),
    "near_deep_aspp": partial(_from_near, _deeplab_of_chapter_03),
    **{
        f"near_shallow{name}": partial(_from_near, partial(_deeplab_of_chapter_03, **SHALLOW, **o))
        for name, o in PYRAMIDS.items()
    },
    # 04: from few scenes to all; an answer that lies far away; what each part brings; another
    # task before this one
    "unet_1000": partial(_unet, UNet, images=1000),
    "segformer": _segformer,
    "setr": _setr,
    **{f"segformer_{n}": partial(_segformer, images=n) for n in (30, 100, 300, 1000)},
    **{f"setr_{n}": partial(_setr, images=n) for n in (100, 300, 1000)},
    "far_unet": partial(_far, _unet_of_chapter_02),
    "far_setr": partial(_far, _setr_of_chapter_04, lr=2e-3),
    "far_setr_no_attention": partial(_far, _setr_of_chapter_04, lr=2e-3, change=_no_attention),
    "far_setr_split_by_view": partial(_far, _setr_of_chapter_04, lr=2e-3, change=_split_by_view),
    "far_segformer": partial(_far, _segformer_of_chapter_04, lr=3e-3),
    "far_segformer_no_attention": partial(
        _far, _segformer_of_chapter_04, lr=3e-3, change=_no_attention
    ),
    "segformer_no_attention": partial(_segformer, change=_no_attention),
    "segformer_no_convolution": partial(_segformer, change=_no_convolution),
    "segformer_neither": partial(_segformer, change=_neither),
    "segformer_circular": partial(_segformer, change=_circular),
    "setr_no_attention": partial(_setr, change=_no_attention),
    "setr_no_position": partial(_setr, change=_no_position),
    "setr_split_by_view": partial(_setr, change=_split_by_view),
    **{
        f"segformer_{n}_outlines": partial(_segformer, images=n, pretrained=_outline_finder)
        for n in (30, 100)
    },
    **{
        f"segformer_{n}_hard_world": partial(_segformer, images=n, pretrained=_hard_world)
        for n in (30, 100)
    },
    "hard_world_as_it_is": _hard_world_as_it_is,
    # 05: what the parts of Mask R-CNN bring; objects of a panoptic map, found and split
    "mask_rcnn": _objects,
    "mask_rcnn_coco_anchors": partial(_objects, anchor_sizes=((32,), (64,), (128,), (256,))),
    "mask_rcnn_roi_pool": partial(_objects, change=pool_from(0, roi_pool)),
    "mask_rcnn_stride_4": partial(_objects, change=pool_from(1, ROI_ALIGN)),
    "mask_rcnn_stride_4_roi_pool": partial(_objects, change=pool_from(1, roi_pool)),
    "mask_rcnn_softmax": partial(_objects, change=compete_for_pixels),
    "mask_rcnn_unaligned": partial(_objects, aligned=False),
    "panoptic_fpn": partial(_objects, make=TOY_PANOPTIC_FPN),
    "unet_and_components": _unet_and_components,
    # 06: one start, then another loss
    **{f"loss_{name}": partial(_fine_tuned, *terms) for name, terms in TERMS.items()},
    **{
        f"loss_weighted_{name}": partial(_fine_tuned, *TERMS[name], weighted=True)
        for name in WEIGHTED
    },
    # Leaderboard: as many steps for each model as most chapters take
    "fcn32s_500": partial(_fcn, FCN32s, steps=500),
    "fcn16s_500": partial(_fcn, FCN16s, steps=500),
    "segformer_500": partial(_segformer, steps=500),
}

# The models of the leaderboard, by the experiment that trains each for 500 steps.
LEADERBOARD: dict[str, Callable[[], nn.Module]] = {
    "fcn32s_500": partial(_fcn_of_chapter_01, FCN32s),
    "fcn16s_500": partial(_fcn_of_chapter_01, FCN16s),
    "fcn8s_500": partial(_fcn_of_chapter_01, FCN8s),
    "unet": _unet_of_chapter_02,
    "attention_unet": partial(_unet_of_chapter_02, AttentionUNet),
    "deeplab": _deeplab_of_chapter_03,
    "setr": _setr_of_chapter_04,
    "segformer_500": _segformer_of_chapter_04,
}

# One quick experiment of each chapter, which `make results-check` runs again.
SAMPLE = ("fcn8s_500", "unet", "deeplab", "setr", "mask_rcnn", "loss_dice")


def exercise_model(seed: int) -> UNet:
    """Train the network of the exercises, whichever seed: the U-Net of chapter 02."""
    train, _, weights = data()
    torch.manual_seed(seed)
    model = UNet(3, NUM_CLASSES, FEATURES)
    loss = pixel_loss(F.cross_entropy, weight=weights, ignore_index=VOID)
    fit(model, train, loss, 500, seed=seed)
    return model.cpu().eval()


def save_exercise_model() -> None:
    """Write the weights of the network of the exercises beside `exercises/model.py`."""
    torch.save(exercise_model(SEEDS[0]).state_dict(), FILE)
    print(f"wrote {FILE.name}, {FILE.stat().st_size / 1000:.0f} kB")


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def record_chapter(name: str) -> None:
    """Execute a notebook and write how long it takes."""
    import nbformat  # of the book's environment; the experiments need neither
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    began = time.perf_counter()
    NotebookClient(notebook, timeout=None).execute()
    seconds = time.perf_counter() - began
    results.write([make_record(f"chapter {name}", "seconds", [seconds], 0, [seconds])])
    print(f"chapter {name}: {seconds:.0f} s")


def record(name: str) -> None:
    """Run an experiment with every seed and write its records."""
    runs, seconds = [], []
    data()  # drawing the scenes is no part of a run
    for seed in SEEDS:
        began = time.perf_counter()
        runs.append(EXPERIMENTS[name](seed=seed))
        seconds.append(time.perf_counter() - began)
    values = {metric: [run.scores[metric] for run in runs] for metric in runs[0].scores}
    results.write([
        make_record(name, metric, numbers, runs[0].steps, seconds)
        for metric, numbers in values.items()
    ])  # fmt: skip
    for metric in values:
        found = results.find(name, metric, preset().name)
        print(f"{name} {metric}: {found.text()}")


def record_costs() -> None:
    """Write what each model of the leaderboard costs."""
    for name in LEADERBOARD:
        found = costs(name)
        results.write([make_record(name, cost, [n], 0, [0.0]) for cost, n in found.items()])
        print(f"{name}: {', '.join(f'{n} {cost}' for cost, n in found.items())}")


def costs(name: str) -> dict[str, int]:
    """What a model of the leaderboard costs, counted without training it.

    "parameters"; "multiply_adds" for one image of the preset's size; "memory", the bytes that
    training with Adam keeps for a batch of the preset's.
    """
    budget = preset()
    image = torch.zeros(1, 3, budget.size, budget.size)
    model = LEADERBOARD[name]()
    return {
        "parameters": parameters(model),
        "multiply_adds": multiply_adds(model, image),
        "memory": training_memory(model, image.expand(budget.batch_size, -1, -1, -1)).total,
    }


def check(names: Sequence[str]) -> None:
    """Run experiments again with one seed; SystemExit if a score is beyond its recorded band.

    The band is `Record.band`. Costs of the leaderboard must be the recorded ones exactly.
    """
    if unknown := set(names) - set(EXPERIMENTS):
        raise SystemExit(f"no experiment: {', '.join(sorted(unknown))}")
    faults = []
    for name in LEADERBOARD:
        for cost, value in costs(name).items():
            recorded = results.find(name, cost, preset().name).value
            if value != recorded:
                faults.append(f"{name} {cost}: {value:,}, recorded {recorded:,.0f}")
    print(f"costs of {len(LEADERBOARD)} models: {len(faults)} differ from the recorded ones")
    for name in names:
        for metric, value in EXPERIMENTS[name](seed=SEEDS[0]).scores.items():
            low, high = results.find(name, metric, preset().name).band()
            line = f"{name} {metric}: {value:.4f}, recorded {low:.4f} .. {high:.4f}"
            inside = low <= value <= high
            print(f"  {'inside' if inside else 'BEYOND'}  {line}", flush=True)
            faults.extend([] if inside else [line])
    if faults:
        raise SystemExit("beyond what is recorded:\n" + "\n".join(faults))


def make_record(
    experiment: str, metric: str, values: list[float], steps: int, seconds: list[float]
) -> results.Record:
    """A record of one metric over the seeds, with the machine that measured it."""
    return results.Record(
        experiment=experiment,
        preset=preset().name,
        seed=list(SEEDS[: len(values)]),
        steps=steps,
        metric=metric,
        value=round(statistics.fmean(values), 5),
        spread=round(statistics.stdev(values), 5) if len(values) > 1 else None,
        values=[round(value, 5) for value in values],
        seconds=round(statistics.fmean(seconds), 1),
        device=_device(),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "segcourse": segcourse.__version__,
            "commit": _commit(),
        },
    )


def _device() -> str:
    if preset().device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def _commit() -> str:
    """The commit of the checkout, with a + where the package differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)

    commit = git("rev-parse", "--short=10", "HEAD").stdout.strip()
    made_here = [":(exclude)results.json", ":(exclude)exercises/*.pt", ":(exclude)exercises/*.npz"]
    changed = git("diff", "--quiet", "HEAD", "--", ".", *made_here).returncode
    return f"{commit}{'+' if changed else ''}" if commit else "unknown"


def main(names: list[str]) -> None:
    """Record what is named: experiments, chapters, "costs"; everything for an empty list.

    After the word "check" the named experiments are run again and held against their records, a
    sample of all for an empty list.
    """
    if names[:1] == ["check"]:
        return check(names[1:] or SAMPLE)
    chapters = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    others = {"exercise_model": save_exercise_model, "costs": record_costs}
    known = [*EXPERIMENTS, *others, *chapters]
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in names or known:
        if name in EXPERIMENTS:
            record(name)
        elif name in others:
            others[name]()
        else:
            record_chapter(name)


if __name__ == "__main__":
    main(sys.argv[1:])
