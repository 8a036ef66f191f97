"""Lets the tests import torchvision where its compiled operators do not load.

The wheel of torchvision is compiled against one build of torch. Beside another build, such as the
small one for CPUs, `import torchvision` fails, and with it all that imports it (torchmetrics,
segmentation-models-pytorch, kornia). Its Python code runs as soon as the operators that it
annotates exist by name; they stay without code, and calling one fails. `COMPILED` says whether
the operators are those of torchvision.
"""

import importlib.util
from pathlib import Path

import torch

COMPILED = False
torchvision = importlib.util.find_spec("torchvision")
if torchvision is not None:
    try:
        torch.ops.load_library(next(Path(torchvision.origin).parent.glob("_C.*")))
        COMPILED = True
    except OSError:
        OPERATORS = torch.library.Library("torchvision", "DEF")
        OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
