"""Record the answers of other libraries that the parity tests read where these do not load.

`PYTHONPATH=tests python -m parity.record boxes`, in an environment that has the library:

    boxes       torchvision 0.27.1 with its compiled operators
    quality     panopticapi (github.com/cocodataset/panopticapi, commit 7bb4655)
    fpn         detectron2 (github.com/facebookresearch/detectron2, commit 02b5c4e2)
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torchvision_shim  # noqa: F401  before torchvision


def boxes():
    from parity import test_boxes_parity as cases

    answers = {
        "nms": [cases.torchvision_nms(*cases.nms_case(seed)) for seed in range(cases.CASES)],
        "roi": [cases.torchvision_roi(*cases.roi_case(seed)) for seed in range(cases.CASES)],
        "pool": [cases.torchvision_pool(*cases.roi_case(seed)) for seed in range(cases.CASES)],
    }
    flat = {name: np.concatenate([a.ravel() for a in each]) for name, each in answers.items()}
    sizes = {f"{name}_sizes": [a.size for a in each] for name, each in answers.items()}
    np.savez_compressed(cases.RECORDED, **flat, **sizes)


def quality():
    from panopticapi.evaluation import PQStat, pq_compute_single_core
    from panopticapi.utils import id2rgb
    from parity import test_instance_metrics_parity as cases
    from PIL import Image

    categories = {i: {"isthing": int(i in cases.THINGS)} for i in range(cases.CATEGORIES)}
    everything, counts = PQStat(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(cases.SCENES):
            prediction, segments, truth, true_segments = cases.scene(seed)
            for segment in true_segments:
                segment["area"] = int((truth == segment["id"]).sum())
            for name, ids in (("prediction", prediction), ("truth", truth)):
                (Path(folder) / name).mkdir(exist_ok=True)
                Image.fromarray(id2rgb(ids)).save(Path(folder) / name / "0.png")
            annotation = {"image_id": 0, "file_name": "0.png"}
            pair = (
                annotation | {"segments_info": true_segments},
                annotation | {"segments_info": segments},
            )
            found = pq_compute_single_core(
                0, [pair], f"{folder}/truth", f"{folder}/prediction", categories
            )
            everything += found
            each = [found[i] for i in range(cases.CATEGORIES)]
            counts.append([[getattr(c, key) for c in each] for key in ("iou", "tp", "fp", "fn")])
    means = [everything.pq_average(categories, isthing)[0] for isthing in (None, True, False)]
    means = [[mean[key] for key in ("pq", "sq", "rq")] for mean in means]
    np.savez_compressed(cases.RECORDED, counts=np.array(counts), means=np.array(means))


def fpn():
    import torch
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
    from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
    from parity import test_panoptic_fpn_parity as cases

    shapes = {f"p{i}": ShapeSpec(channels=cases.IN_CHANNELS, stride=2**i) for i in (2, 3, 4, 5)}
    head = SemSegFPNHead(
        shapes,
        num_classes=cases.CLASSES,
        conv_dims=cases.CHANNELS,
        common_stride=4,
        norm="GN",
        ignore_value=255,
    )
    cases.fill(head.double().eval())
    levels, mask = cases.pyramid()
    coarsest = levels[-1].requires_grad_()
    features = dict(zip(shapes, levels, strict=True))
    logits = head.layers(features)
    enlarged, _ = head(features)
    loss = torch.nn.functional.cross_entropy(enlarged, mask, ignore_index=255)
    loss.backward()
    answers = {
        "logits": logits.detach().numpy(),
        "loss": loss.detach().numpy(),
        "coarsest": coarsest.grad.numpy(),
        "weight": head.p5[0].weight.grad[:2].numpy(),
    }

    ids, segments = [], []
    for seed in range(cases.SCENES):
        masks, things, scores, semantic = (torch.from_numpy(a) for a in cases.scene(seed))
        objects = SimpleNamespace(scores=scores, pred_masks=masks, pred_classes=things)
        # Its 0 is what we call "other", so that its stuff begins with 1.
        semantic = (semantic + 1) % (cases.STUFF + 1)
        merged, known = combine_semantic_and_instance_outputs(objects, semantic, 0.4, 60, 0.5)
        ids.append(merged.numpy().astype(np.uint8))
        segments.append([
            [s["id"], s["category_id"] + (cases.STUFF if s["isthing"] else -1), s["isthing"]]
            for s in known
        ])  # fmt: skip
    answers |= {"ids": np.array(ids), "segments": np.concatenate(segments).astype(np.uint8)}
    answers["numbers"] = np.array([len(known) for known in segments])
    np.savez_compressed(cases.RECORDED, **answers)


if __name__ == "__main__":
    {"boxes": boxes, "quality": quality, "fpn": fpn}[sys.argv[1]]()
