"""U-Net and Attention U-Net: shapes, the paper's numbers, and what the skips and gates carry."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import image_of, randomise
from torch import nn

from segcourse.models.unet import AttentionGate, AttentionUNet, UNet, extend
from segcourse.profiling import receptive_field

NETWORKS = (UNet, AttentionUNet)
FEATURES = (3, 4, 7, 8)

each_network = pytest.mark.parametrize("network", NETWORKS)


def widths(min_size):
    """Lists of widths that rise, not by doubling."""
    return st.lists(st.integers(1, 9), min_size=min_size, max_size=5, unique=True).map(sorted)


def random(network, features=FEATURES, **kwargs):
    """The network in float64 and eval mode, with nothing left as it starts."""
    torch.manual_seed(0)
    return randomise(network(3, 2, features, **kwargs).double().eval(), 0.1)


def set_gates(model, alpha):
    """Make every gate pass the share `alpha`, 0 or 1, of every pixel."""
    for gate in model.gate:
        nn.init.zeros_(gate.psi.weight)
        nn.init.constant_(gate.psi.bias, 1000.0 if alpha else -1000.0)
    return model


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(NETWORKS), st.integers(1, 4), st.booleans())
def test_any_depth_widths_and_image_give_logits_of_the_images_size(
    data, network, channels, training
):
    features = data.draw(widths(min_size=3 if network is AttentionUNet else 1))
    sides = st.integers(2 ** (len(features) - 1), 40)
    batch, height, width = data.draw(st.integers(1, 2)), data.draw(sides), data.draw(sides)
    model = network(channels, 5, features).train(training)
    logits = model(torch.rand(batch, channels, height, width))
    assert logits.shape == (batch, 5, height, width)


@pytest.mark.parametrize(
    "model",
    [
        UNet(1, 3, [4]),
        UNet(1, 3, FEATURES),
        UNet(1, 3, FEATURES, skips=False),
        AttentionUNet(1, 3, FEATURES),
    ],
)
def test_a_batch_of_one_smallest_image_trains(model):
    side = model.min_side
    target = torch.ones(1, side, side, dtype=torch.int64)
    loss = F.cross_entropy(model.train()(torch.rand(1, 1, side, side)), target)
    loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    assert model.head.bias.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(torch.rand(1, 1, side, side))).all()


# Channels in and out of the 3x3 convolutions of figure 1 of the U-Net paper, for RGB images.
CONVOLUTIONS = [
    (3, 64), (64, 64),
    (64, 128), (128, 128),
    (128, 256), (256, 256),
    (256, 512), (512, 512),
    (512, 1024), (1024, 1024),
    (1024, 512), (512, 512),
    (512, 256), (256, 256),
    (256, 128), (128, 128),
    (128, 64), (64, 64),
]  # fmt: skip
UP_CONVOLUTIONS = [(1024, 512), (512, 256), (256, 128), (128, 64)]


def test_the_parameters_at_the_papers_width_are_those_of_its_figure():
    with torch.device("meta"):
        unet, attention_unet = UNet(), AttentionUNet()
    counted = sum(9 * i * o + 2 * o for i, o in CONVOLUTIONS)  # batch norm: a scale and a shift
    counted += sum(4 * i * o + o for i, o in UP_CONVOLUTIONS)
    counted += 64 * 2 + 2
    assert counted == 31_037_698
    assert sum(p.numel() for p in unet.parameters()) == counted
    for skip, gating in ((128, 256), (256, 512), (512, 1024)):
        counted += 4 * skip * skip + (gating * skip + skip) + (skip + 1)
    assert sum(p.numel() for p in attention_unet.parameters()) == counted


def test_without_padding_it_has_the_sizes_of_the_papers_figure():
    with torch.device("meta"):
        model, image = UNet(3, 2, (1, 2, 3, 4, 5)), torch.empty(2, 3, 572, 572)
    assert model(image).shape == (2, 2, 572, 572)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    *skips, x = model.contract(image)
    assert [skip.shape[2] for skip in skips] == [568, 280, 136, 64] and x.shape[2] == 28
    sizes = []
    for level in (3, 2, 1, 0):
        side = 2 * x.shape[2]
        x = model.expand(level, x, skips[level][:, :, :side, :side])  # the paper's crop
        sizes.append(x.shape[2])
    assert sizes == [52, 100, 196, 388]


def test_the_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    model = UNet(3, 2, (64, 128))
    found = {
        "3x3": model.encoder[1].conv1.weight,
        "3x3 after the skip": model.decoder[0].conv1.weight,
        "2x2": model.up[0].weight,
        "1x1": model.head.weight,
    }
    expected = {
        "3x3": (2 / (9 * 64)) ** 0.5,
        "3x3 after the skip": (2 / (9 * 128)) ** 0.5,
        "2x2": (2 / 128) ** 0.5,
        "1x1": (2 / 64) ** 0.5,
    }
    for name, weight in found.items():
        assert weight.std().item() == pytest.approx(expected[name], rel=0.1), name
    assert model.up[0].bias.abs().max() == model.head.bias.abs().max() == 0


@pytest.mark.parametrize(("features", "side"), [((2,), 5), ((1, 2), 18), ((1, 2, 3, 4, 5), 188)])
def test_the_receptive_field(features, side):
    """A U-Net of the paper's depth sees 188 pixels each way."""
    field = receptive_field(UNet(3, 2, features), torch.rand(1, 3, 224, 224))
    assert field.theoretical == (side, side) and not field.clipped


