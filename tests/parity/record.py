"""Record the answers of other libraries that the parity tests read where these do not load.

`PYTHONPATH=tests python -m parity.record boxes`, beside the library itself:

    boxes       torchvision 0.27.1 with its compiled operators
"""

import sys

import numpy as np
from parity import test_boxes_parity


def save(path, arrays):
    """One flat array and the sizes for each name, compressed."""
    flat = {name: np.concatenate([a.ravel() for a in answers]) for name, answers in arrays.items()}
    sizes = {f"{name}_sizes": [a.size for a in answers] for name, answers in arrays.items()}
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **flat, **sizes)


def boxes():
    cases, this = range(test_boxes_parity.CASES), test_boxes_parity
    answers = {
        "nms": [this.compiled_nms(*this.nms_case(seed)) for seed in cases],
        "roi": [this.compiled_roi(*this.roi_case(seed)) for seed in cases],
    }
    save(test_boxes_parity.RECORDED, answers)


if __name__ == "__main__":
    {"boxes": boxes}[sys.argv[1]]()
