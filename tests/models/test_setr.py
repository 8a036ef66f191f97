"""SETR: shapes, the paper's numbers, and what patches, positions and attention do."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import image_of, randomise
from torch import nn

from segcourse.models.setr import SETR, NaiveDecoder, PUPDecoder
from segcourse.profiling import parameters, receptive_field

DECODERS = (NaiveDecoder, PUPDecoder)

each_decoder = pytest.mark.parametrize("decoder", DECODERS)


def small(num_classes=3, **settings):
    """A SETR of 2 layers that is quick to run."""
    few = dict(image_size=64, patch_size=8, width=12, depth=2, heads=3, channels=5)
    return SETR(num_classes, **few | settings)


def random(**settings):
    """A small SETR in float64 and eval mode, with nothing left as it starts."""
    torch.manual_seed(0)
    return randomise(small(**settings).double().eval())


def near(a, b):
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 80),
    st.sampled_from(DECODERS),
    st.integers(1, 2),
    st.integers(0, 40),
    st.integers(0, 40),
    st.booleans(),
)
def test_any_patch_and_image_give_logits_of_the_images_size(
    patch, image_size, decoder, batch, more_rows, more_columns, training
):
    model = small(patch_size=patch, image_size=image_size, decoder=decoder, depth=1)
    side = model.train(training).encoder.min_side
    assert side == max(32, patch)
    height, width = min(side + more_rows, 8 * patch + 32), min(side + more_columns, 8 * patch + 32)
    logits = model(torch.rand(batch, 3, height, width))
    assert logits.shape == (batch, 3, height, width)


@each_decoder
@pytest.mark.parametrize("patch", (8, 32, 40))
def test_a_batch_of_one_smallest_image_trains(decoder, patch):
    """With a patch of 32 the decoder sees one token, and a batch norm one value per channel."""
    torch.manual_seed(0)
    model = small(patch_size=patch, decoder=decoder).train()
    side = max(32, patch)
    target = torch.ones(1, side, side, dtype=torch.int64)
    F.cross_entropy(model(torch.rand(1, 3, side, side)), target).backward()
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight.grad).all(), name
    assert model.decoder.classifier.bias.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(torch.rand(1, 3, side, side))).all()


@each_decoder
def test_every_part_learns(decoder):
    torch.manual_seed(0)
    model = small(decoder=decoder).train()
    model(torch.rand(2, 3, 64, 64)).pow(2).mean().backward()
    for name, weight in model.named_parameters():
        if not name.endswith("attention.k.bias"):  # added to all keys, it changes no softmax
            assert weight.grad.abs().max() > 1e-8, name


# Table 1 of the paper, and the published number of weights of such a ViT that classifies images
# of 224 pixels into 1000 classes.
BACKBONES = [
    (dict(width=768, depth=12, heads=12), 86_567_656),  # T-Base, ViT-B/16
    (dict(width=1024, depth=24, heads=16), 304_326_632),  # T-Large, ViT-L/16
]


@pytest.mark.parametrize(("backbone", "published"), BACKBONES)
def test_the_encoder_has_the_weights_of_vit(backbone, published):
    with torch.device("meta"):
        model = SETR(19, image_size=224, **backbone)
    width = backbone["width"]
    class_token, its_position, classifier = width, width, 1000 * width + 1000
    assert parameters(model.encoder) == published - class_token - its_position - classifier


def test_the_defaults_are_the_papers_t_large_with_pup():
    with torch.device("meta"):
        model = SETR(19)
    width, positions = 1024, (768 // 16) ** 2
    layer = 4 * (width**2 + width) + 2 * 4 * width**2 + 5 * width + 4 * width
    encoder = 16 * 16 * 3 * width + width + positions * width + 24 * layer + 2 * width
    decoder = 9 * width * 256 + 3 * 9 * 256**2 + 4 * 2 * 256 + 256 * 19 + 19
    assert parameters(model.encoder) == encoder
    assert parameters(model.decoder) == decoder
    assert {block.attention.heads for block in model.encoder.blocks} == {16}


def test_the_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    model = small(width=96)
    attention, first = model.encoder.blocks[1].attention, model.encoder.blocks[1].mlp[0]
    for weight in (
        attention.q.weight,
        attention.proj.weight,
        first.weight,
        model.encoder.position,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert attention.q.bias.abs().max() == first.bias.abs().max() == 0


@each_decoder
@pytest.mark.parametrize(("height", "width"), ((33, 40), (40, 39), (61, 67)))
def test_the_last_patches_are_filled_with_zeros_below_and_on_the_right(decoder, height, width):
    model, image = random(decoder=decoder), image_of(height, width)
    filled = torch.zeros(2, 3, -(-height // 8) * 8, -(-width // 8) * 8, dtype=torch.float64)
    filled[:, :, :height, :width] = image
    assert torch.equal(model(image), model(filled)[:, :, :height, :width])


def test_without_positions_the_encoder_knows_no_order():
    """Patches in another order give the same tokens in that order, but for their positions."""
    model, image = random().encoder, image_of(64, 64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    patches = F.unfold(image, 8, stride=8)
    shuffled = F.fold(patches[:, :, order], (64, 64), 8, stride=8)
    assert not near(model(shuffled).flatten(2), model(image).flatten(2)[:, :, order])
    nn.init.zeros_(model.position)
    assert near(model(shuffled).flatten(2), model(image).flatten(2)[:, :, order])


def test_positions_are_stretched_over_the_grid_of_another_image():
    """With all else silent the tokens are the positions, here the numbers of their rows."""
    encoder = random(image_size=60).encoder  # 8 patches each way, the last ones not full
    nn.init.zeros_(encoder.patch_embedding.weight)
    nn.init.zeros_(encoder.patch_embedding.bias)
    encoder.blocks, encoder.norm = nn.Identity(), nn.Identity()
    encoder.position.data[:] = torch.arange(8).view(8, 1)
    for height, expected in (
        (64, torch.arange(8)),
        (57, torch.arange(8)),
        (128, ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7)),
        (32, torch.arange(4) * 2 + 0.5),
    ):
        rows = encoder(image_of(height, 72))
        assert near(rows, expected.double().view(-1, 1).expand(2, 12, -1, 9))


def test_the_first_layer_already_sees_the_whole_image():
    model, image = random(depth=1).encoder, image_of(64, 48).requires_grad_()
    model(image)[0, :, 3, 2].pow(2).sum().backward()
    assert (image.grad[0].abs().sum(dim=0) > 0).all()
    assert image.grad[1].abs().max() == 0  # the other image of the batch
    field = receptive_field(small(), torch.rand(1, 3, 72, 64))
    assert field.theoretical == (72, 64)


@pytest.mark.parametrize(("height", "width", "patches"), ((64, 64, 64), (33, 47, 30)))
def test_attention_maps_say_what_each_patch_reads(height, width, patches):
    model, image = random(), image_of(height, width)
    logits, maps = model(image), model.attention(image)
    assert [tuple(layer.shape) for layer in maps] == 2 * [(2, 3, patches, patches)]
    for layer in maps:
        assert 0 <= layer.min() < layer.max() <= 1
        assert near(layer.sum(dim=3), torch.ones(2, 3, patches, dtype=torch.float64))
    assert torch.equal(model(image), logits)


def test_each_attention_map_is_that_of_its_own_layer():
    model, image = random(), image_of(64, 64)
    before = model.attention(image)
    model.encoder.blocks[1].attention.q.weight.data *= 2
    first, second = model.attention(image)
    assert torch.equal(first, before[0]) and not near(second, before[1])


def test_the_last_layer_reads_values_by_its_attention_map():
    """The map times the values is what scaled_dot_product_attention gives."""
    model, image = random(depth=1, heads=1), image_of(64, 64)
    block = model.encoder.blocks[0]
    nn.init.zeros_(block.mlp[2].weight)
    nn.init.zeros_(block.mlp[2].bias)
    model.encoder.norm = nn.Identity()
    after = model.encoder(image)
    (weights,) = model.attention(image)
    model.encoder.blocks = nn.Identity()
    before = model.encoder(image).flatten(2).transpose(1, 2)
    values = block.attention.v(block.norm1(before))
    read = block.attention.proj(weights[:, 0] @ values)
    assert near(after.flatten(2).transpose(1, 2), before + read)


def test_an_encoder_moves_to_a_model_with_other_classes_decoder_and_image_size():
    source = random()
    model = small(7, decoder=NaiveDecoder).double()
    model.encoder.load_state_dict(source.encoder.state_dict())
    assert torch.equal(model.encoder(image_of(40, 33)), source.encoder(image_of(40, 33)))
    assert model(image_of(40, 33)).shape == (2, 7, 40, 33)


@pytest.mark.parametrize(
    ("patch", "steps"), ((1, 1), (2, 1), (4, 2), (5, 3), (8, 3), (16, 4), (20, 5))
)
def test_progressive_upsampling_at_most_doubles_the_sides(patch, steps):
    decoder, sides = small(patch_size=patch).decoder.eval(), []
    for step in decoder.steps:
        step.register_forward_hook(lambda layer, inputs, output: sides.append(output.shape[2]))
    logits = decoder(torch.rand(1, 12, 3, 2))
    assert logits.shape == (1, 3, 3 * patch, 2 * patch)
    assert sides == [3 * 2**i for i in range(steps)] and 3 * patch <= 2 * sides[-1]


@pytest.mark.parametrize(("width", "heads"), ((12, 5), (8, 16)))
def test_heads_that_do_not_divide_the_width_are_named(width, heads):
    with pytest.raises(ValueError, match=f"heads: .* divisor of the width {width}; got {heads}"):
        small(width=width, heads=heads)


@pytest.mark.parametrize(
    "name", ("num_classes", "image_size", "patch_size", "width", "depth", "heads", "channels")
)
@pytest.mark.parametrize("count", (0, -8, 0.5))
def test_a_wrong_count_is_named(name, count):
    with pytest.raises(ValueError, match=f"{name}: .* at least 1; got {count}"):
        small(**{name: count})


@pytest.mark.parametrize("decoder", ("pup", int, None))
def test_a_wrong_decoder_is_named(decoder):
    with pytest.raises(TypeError, match="decoder: .* such as PUPDecoder; got ") as error:
        small(decoder=decoder)
    assert repr(decoder) in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 3, 39, 64), "image: .* at least 40 pixels .* H = 39, W = 64"),
        (torch.rand(1, 1, 64, 64), r"image: .*\[B, 3, H, W\].* \[1, 1, 64, 64\]"),
        (torch.rand(3, 64, 64), r"image: .* \[3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "image: .* torch.uint8"),
    ],
)
def test_a_wrong_image_is_named(image, message):
    model = small(patch_size=40)
    for use in (model, model.encoder, model.attention):
        with pytest.raises(ValueError, match=message):
            use(image)
    with pytest.raises(ValueError, match="at least 32 pixels .* H = 64, W = 31"):
        small()(torch.rand(1, 3, 64, 31))