@each_network
@pytest.mark.parametrize("axis", (2, 3))
def test_a_mirrored_network_sees_a_mirrored_image_mirrored(network, axis):
    model, image = random(network), image_of(40, 24)
    logits = model(image)
    for weight in model.parameters():
        if weight.ndim == 4:
            weight.data = weight.flip(axis)
    assert logits.std() > 1e-3
    torch.testing.assert_close(model(image.flip(axis)), logits.flip(axis), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(model(image), logits.flip(axis), rtol=0, atol=1e-6)


@each_network
@pytest.mark.parametrize("more", range(1, 9))
def test_an_odd_size_moves_nothing(network, more):
    """More rows at the bottom change no logit that is far from them: the first row is the same."""
    model, image = random(network), image_of(160, 9)
    near, far = model(image[:, :, : 128 + more]), model(image[:, :, :128])
    torch.testing.assert_close(near[:, :, :48], far[:, :, :48], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(near[:, :, 120:128], far[:, :, 120:128], rtol=0, atol=1e-6)


@each_network
def test_shifting_the_image_by_the_coarsest_step_shifts_the_logits(network):
    model, image = random(network), image_of(256, 9)
    logits, shifted = model(image), model(image.roll(8, dims=2))
    torch.testing.assert_close(
        shifted[:, :, 118:138], logits[:, :, 110:130], rtol=1e-10, atol=1e-10
    )
    assert not torch.allclose(shifted[:, :, 118:138], logits[:, :, 111:131], rtol=0, atol=1e-6)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1), st.integers(0, 1))
def test_extend_repeats_the_last_row_and_column(height, width, rows, columns):
    x = torch.rand(1, 2, height, width)
    extended = extend(x, torch.empty(1, 7, height + rows, width + columns))
    assert extended.shape == (1, 2, height + rows, width + columns)
    assert torch.equal(extended[:, :, :height, :width], x)
    assert torch.equal(extended[:, :, -1, :width], x[:, :, -1])
    assert torch.equal(extended[:, :, :height, -1], x[:, :, :, -1])


@pytest.mark.parametrize(("height", "width"), ((16, 24), (17, 27)))
def test_only_skips_bring_the_image_past_the_coarsest_map(height, width):
    """With the coarsest map silent, the logits depend on the image through the skips alone."""
    for skips in (True, False):
        model = random(UNet, skips=skips)
        nn.init.zeros_(model.encoder[-1].norm2.weight)
        nn.init.zeros_(model.encoder[-1].norm2.bias)
        one, other = image_of(height, width).split(1)
        assert torch.equal(model(one), model(other)) != skips
        assert random(UNet, skips=skips)(image_of(height, width))[0].std() > 1e-3


@each_network
@pytest.mark.parametrize("level", range(3))
def test_each_skip_reaches_the_decoder_of_its_own_level(network, level):
    model = random(network)
    maps = [m.detach().requires_grad_() for m in model.contract(image_of(17, 27))]
    coarser = torch.rand_like(maps[level + 1])
    finer = model.expand(level, coarser, maps[level])
    assert finer.shape == maps[level].shape
    (gradient,) = torch.autograd.grad(finer.sum(), maps[level])
    assert (gradient.abs().sum((0, 2, 3)) > 0).all()


def test_without_skips_there_is_half_as_much_for_the_decoder_to_read():
    for skips, factor in ((True, 2), (False, 1)):
        model = UNet(3, 2, FEATURES, skips=skips)
        read = [block.conv1.in_channels for block in model.decoder]
        assert read == [factor * width for width in FEATURES[:-1]]


