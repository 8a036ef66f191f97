"""FCN: shapes, parameter counts, and where every output pixel lies over the image."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segcourse.models.fcn import FCN8s, FCN16s, FCN32s, bilinear_kernel, crop, fuse, upscore

NETWORKS = (FCN32s, FCN16s, FCN8s)
SIDES = st.integers(32, 120)

each_network = pytest.mark.parametrize("network", NETWORKS)
each_padding = pytest.mark.parametrize("pad_image", (True, False))


def with_random_scores(network, **kwargs):
    """The network in float64 and eval mode, its score layers no longer zero."""
    torch.manual_seed(0)
    model = network(3, width=1, **kwargs).double().eval()
    for name, layer in model.named_modules():
        if name.startswith("score"):
            layer.reset_parameters()
    return model


def with_score_map(model, score_fr):
    """Make `model` ignore the image and upsample the map `score_fr` [1, C, h, w] alone."""
    for name, layer in model.named_modules():
        if name == "score_fr":
            layer.register_forward_hook(lambda layer, inputs, output: score_fr)
        elif name.startswith("score"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NETWORKS), st.booleans(), st.booleans(), SIDES, SIDES)
def test_any_image_of_at_least_32_pixels_gives_logits_of_its_own_size(
    network, pad_image, batch_norm, height, width
):
    model = network(5, width=1, pad_image=pad_image, batch_norm=batch_norm)
    logits = model(torch.rand(2, 3, height, width))
    assert logits.shape == (2, 5, height, width)


@each_network
@each_padding
@pytest.mark.parametrize("batch_norm", (False, True))
def test_a_batch_of_one_smallest_image_trains(network, pad_image, batch_norm):
    model = network(3, width=2, pad_image=pad_image, batch_norm=batch_norm).train()
    loss = F.cross_entropy(model(torch.rand(1, 3, 32, 32)), torch.ones(1, 32, 32).long())
    loss.backward()
    assert torch.isfinite(loss)
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    fixed = {name for name, weight in model.named_parameters()} - trained
    assert fixed == {f"upscore{network.__name__[3:-1]}.weight"}


# Channels in and out of the 3x3 convolutions of VGG-16, configuration D of its paper.
VGG16_CONVOLUTIONS = [
    (3, 64), (64, 64),
    (64, 128), (128, 128),
    (128, 256), (256, 256), (256, 256),
    (256, 512), (512, 512), (512, 512),
    (512, 512), (512, 512), (512, 512),
]  # fmt: skip


def test_the_parameters_at_the_papers_width_are_those_of_its_layer_table():
    vgg = sum(9 * i * o + o for i, o in VGG16_CONVOLUTIONS)
    vgg += 7 * 7 * 512 * 4096 + 4096  # fc6
    vgg += 4096 * 4096 + 4096  # fc7
    assert vgg == 134_260_544
    learned = {
        FCN32s: vgg + 4097 * 21,
        FCN16s: vgg + 4097 * 21 + 513 * 21 + 16 * 21,
        FCN8s: vgg + 4097 * 21 + 513 * 21 + 16 * 21 + 257 * 21 + 16 * 21,
    }
    for network, expected in learned.items():
        with torch.device("meta"):
            model = network(21)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_the_papers_crops_follow_from_the_coordinates():
    models = [network(2, width=1) for network in NETWORKS]
    assert [model.score_offset for model in models] == [19, 27, 31]
    assert [model.pool4_offset for model in models[1:]] == [5, 5]
    assert models[2].pool3_offset == 9


@pytest.mark.parametrize("output", ("pool3", "pool4", "fc7"))
@each_padding
def test_the_grids_are_where_the_gradient_says(output, pad_image):
    """The centre of what a pixel sees, measured, equals the place that its grid computes."""
    vgg = FCN8s(2, width=1, pad_image=pad_image).vgg.double().eval()
    for name in ("pool1", "pool2", "pool3", "pool4", "pool5"):
        setattr(vgg, name, nn.AvgPool2d(2, ceil_mode=True))
    for weight in vgg.parameters():
        weight.data.fill_(1 / weight[0].numel())
    image = torch.ones(1, 3, 900, 32, dtype=torch.float64, requires_grad=True)
    features = dict(zip(("pool3", "pool4", "fc7"), vgg(image), strict=True))[output]
    row = features.shape[2] // 2
    features[0, :, row].sum().backward()
    seen = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert 0 < seen[0] and seen[-1] < 899
    grid = getattr(vgg, f"{output}_grid")
    assert (seen[0] + seen[-1]).item() / 2 == grid.start + grid.step * row


@each_network
@each_padding
def test_an_impulse_in_the_scores_comes_out_where_it_was_scored(network, pad_image):
    model = with_random_scores(network, pad_image=pad_image)
    size = model.vgg(torch.rand(1, 3, 224, 224).double())[2].shape[2:]
    impulse = torch.zeros(1, 3, *size, dtype=torch.float64)
    row, column = size[0] // 2, size[1] // 2 - 1
    impulse[0, :, row, column] = 1
    response = with_score_map(model, impulse)(torch.rand(1, 3, 224, 224).double())[0, 0]
    places = torch.arange(224).double()
    grid = model.vgg.fc7_grid
    centre = [(response.sum(dim) @ places / response.sum()).item() for dim in (1, 0)]
    assert centre == pytest.approx([grid.start + 32 * row, grid.start + 32 * column])


@each_network
@each_padding
def test_a_mirrored_network_sees_a_mirrored_image_mirrored(network, pad_image):
    """Fails if any crop is off by one pixel. The sides let every pooling window lie symmetric."""
    model = with_random_scores(network, pad_image=pad_image)
    side = 58 if pad_image else 64  # 58 + 198 and 64 are multiples of 32
    image = torch.rand(1, 3, side, side, dtype=torch.float64)
    logits = model(image)
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.flip(3)
    assert logits.std() > 1e-3
    torch.testing.assert_close(model(image.flip(3)), logits.flip(3), rtol=0, atol=1e-12)


@each_network
@each_padding
def test_shifting_the_image_by_32_pixels_shifts_the_logits(network, pad_image):
    model = with_random_scores(network, pad_image=pad_image)
    image = torch.rand(1, 3, 640, 32, dtype=torch.float64)
    logits = model(image)
    shifted = model(image.roll(32, dims=2))
    # 202 + 64 pixels from the border (half the field of fc7, one step of the upsampling) is safe.
    torch.testing.assert_close(shifted[:, :, 302:342], logits[:, :, 270:310], rtol=0, atol=1e-12)
    assert not torch.allclose(shifted[:, :, 302:342], logits[:, :, 271:311], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", (2, 8, 16, 32))
def test_the_bilinear_kernel_is_the_fields_bilinear_interpolation(factor):
    scores = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    layer = upscore(3, factor, learned=True).double()
    ours = layer(scores)[:, :, factor // 2 : -(factor // 2), factor // 2 : -(factor // 2)]
    torch_s = F.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(ours[inside], torch_s[inside])


@pytest.mark.parametrize("network", (FCN16s, FCN8s))
@each_padding
def test_without_skips_the_finer_networks_equal_fcn32s_on_a_plane(network, pad_image):
    """Two bilinear steps in a row equal one where the scores are linear, away from the border."""
    coarse, fine = (with_random_scores(n, pad_image=pad_image) for n in (FCN32s, network))
    image = torch.zeros(1, 3, 224, 160, dtype=torch.float64)
    height, width = coarse.vgg(image)[2].shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    plane = (2.0 * rows - 3.0 * columns).double().expand(1, 3, height, width)
    expected, found = (with_score_map(model, plane)(image) for model in (coarse, fine))
    inside = (..., slice(64, -64), slice(64, -64))
    torch.testing.assert_close(found[inside], expected[inside])


@given(st.integers(-3, 6), st.integers(1, 8), st.integers(1, 8))
def test_fuse_adds_pixels_of_the_same_place(offset, scores_side, skip_side):
    """Both maps hold the coordinate of each pixel, so that the sum must be twice a coordinate."""
    places = torch.arange(scores_side).float() + offset
    skip_places = torch.arange(skip_side).float()
    shared = sorted(set(places.tolist()) & set(skip_places.tolist()))
    scores, skip = (p.expand(1, 1, len(p), len(p)) for p in (places, skip_places))
    assert fuse(scores, skip, offset)[0, 0, :1].flatten().tolist() == [
        2 * place for place in shared
    ]


@each_network
def test_each_class_is_scored_alike_at_the_start(network):
    model = network(4, width=2, pad_image=False)
    assert model(torch.rand(1, 3, 64, 64)).abs().max() == 0


def test_a_coarser_network_starts_a_finer_one():
    coarse, fine = (with_random_scores(n) for n in (FCN32s, FCN16s))
    missing, unexpected = fine.load_state_dict(coarse.state_dict(), strict=False)
    assert unexpected == ["upscore32.weight"]
    assert {name.split(".")[0] for name in missing} == {"upscore2", "score_pool4", "upscore16"}


@each_network
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 3, 31, 64), "image: .* H = 31, W = 64"),
        (torch.rand(1, 1, 64, 64), r"image: .* \[1, 1, 64, 64\]"),
        (torch.rand(3, 64, 64), r"image: .* \[3, 64, 64\]"),
        (torch.rand(0, 3, 64, 64), r"image: .* \[0, 3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "image: .* torch.uint8"),
    ],
)
def test_a_wrong_image_is_named(network, image, message):
    with pytest.raises(ValueError, match=message):
        network(2, width=1)(image)


@each_network
@pytest.mark.parametrize("width", (0, -8, 0.5))
def test_a_wrong_width_or_number_of_classes_is_named(network, width):
    with pytest.raises(ValueError, match=f"width: .*{width}"):
        network(2, width=width)
    with pytest.raises(ValueError, match=f"num_classes: .*{width}"):
        network(width)


def test_bilinear_kernels_of_neighbours_sum_to_one():
    kernel = bilinear_kernel(4)
    blocks = kernel.unfold(0, 4, 4).unfold(1, 4, 4)
    torch.testing.assert_close(blocks.sum((0, 1)), torch.ones(4, 4))


def test_crop_keeps_the_part_over_the_image():
    scores = torch.arange(10.0).expand(1, 2, 10, 10)
    part = crop(scores, 3, torch.empty(1, 3, 4, 5))
    assert part.shape == (1, 2, 4, 5) and part[0, 0, 0].tolist() == [3, 4, 5, 6, 7]
