"""AP against pycocotools, PQ against the recorded answers of panopticapi.

panopticapi is not on the package index; its answers are in data/panoptic_quality.npz (see
record.py). A second, slow way to count PQ says that the scenes are the ones that it saw.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segcourse.instance_metrics import AveragePrecision, PanopticQuality

SCENES = 60
CATEGORIES, THINGS = 6, (3, 4, 5)
RECORDED = Path(__file__).parent / "data" / "panoptic_quality.npz"


def nearest(rng, height, width, seeds):
    """For each pixel the nearest of some points, each of which counts with a weight of its own."""
    y, x = np.mgrid[:height, :width]
    points = seeds[:, :2] * (height, width)
    distance = np.hypot(y - points[:, :1, None], x - points[:, 1:2, None])
    return (distance * seeds[:, 2, None, None]).argmin(axis=0)


def segments_of(rng, parts, categories):
    """An id map and its segments: one id for each part of a thing, one for each kind of stuff.

    Category -1 is void.
    """
    ids, segments = np.zeros(parts.shape, dtype=np.int64), {}
    for part, category in enumerate(categories):
        if category < 0 or not (parts == part).any():
            continue
        segment = 100 + category if category not in THINGS else 1000 + 17 * part
        ids[parts == part] = segment
        segments[segment] = {"id": segment, "category_id": int(category), "iscrowd": 0}
    return ids, list(segments.values())


def scene(seed, height=40, width=56):
    """(prediction, its segments, truth, its segments), with void in both and crowds in the truth.

    The prediction is the truth with its borders moved, some categories changed, some void.
    """
    rng = np.random.RandomState(seed)
    n = rng.randint(4, 16)
    seeds = np.concatenate([rng.uniform(size=(n, 2)), rng.uniform(0.5, 1.5, (n, 1))], axis=1)
    categories = rng.randint(-1, CATEGORIES, n)
    truth, true_segments = segments_of(rng, nearest(rng, height, width, seeds), categories)
    for category in THINGS:  # at most one crowd of a category
        members = [s for s in true_segments if s["category_id"] == category]
        if members and rng.uniform() < 0.5:
            members[rng.randint(len(members))]["iscrowd"] = 1
    seeds += rng.normal(scale=(0.03, 0.03, 0.05), size=seeds.shape)
    changed = rng.uniform(size=n) < 0.2
    categories = np.where(changed, rng.randint(-1, CATEGORIES, n), categories)
    prediction, segments = segments_of(rng, nearest(rng, height, width, seeds), categories)
    return prediction, segments, truth, true_segments


def ours(scenes, quality=None):
    quality = quality or PanopticQuality(CATEGORIES, THINGS)
    for prediction, segments, truth, true_segments in scenes:
        prediction, truth = torch.from_numpy(prediction), torch.from_numpy(truth)
        quality.update(prediction, segments, truth, true_segments)
    return quality


def counts(quality):
    """float64 [4, categories]: iou, tp, fp, fn."""
    return torch.stack([quality.iou, quality.tp, quality.fp, quality.fn]).numpy()


def slow_counts(prediction, segments, truth, true_segments, *, void="leaves", crowd="excuses"):
    """The rules of PQ, one pair of segments after the other. Plausible mistakes are arguments."""
    found = np.zeros((4, CATEGORIES))
    matched, excuse = set(), {}
    for t in true_segments:
        true_mask = truth == t["id"]
        if t["iscrowd"]:
            excuse[t["category_id"]] = true_mask
            continue
        for p in segments:
            mask = prediction == p["id"]
            union = mask | true_mask
            if void == "leaves":
                union &= ~(mask & (truth == 0))
            iou = (mask & true_mask).sum() / union.sum()
            if iou > 0.5 and p["category_id"] == t["category_id"]:
                found[0, t["category_id"]] += iou
                found[1, t["category_id"]] += 1
                matched.add(p["id"])
                break
        else:
            found[3, t["category_id"]] += 1
    for p in segments:
        if p["id"] in matched:
            continue
        mask = prediction == p["id"]
        lost = (mask & (truth == 0)).sum() if void == "leaves" else 0
        if crowd == "excuses" and p["category_id"] in excuse:
            lost += (mask & excuse[p["category_id"]]).sum()
        if lost / mask.sum() <= 0.5:
            found[2, p["category_id"]] += 1
    return found


def test_pq_counts_what_panopticapi_counts():
    with np.load(RECORDED) as data:
        expected, means = data["counts"], data["means"]
    assert expected.shape == (SCENES, 4, CATEGORIES) and (expected.sum(axis=(0, 2)) > 50).all()
    scenes = [scene(seed) for seed in range(SCENES)]
    for i in range(SCENES):
        found = counts(ours(scenes[i : i + 1]))
        np.testing.assert_allclose(found, expected[i], rtol=0, atol=1e-12, err_msg=str(i))
        np.testing.assert_allclose(slow_counts(*scenes[i]), expected[i], rtol=0, atol=1e-12)
    scores = ours(scenes).compute()
    found = [(q.pq, q.sq, q.rq) for q in (scores.all, scores.things, scores.stuff)]
    np.testing.assert_allclose(found, means, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mistake", [{"void": "counts"}, {"crowd": "nothing"}])
def test_the_scenes_tell_a_wrong_pq(mistake):
    with np.load(RECORDED) as data:
        expected = data["counts"]
    wrong = [slow_counts(*scene(seed), **mistake) for seed in range(SCENES)]
    assert (np.abs(wrong - expected).max(axis=(1, 2)) > 1e-3).sum() > 5


def objects(seed):
    """Detections and true objects of a scene, with equal scores and detections that overlap."""
    rng = np.random.RandomState(5000 + seed)
    sides = (40, 56) if seed % 3 else (170, 200)
    prediction, segments, truth, true_segments = scene(seed, *sides)
    true = [s for s in true_segments if s["category_id"] in THINGS]
    target = {
        "masks": torch.from_numpy(np.array([truth == s["id"] for s in true]).reshape(-1, *sides)),
        "labels": torch.tensor([s["category_id"] - 2 for s in true], dtype=torch.int64),
        "iscrowd": torch.tensor([s["iscrowd"] for s in true], dtype=torch.int64),
    }
    masks, labels = [], []
    for segment in segments:
        if segment["category_id"] in THINGS:
            mask = prediction == segment["id"]
            shifted = np.roll(mask, rng.randint(-3, 4, 2), axis=(0, 1))
            masks += [mask, mask | shifted, mask & shifted][: rng.randint(1, 4)]
            labels += [segment["category_id"] - 2] * (len(masks) - len(labels))
    detected = {
        "masks": torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *sides)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.from_numpy(rng.uniform(size=len(masks)).round(1).astype(np.float32)),
    }
    for found in (target, detected):
        found["boxes"] = torch.tensor([box_round(m) for m in found["masks"]]).view(-1, 4)
    detected["boxes"] += torch.from_numpy(rng.normal(size=(len(masks), 4)).astype(np.float32))
    return detected, target


def box_round(mask):
    y, x = mask.nonzero(as_tuple=True)
    if not len(y):
        return [0.0, 0, 0, 0]
    return [x.min() + 0.0, y.min() + 0.0, x.max() + 1.0, y.max() + 1.0]


def coco_stats(found, kind):
    """pycocotools: AP, AP50, AP75 and by size; precision [thresholds, recalls, classes, areas]."""

    def region(masks, boxes, i):
        x1, y1, x2, y2 = (float(x) for x in boxes[i].double())
        mask = rle.encode(np.asfortranarray(masks[i].numpy().astype(np.uint8)))
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": mask}

    images, annotations, detections = [], [], []
    for image, (detected, target) in enumerate(found):
        height, width = target["masks"].shape[1:]
        images.append({"id": image, "height": height, "width": width})
        for i, label in enumerate(target["labels"].tolist()):
            one = {"image_id": image, "category_id": label, "id": len(annotations) + 1}
            one |= region(target["masks"], target["boxes"], i)
            one |= {"area": int(target["masks"][i].sum()), "iscrowd": int(target["iscrowd"][i])}
            annotations.append(one)
        for i, label in enumerate(detected["labels"].tolist()):
            one = {"image_id": image, "category_id": label, "score": float(detected["scores"][i])}
            both = region(detected["masks"], detected["boxes"], i)
            key = "segmentation" if kind == "masks" else "bbox"
            detections.append(one | {key: both[key]})
    truth = COCO()
    truth.dataset = {"images": images, "annotations": annotations}
    truth.dataset["categories"] = [{"id": label} for label in (1, 2, 3)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(
            truth, truth.loadRes(detections), "segm" if kind == "masks" else "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., -1]
    return evaluation.stats[:6], np.where(precision < 0, np.nan, precision)


@pytest.mark.parametrize("kind", ("masks", "boxes"))
def test_ap_is_that_of_pycocotools(kind):
    found = [objects(seed) for seed in range(SCENES)]
    metric = AveragePrecision(4, kind)
    for detected, target in found:
        metric.update([detected], [target])
    scores = metric.compute()
    stats, precision = coco_stats(found, kind)
    ours = [scores.ap, scores.ap50, scores.ap75, scores.small, scores.medium, scores.large]
    assert all(0.05 < value < 0.99 for value in stats)
    np.testing.assert_allclose(ours, stats, rtol=0, atol=1e-9)
    per_class = precision[..., 0].mean(axis=(0, 1)), precision[0, :, :, 0].mean(axis=0)
    np.testing.assert_allclose(scores.per_class, per_class[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores.ap50_per_class, per_class[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ("masks", "boxes"))
def test_ap_of_each_scene_is_that_of_pycocotools(kind):
    """One scene lacks classes, sizes, detections or objects, where the set has them all."""
    for seed in range(SCENES):
        detected, target = objects(seed)
        if not len(detected["labels"]):
            continue  # pycocotools cannot read a result without detections
        metric = AveragePrecision(4, kind)
        metric.update([detected], [target])
        scores = metric.compute()
        stats, _ = coco_stats([(detected, target)], kind)
        ours = [scores.ap, scores.ap50, scores.ap75, scores.small, scores.medium, scores.large]
        expected = np.where(stats < 0, np.nan, stats)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=str(seed))


def test_only_the_first_100_detections_of_a_class_count():
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, 2:9, 3:9] = True
    truth = {"masks": mask, "labels": torch.tensor([1]), "iscrowd": torch.zeros(1)}
    truth["boxes"] = torch.tensor([[3.0, 2, 9, 9]])
    detected = {
        "masks": torch.zeros(120, 12, 12, dtype=torch.bool),
        "labels": torch.ones(120, dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.1, 120),
        "boxes": torch.rand(120, 4),
    }
    detected["masks"][:, 0, 0] = True
    for place, expected in ((99, 0.01), (100, 0.0)):
        detected["masks"][place] = mask[0]
        metric = AveragePrecision(2)
        metric.update([detected], [truth])
        stats, _ = coco_stats([(detected, truth)], "masks")
        assert metric.compute().ap == pytest.approx(expected) == pytest.approx(stats[0])
        detected["masks"][place] = False