@pytest.mark.parametrize(("height", "width"), ((64, 40), (33, 47), (8, 8)))
def test_attention_maps_lie_on_the_grids_of_the_gated_skips(height, width):
    model, image = random(AttentionUNet), image_of(height, width)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, maps = model(image), model.attention(image)
    assert [tuple(alpha.shape) for alpha in maps] == [
        (2, 1, height // 2, width // 2),
        (2, 1, height // 4, width // 4),
    ]
    for alpha in maps:
        assert 0 < alpha.min() < alpha.max() < 1
    assert torch.equal(model(image), logits)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_each_attention_map_is_that_of_its_own_gate():
    model, image = random(AttentionUNet), image_of(32, 32)
    before = model.attention(image)
    model.gate[0].psi.bias.data += 1  # the finest gate, and nothing coarser depends on it
    finest, coarser = model.attention(image)
    assert (finest > before[0]).all() and torch.equal(coarser, before[1])


def test_open_gates_leave_a_plain_unet():
    model, plain = set_gates(random(AttentionUNet), 1), UNet(3, 2, FEATURES).double().eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing and {name.split(".")[0] for name in unexpected} == {"gate"}
    for size in ((16, 24), (33, 47)):
        assert torch.equal(model(image_of(*size)), plain(image_of(*size)))


def test_closed_gates_leave_the_finest_skip():
    """Shut gates change the logits, and only the skips of the finest level still count."""
    model, image = set_gates(random(AttentionUNet), 0), image_of(33, 47)
    *skips, x = model.contract(image)
    for level in (2, 1):
        x = model.expand(level, x, torch.zeros_like(skips[level]))
    torch.testing.assert_close(model(image), model.head(model.expand(0, x, skips[0])))
    open_logits = set_gates(random(AttentionUNet), 1)(image)
    assert not torch.allclose(model(image), open_logits, rtol=0, atol=1e-3)


def test_the_gates_let_most_of_everything_pass_at_the_start():
    torch.manual_seed(0)
    for alpha in AttentionUNet(3, 2, FEATURES).attention(torch.rand(4, 3, 64, 64)):
        assert alpha.quantile(0.1) > 0.5 and alpha.mean() > 0.65


def test_a_gate_refuses_a_gating_signal_of_another_grid():
    gate = AttentionGate(4, 8)
    with pytest.raises(ValueError, match=r"gating: .* \[16, 17\]; got \[1, 1\]"):
        gate(torch.rand(1, 4, 16, 17), torch.rand(1, 8, 1, 1))


def test_every_part_of_a_gate_learns():
    torch.manual_seed(0)
    model = AttentionUNet(3, 2, (4, 16, 24, 32)).train()
    model(torch.rand(2, 3, 32, 32)).pow(2).mean().backward()
    for name, weight in model.gate.named_parameters():
        assert weight.grad.abs().max() > 0, name


@each_network
def test_the_weights_load_into_another_instance(network):
    model, other = random(network), network(3, 2, FEATURES).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image_of(17, 27)), model(image_of(17, 27)))


@each_network
@pytest.mark.parametrize(
    "features", [(), (0, 4, 8), (-4, 4, 8), (8, 4, 16), (4, 4, 8), (4, 8.0, 16), 64, "abc", None]
)
def test_wrong_features_are_named(network, features):
    with pytest.raises(ValueError, match="features: .* got ") as error:
        network(3, 2, features)
    assert repr(features) in str(error.value)


@pytest.mark.parametrize("features", [(8,), (8, 16)])
def test_attention_needs_a_skip_to_gate(features):
    with pytest.raises(ValueError, match="features: .* at least 3 whole numbers"):
        AttentionUNet(3, 2, features)


@each_network
@pytest.mark.parametrize("count", (0, -8, 0.5))
def test_a_wrong_number_of_channels_or_classes_is_named(network, count):
    with pytest.raises(ValueError, match=f"in_channels: .*{count}"):
        network(count, 2, FEATURES)
    with pytest.raises(ValueError, match=f"num_classes: .*{count}"):
        network(3, count, FEATURES)


@each_network
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 3, 7, 64), "image: .* at least 8 pixels .* H = 7, W = 64"),
        (torch.rand(1, 1, 64, 64), r"image: .*\[B, 3, H, W\].* \[1, 1, 64, 64\]"),
        (torch.rand(3, 64, 64), r"image: .* \[3, 64, 64\]"),
        (torch.rand(0, 3, 64, 64), r"image: .* \[0, 3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "image: .* torch.uint8"),
    ],
)
def test_a_wrong_image_is_named(network, image, message):
    model = network(3, 2, FEATURES)
    with pytest.raises(ValueError, match=message):
        model(image)
    if network is AttentionUNet:
        with pytest.raises(ValueError, match=message):
            model.attention(image)
