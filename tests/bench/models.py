"""A training step (forward, loss, backward) of each model beside other libraries' equal layers."""

import statistics

import torchvision_shim  # noqa: F401  before the libraries that import torchvision

# isort: split
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from bench.timing import ratio, record, take_turns
from parity.test_segformer_parity import their_segformer
from parity.test_unet_parity import CLASSES, monai_unet
from torch import nn

from segcourse import plots
from segcourse.models.backbones import resnet18, resnet50
from segcourse.models.deeplab import DeepLabV3Plus
from segcourse.models.segformer import SegFormer
from segcourse.models.unet import UNet


def training_step(model: nn.Module, image: torch.Tensor, target: torch.Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(image), target).backward()


def beside(name: str, ours: nn.Module, theirs: nn.Module, size: int, batch: int) -> list:
    """A row: the setting, our seconds for a step, and ours over theirs, which is recorded."""
    counts = {sum(p.numel() for p in model.parameters()) for model in (ours, theirs)}
    assert len(counts) == 1, f"{name}: the models differ in parameters: {counts}"
    image, target = torch.rand(batch, 3, size, size), torch.randint(CLASSES, (batch, size, size))
    times = take_turns({
        "ours": lambda: training_step(ours, image, target),
        "theirs": lambda: training_step(theirs, image, target),
    })  # fmt: skip
    found = ratio(times["ours"], times["theirs"])
    record(f"{name} {size}", found, times["ours"])
    return [name, size, batch, counts.pop(), statistics.median(times["ours"]), found]


def unet(features: tuple[int, ...], size: int, batch: int) -> list:
    """Beside MONAI's BasicUNet."""
    return beside("unet", UNet(3, CLASSES, features), monai_unet(features), size, batch)


def deeplab(encoder: str, size: int, batch: int) -> list:
    """Beside smp's DeepLabV3+, which has one of its two 3x3 convolutions on the coarse map."""
    make = {"resnet18": resnet18, "resnet50": resnet50}[encoder]
    ours = DeepLabV3Plus(CLASSES, make(output_stride=16), dropout=0.5)
    theirs = smp.DeepLabV3Plus(
        encoder, encoder_weights=None, classes=CLASSES, encoder_output_stride=16,
        decoder_atrous_rates=(6, 12, 18),
    )  # fmt: skip
    return beside(f"deeplabv3plus {encoder}", ours, theirs, size, batch)


class Enlarged(nn.Module):
    """The SegFormer of `transformers` with its logits enlarged to the image, as ours has them."""

    def __init__(self, segformer: nn.Module) -> None:
        super().__init__()
        self.segformer = segformer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.segformer(image).logits
        return F.interpolate(logits, image.shape[2:], mode="bilinear")


def segformer(variant: str, size: int, batch: int) -> list:
    """Beside that of `transformers`."""
    ours, theirs = SegFormer.from_variant(variant, CLASSES), Enlarged(their_segformer(variant))
    return beside(f"segformer {variant}", ours, theirs.train(), size, batch)


def main() -> None:
    toy, wide = (12, 24, 48, 96, 192), (32, 64, 128, 256, 512)
    rows = [
        unet(toy, 64, batch=8),
        unet(toy, 97, batch=8),
        unet(wide, 128, batch=4),
        deeplab("resnet18", 96, batch=8),
        deeplab("resnet50", 96, batch=8),
        segformer("b0", 128, batch=4),
    ]
    columns = ["model", "side (px)", "batch", "parameters", "seconds", "time over theirs"]
    caption = (
        "Training step beside another library's layers with equal parameters (at most 1.05; "
        "SegFormer 1.0), one thread: U-Net and MONAI, DeepLabV3+ and segmentation-models-pytorch, "
        "SegFormer and transformers"
    )
    print(plots.table(rows, columns, digits=3, caption=caption))


if __name__ == "__main__":
    main()
