"""ResNet: the paper's sizes and parameters, what dilation keeps, any image, bad arguments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segcourse.models.backbones import (
    BasicBlock,
    ResNet,
    resnet18,
    resnet50,
    resnet101,
    toy_resnet,
)
from segcourse.profiling import multiply_adds, parameters, receptive_field


@pytest.mark.parametrize(
    ("make", "classifier", "million", "giga"),
    [(resnet18, 512, 11.69, 1.8), (resnet50, 2048, 25.56, 3.8), (resnet101, 2048, 44.55, 7.6)],
)
def test_the_parameters_and_multiply_adds_are_the_papers(make, classifier, million, giga):
    """Table 1 of the paper gives the multiply-adds; the parameters are torchvision's published."""
    with torch.device("meta"):
        model, image = make(), torch.empty(1, 3, 224, 224)
    counted = parameters(model) + classifier * 1000 + 1000
    assert counted / 1e6 == pytest.approx(million, abs=0.01)
    # The 3x3 convolution has the stride here, not the 1x1 before it, which costs 8 % more.
    assert multiply_adds(model, image) / 1e9 == pytest.approx(giga, rel=0.09)


@settings(max_examples=25)
@given(
    st.sampled_from([(4, 8), (4, 16), (4, 32), (2, 4), (2, 8), (2, 16)]),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_any_image_gives_maps_with_the_strides_that_are_stated(strides, height, width):
    first, last = strides
    model = ResNet(
        BasicBlock, (1, 1, 2, 1), width=2, output_stride=last, small_images=first == 2
    ).eval()
    maps = model(torch.rand(1, 3, height, width))
    assert model.strides[0] == first and model.strides[-1] == last
    for x, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        assert x.shape == (1, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("make", [resnet18, resnet50, toy_resnet])
def test_a_dilated_network_gives_the_plain_ones_features_at_more_places(make):
    """Every second pixel of the dilated map is a pixel of the plain one."""
    torch.manual_seed(0)
    plain_stride = 16 if make is toy_resnet else 32
    plain = make(output_stride=plain_stride).double().eval()
    if make is toy_resnet:  # averages of 2x2 read what a stride skips: leave the shortcuts out
        for stage in (plain.layer3, plain.layer4):
            nn.init.zeros_(stage[0].downsample[1].weight)
    image = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        for factor in (2, 4):
            dilated = make(output_stride=plain_stride // factor).double().eval()
            dilated.load_state_dict(plain.state_dict())
            coarse, fine = plain(image)[-1], dilated(image)[-1]
            torch.testing.assert_close(fine[:, :, ::factor, ::factor], coarse)
            assert not torch.allclose(fine[:, :, 1::factor, ::factor], coarse)


class LastMap(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image)[-1]


def test_dilation_keeps_the_receptive_field():
    """The last stage reads the same pixels of the image from a map with four times the pixels."""
    image = torch.rand(1, 3, 256, 256)
    plain, half, quarter = (
        receptive_field(LastMap(toy_resnet(2, stride)), image) for stride in (16, 8, 4)
    )
    assert not plain.clipped
    assert plain.theoretical == half.theoretical == quarter.theoretical


def test_a_state_dict_that_does_not_fit_is_refused_by_name():
    state = resnet18().state_dict()
    with pytest.raises(RuntimeError, match="layer4.1.bn2.weight"):
        resnet18().load_torchvision({k: v for k, v in state.items() if k != "layer4.1.bn2.weight"})
    with pytest.raises(RuntimeError, match="foreign"):
        resnet18().load_torchvision(state | {"foreign": torch.zeros(1)})
    resnet18().load_torchvision(state | {"fc.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet50(12), r"output_stride: expected one of \[32, 16, 8\]; got 12"),
        (
            lambda: toy_resnet(output_stride=32),
            r"output_stride: expected one of \[16, 8, 4\]; got 32",
        ),
        (lambda: toy_resnet(2, 1, stages=2), r"expected one of \[4, 2\]; got 1"),
        (lambda: ResNet(BasicBlock, (1, 0)), r"depths\[1\]: expected a whole number"),
        (lambda: toy_resnet(0), "width: expected a whole number of at least 1; got 0"),
        (lambda: toy_resnet(2)(torch.rand(3, 32, 32)), "image: expected"),
        (lambda: toy_resnet(2)(torch.rand(1, 1, 32, 32)), "image: expected"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("side", [1, 16, 33])
def test_a_batch_of_one_image_trains(side):
    model = toy_resnet(2)
    sum(x.sum() for x in model(torch.rand(1, 3, side, side))).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_a_narrow_toy_trains_with_channels_last():
    """A strided 1x1 convolution with few channels crashed here, and a crash ends all tests."""
    model = toy_resnet(4).to(memory_format=torch.channels_last)
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert all(conv.kernel_size == (3, 3) for conv in strided)
    image = torch.rand(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    model(image)[-1].sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
