"""ResNet and DeepLabV3 against torchvision, DeepLabV3+ against segmentation-models-pytorch."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from networks import randomise
from parity.same import copy_in_order, equal, same_outputs_and_gradients
from torch import nn

from segcourse.models import backbones
from segcourse.models.deeplab import DeepLabV3, DeepLabV3Plus

SIZES = ((64, 64), (49, 75), (33, 80))
SIZES_OF_16 = ((64, 64), (96, 144), (32, 80))  # the other library refuses all others

each_mode = pytest.mark.parametrize("training", (True, False))


def torchvision_resnet(name, output_stride):
    dilate = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
    options = {"replace_stride_with_dilation": dilate[output_stride]} if "18" not in name else {}
    model = getattr(torchvision.models, name)(weights=None, **options)
    stages = {f"layer{i}": f"layer{i}" for i in (1, 2, 3, 4)}
    return randomise(model), torchvision.models._utils.IntermediateLayerGetter(model, stages)


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18", 32), ("resnet50", 32), ("resnet50", 16), ("resnet50", 8), ("resnet101", 16)],
)
def test_resnet_loads_torchvisions_weights_and_gives_its_maps(name, output_stride):
    torch.manual_seed(0)
    theirs, stages = torchvision_resnet(name, output_stride)
    ours = getattr(backbones, name)(output_stride)
    ours.load_torchvision(theirs.state_dict())
    ours, stages = ours.double().eval(), stages.double().eval()
    for size in SIZES:
        image = torch.rand(1, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            maps = ours(image)
            for our, their in zip(maps, stages(image).values(), strict=True):
                equal(our, their)
        for our, channels, stride in zip(maps, ours.channels, ours.strides, strict=True):
            sides = (-(-side // stride) for side in size)
            assert our.shape == (1, channels, *sides)


@pytest.mark.parametrize("size", SIZES)
@each_mode
def test_deeplabv3_equals_torchvisions(size, training):
    torch.manual_seed(0)
    model = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=5
    )
    theirs = Logits(randomise(model)).double()
    ours = DeepLabV3(5, backbones.resnet50(output_stride=8), dropout=0.0).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # two random masks could not be compared
            module.p = 0.0
    # torchvision's rates at its output stride of 8 are ours for 16, doubled.
    rates = [branch[0].dilation[0] for branch in list(model.classifier[0].convs)[1:4]]
    assert rates == [conv.conv.dilation[0] for conv in ours.aspp.atrous] == [12, 24, 36]
    pairs = copy_in_order(theirs, ours)
    same_outputs_and_gradients(ours, theirs, pairs, size, training)


class Logits(nn.Module):
    """torchvision gives a dict; its auxiliary classifier, which it leaves out here, is None."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image)["out"]


class PaperOrder(nn.Module):
    """The layers of smp's DeepLabV3Plus in the order of the paper.

    smp has one of the two separable 3x3 convolutions right after the pyramid, on the coarse map;
    in the paper both stand in the decoder. smp dilates the convolution too that had the stride,
    and aligns the corner pixels of what it enlarges.
    """

    def __init__(self, classes):
        super().__init__()
        model = smp.DeepLabV3Plus(
            "resnet18", encoder_weights=None, classes=classes, encoder_output_stride=16,
            decoder_atrous_rates=(6, 12, 18), decoder_aspp_dropout=0.0,
        )  # fmt: skip
        strided = model.encoder.layer4[0].conv1
        strided.dilation, strided.padding = (1, 1), (1, 1)
        decoder = model.decoder
        self.encoder = model.encoder
        self.aspp = decoder.aspp[0]
        self.low_level = decoder.block1
        self.first, self.second = decoder.block2, decoder.aspp[1:]
        self.head = model.segmentation_head[0]

    def forward(self, image):
        maps = self.encoder(image)
        x = F.interpolate(self.aspp(maps[-1]), scale_factor=4, mode="bilinear")
        x = self.first(torch.cat([x, self.low_level(maps[2])], dim=1))
        return F.interpolate(self.head(self.second(x)), scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("size", SIZES_OF_16)
@each_mode
def test_deeplabv3plus_equals_the_layers_of_smp(size, training):
    torch.manual_seed(0)
    theirs = randomise(PaperOrder(5)).double()
    ours = DeepLabV3Plus(5, backbones.resnet18(output_stride=16), dropout=0.0).double()
    pairs = copy_in_order(theirs, ours)
    same_outputs_and_gradients(ours, theirs, pairs, size, training)
