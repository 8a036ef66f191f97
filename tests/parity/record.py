"""Record the answers of other libraries that the parity tests read where these do not load.

`PYTHONPATH=tests python -m parity.record boxes`, in an environment that has the library:

    boxes       torchvision 0.27.1 with its compiled operators
    panoptic    panopticapi (github.com/cocodataset/panopticapi, commit 7bb4655)
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torchvision_shim  # noqa: F401  before torchvision


def boxes():
    from parity import test_boxes_parity as cases

    answers = {
        "nms": [cases.torchvision_nms(*cases.nms_case(seed)) for seed in range(cases.CASES)],
        "roi": [cases.torchvision_roi(*cases.roi_case(seed)) for seed in range(cases.CASES)],
    }
    flat = {name: np.concatenate([a.ravel() for a in each]) for name, each in answers.items()}
    sizes = {f"{name}_sizes": [a.size for a in each] for name, each in answers.items()}
    np.savez_compressed(cases.RECORDED, **flat, **sizes)


def panoptic():
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


if __name__ == "__main__":
    {"boxes": boxes, "panoptic": panoptic}[sys.argv[1]]()
