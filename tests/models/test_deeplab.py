"""DeepLabV3 and DeepLabV3+: sizes, what dilation reads, what each branch of the pyramid sees."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segcourse.models.backbones import resnet50, resnet101, toy_resnet
from segcourse.models.deeplab import ASPP, AtrousConv, ConvNormReLU, DeepLabV3, DeepLabV3Plus
from segcourse.profiling import multiply_adds, parameters, receptive_field

NETWORKS = (DeepLabV3, DeepLabV3Plus)
each_network = pytest.mark.parametrize("network", NETWORKS)


def toy(network, output_stride=8, **options):
    return network(5, toy_resnet(2, output_stride), channels=4, rates=(1, 2, 3), **options)


@given(st.sampled_from([1, 3, 5, 7]), st.integers(1, 12), st.integers(1, 20), st.integers(1, 20))
def test_an_atrous_convolution_keeps_any_size(kernel_size, dilation, height, width):
    conv = AtrousConv(2, 3, kernel_size, dilation=dilation)
    assert conv(torch.rand(1, 2, height, width)).shape == (1, 3, height, width)


@given(st.sampled_from([3, 5]), st.integers(1, 4), st.randoms(use_true_random=False))
def test_an_atrous_convolution_is_a_convolution_with_a_kernel_full_of_zeros(
    kernel_size, dilation, random
):
    torch.manual_seed(random.randrange(1000))
    conv = AtrousConv(2, 3, kernel_size, dilation=dilation).double()
    span = dilation * (kernel_size - 1) + 1
    kernel = torch.zeros(3, 2, span, span, dtype=torch.float64)
    kernel[:, :, ::dilation, ::dilation] = conv.weight.detach()
    x = torch.rand(1, 2, 11, 13, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, kernel, conv.bias, padding=span // 2))


def seen(*dilations):
    """Which input pixels the central output pixel of a stack of 3x3 convolutions reads."""
    convs = [AtrousConv(1, 1, dilation=dilation, bias=False) for dilation in dilations]
    for conv in convs:
        nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 31, 31, requires_grad=True)
    nn.Sequential(*convs)(x)[0, 0, 15, 15].backward()
    return x.grad[0, 0] > 0


def test_what_stacked_dilations_cover():
    """Two of rate 2 leave a grid of holes; rates 1 and 2 cover their whole span."""
    assert seen(2).sum() == 9
    gridded, mixed = seen(2, 2), seen(1, 2)
    assert gridded.sum() == 25 and gridded[11:20, 11:20].sum() == 25
    assert mixed.sum() == 49 and mixed[12:19, 12:19].all()


def test_each_branch_of_the_pyramid_sees_its_rate_and_pooling_sees_all():
    torch.manual_seed(0)
    aspp = ASPP(3, 4, rates=(2, 5)).eval()
    for module in aspp.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 10.0)  # no ReLU is closed
    x = torch.rand(1, 3, 31, 31, requires_grad=True)
    fields = []
    for i in range(4):
        (gradient,) = torch.autograd.grad(aspp.branches(x)[i][0, :, 15, 15].sum(), x)
        rows = gradient[0].abs().sum(dim=(0, 2)).nonzero().flatten()
        fields.append((int(rows[0]), int(rows[-1]), len(rows)))
    assert fields[0] == (15, 15, 1)
    assert fields[1] == (13, 17, 3) and fields[2] == (10, 20, 3)
    pooled = aspp.branches(x)[3]
    assert pooled.shape == (1, 4, 31, 31)
    assert torch.equal(pooled, pooled[:, :, :1, :1].expand_as(pooled))
    assert (torch.autograd.grad(pooled.sum(), x)[0] != 0).all()


@pytest.mark.parametrize("side", [4, 7])
def test_a_rate_larger_than_the_map_makes_a_1x1_convolution(side):
    """Section 3.3 of the DeepLabV3 paper: only the middle tap still falls on the map."""
    torch.manual_seed(0)
    conv = AtrousConv(3, 4, dilation=side, bias=False)
    x = torch.rand(1, 3, side, side)
    middle = F.conv2d(x, conv.weight[:, :, 1:2, 1:2])
    torch.testing.assert_close(conv(x), middle)
    assert not torch.allclose(AtrousConv(3, 4, dilation=side - 1, bias=False)(x), middle)


def test_separable_layers_have_the_parameters_of_their_two_parts():
    full, separable = ConvNormReLU(8, 6, 2), ConvNormReLU(8, 6, 2, separable=True)
    assert parameters(full) == 9 * 8 * 6 + 12
    assert parameters(separable) == 9 * 8 + 8 * 6 + 12
    x = torch.rand(1, 8, 5, 5)
    assert multiply_adds(separable, x) == 25 * (9 * 8 + 8 * 6)


@given(
    st.sampled_from(NETWORKS),
    st.sampled_from([4, 8, 16]),
    st.integers(32, 70),
    st.integers(32, 70),
    st.booleans(),
)
def test_any_image_gives_logits_of_its_size(network, output_stride, height, width, training):
    model = toy(network, output_stride).train(training)
    assert model(torch.rand(1, 3, height, width)).shape == (1, 5, height, width)


@pytest.mark.parametrize(
    "model",
    [
        toy(DeepLabV3),
        toy(DeepLabV3Plus),
        toy(DeepLabV3Plus, separable=False),
        toy(DeepLabV3Plus, low_level_channels=0),
        toy(DeepLabV3Plus, image_pooling=False),
        DeepLabV3Plus(5, toy_resnet(2), channels=4, rates=()),
    ],
)
def test_a_batch_of_one_smallest_image_trains(model):
    torch.manual_seed(0)
    target = torch.randint(5, (1, 32, 32))
    F.cross_entropy(model.train()(torch.rand(1, 3, 32, 32)), target).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    assert model.backbone.conv1.weight.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(torch.rand(1, 3, 32, 32))).all()


def test_the_rates_double_at_output_stride_8():
    with torch.device("meta"):
        for output_stride, rates in ((16, [6, 12, 18]), (8, [12, 24, 36])):
            for network in NETWORKS:
                model = network(21, resnet50(output_stride))
                convs = [m for m in model.aspp.atrous.modules() if isinstance(m, AtrousConv)]
                assert [conv.dilation[0] for conv in convs] == rates
                assert model(torch.empty(1, 3, 65, 65)).shape == (1, 21, 65, 65)


def test_the_default_is_the_papers():
    with torch.device("meta"):
        model = DeepLabV3Plus(21)
        backbone = resnet101(16)
    assert model.backbone.strides == (4, 8, 16, 16)
    assert parameters(model.backbone) == parameters(backbone)
    assert model.low_level.conv.weight.shape == (48, 256, 1, 1)
    assert model.decoder[0].depthwise.weight.shape == (304, 1, 3, 3)
    assert model.head.weight.shape == (21, 256, 1, 1)


def test_without_its_low_level_branch_the_answer_does_not_see_it():
    """What reaches the logits from the finest map past the pyramid goes through `low_level`."""
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 64)
    model = toy(DeepLabV3Plus).eval()
    before = model(image)
    nn.init.zeros_(model.low_level.norm.weight)
    assert not torch.allclose(model(image), before)
    assert toy(DeepLabV3Plus, low_level_channels=0).low_level is None


def test_image_pooling_sees_the_whole_image():
    image = torch.rand(1, 3, 192, 192)
    options = {"rates": (1,), "channels": 4}
    with_pooling = DeepLabV3Plus(5, toy_resnet(2), **options)
    without = DeepLabV3Plus(5, toy_resnet(2), image_pooling=False, **options)
    assert receptive_field(with_pooling, image).theoretical == (192, 192)
    assert receptive_field(without, image).theoretical < (192, 192)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AtrousConv(2, 3, 4), "kernel_size: expected an odd number; got 4"),
        (lambda: AtrousConv(2, 3, dilation=0), "dilation: expected a whole number"),
        (lambda: ASPP(4, 4, rates=(6, 0)), r"rates\[1\]: expected a whole number"),
        (lambda: ASPP(4, 0), "out_channels: expected a whole number"),
        (lambda: toy(DeepLabV3)(torch.rand(1, 3, 31, 64)), "at least 32 pixels a side"),
        (lambda: toy(DeepLabV3Plus)(torch.rand(1, 4, 64, 64)), "image: expected"),
        (lambda: DeepLabV3Plus(0, toy_resnet(2)), "num_classes: expected a whole number"),
        (lambda: DeepLabV3Plus(2, toy_resnet(2), low_level_channels=-1), "low_level_channels"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
