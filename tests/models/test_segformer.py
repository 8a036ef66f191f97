"""SegFormer: shapes, the paper's numbers, reduced attention, and where position leaks in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import image_of, randomise
from torch import nn

from segcourse.models.segformer import DropPath, EfficientSelfAttention, MixFFN, SegFormer
from segcourse.profiling import multiply_adds, parameters, receptive_field


def small(num_classes=3, **settings):
    """A SegFormer of 6 blocks that is quick to run and drops nothing."""
    few = dict(widths=(4, 6, 8, 10), depths=(1, 2, 1, 2), heads=(1, 2, 4, 5), channels=7)
    return SegFormer(num_classes, **few | dict(drop_path=0, dropout=0) | settings)


def random(**settings):
    """A small SegFormer in float64 and eval mode, with nothing left as it starts."""
    torch.manual_seed(0)
    return randomise(small(**settings).double().eval())


def near(a, b):
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def circular(model):
    """Let every convolution pad with what is at the other end of the map."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    return model


STAGES = st.lists(st.tuples(*(st.integers(1, n) for n in (3, 2, 3, 8))), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(STAGES, st.integers(1, 2), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_any_stages_and_image_give_logits_of_the_images_size(
    stages, batch, more_rows, more_columns, training
):
    heads, depths, widths, sr_ratios = zip(*stages, strict=True)
    widths = [n * width for n, width in zip(heads, widths, strict=True)]
    model = small(5, widths=widths, depths=depths, heads=heads, sr_ratios=sr_ratios)
    side = model.train(training).encoder.min_side
    image = torch.rand(batch, 3, side + more_rows, side + more_columns)
    assert model(image).shape == (batch, 5, side + more_rows, side + more_columns)


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((64, 64), [(16, 16), (8, 8), (4, 4), (2, 2)]),
        ((32, 161), [(8, 41), (4, 21), (2, 11), (1, 6)]),
        ((97, 131), [(25, 33), (13, 17), (7, 9), (4, 5)]),
    ],
)
def test_the_encoder_gives_a_map_on_each_of_four_grids(size, grids):
    maps = random().encoder(image_of(*size))
    assert [tuple(x.shape) for x in maps] == [
        (2, width, *grid) for width, grid in zip((4, 6, 8, 10), grids, strict=True)
    ]


def test_a_batch_of_one_smallest_image_trains():
    torch.manual_seed(0)
    model = small(drop_path=0.1, dropout=0.1).train()
    target = torch.ones(1, 32, 32, dtype=torch.int64)
    F.cross_entropy(model(torch.rand(1, 3, 32, 32)), target).backward()
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight.grad).all(), name
    assert model.head.classifier.bias.grad.abs().max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(torch.rand(1, 3, 32, 32))).all()


def test_every_part_learns():
    torch.manual_seed(0)
    model = random().train()
    model(image_of(64, 64)).pow(2).mean().backward()
    for name, weight in model.named_parameters():
        # Numbers added to all keys change no softmax; added to a channel, no batch norm.
        before_norm = name.startswith("head.linear") or name == "encoder.stages.3.norm.bias"
        if not name.endswith("attention.k.bias") and not (before_norm and name.endswith("bias")):
            assert weight.grad.abs().max() > 1e-8, name


# Tables 1 and 2 of the paper: millions of weights with the 150 classes of ADE20K, and billions of
# multiply-adds, which it calls FLOPs, for 512 x 512 pixels. The counts are the sums of the layers.
PAPER = {
    "b0": (3_752_694, 3.8, 8.4),
    "b1": (13_715_798, 13.7, 15.9),
    "b2": (27_461_974, 27.5, 62.4),
    "b3": (47_337_814, 47.3, 79.0),
    "b4": (64_108_374, 64.1, 95.7),
    "b5": (84_708_694, 84.7, 111.6),
}


@pytest.mark.parametrize("variant", PAPER)
def test_each_variant_has_the_papers_weights_and_multiply_adds(variant):
    count, millions, billions = PAPER[variant]
    with torch.device("meta"):
        model, image = SegFormer.from_variant(variant, 150), torch.rand(1, 3, 512, 512)
    assert parameters(model) == count and round(count / 1e6, 1) == millions
    # The paper fuses on the finest grid, where ours takes that of each map.
    channels = model.head.classifier.in_features
    saved = sum(128**2 - side**2 for side in (64, 32, 16)) * channels**2
    assert (multiply_adds(model, image) + saved) / 1e9 == pytest.approx(billions, rel=0.003)


def test_the_defaults_are_b0():
    with torch.device("meta"):
        shapes = [
            {name: value.shape for name, value in model.state_dict().items()}
            for model in (SegFormer(150), SegFormer.from_variant("b0", 150))
        ]
    assert shapes[0] == shapes[1]


def test_the_variants_read_from_squares_of_8_4_2_and_1_pixels_with_1_2_5_and_8_heads():
    maps = SegFormer.from_variant("b0", 3).eval().attention(torch.rand(1, 3, 64, 96))
    assert [tuple(layer.shape[1:]) for layer in maps] == [
        (1, 16 * 24, 2 * 3), (1, 16 * 24, 2 * 3),
        (2, 8 * 12, 2 * 3), (2, 8 * 12, 2 * 3),
        (5, 4 * 6, 2 * 3), (5, 4 * 6, 2 * 3),
        (8, 2 * 3, 2 * 3), (8, 2 * 3, 2 * 3),
    ]  # fmt: skip


def test_the_encoder_starts_as_in_the_authors_code():
    torch.manual_seed(0)
    block = SegFormer(10, widths=(64,), depths=(1,), heads=(1,), sr_ratios=(8,)).encoder.stages[0]
    linear = block.blocks[0].ffn.fc1
    convolutions = block.patch_embedding.conv, block.blocks[0].ffn.conv
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for layer, outgoing in zip(convolutions, (7 * 7 * 64, 3 * 3), strict=True):
        assert layer.weight.std().item() == pytest.approx((2 / outgoing) ** 0.5, rel=0.05)
    assert linear.bias.abs().max() == convolutions[0].bias.abs().max() == 0


def test_drop_path_leaves_whole_branches_out_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, branch = DropPath(0.25).train(), torch.ones(4000, 2, 3, 4)
    share = layer(branch)
    assert (share.flatten(1) == share[:, :1, 0, 0]).all()  # one number for each image
    assert share.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (share[:, 0, 0, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(layer.eval()(branch), branch)
    assert torch.equal(DropPath(0).train()(branch), branch)


def test_the_rate_of_drop_path_rises_from_the_first_block_to_the_last():
    rates = [m.rate for m in SegFormer.from_variant("b1", 3).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])
    assert [m.rate for m in small(drop_path=0.3).modules() if isinstance(m, DropPath)][-1] == 0.3


def test_a_block_whose_branches_are_dropped_passes_its_input_on():
    block = random().encoder.stages[1].blocks[0].train()
    block.drop_path.rate = 1 - 1e-12
    x = torch.rand(2, 5, 4, 6, dtype=torch.float64)
    assert torch.equal(block(x), x)
    assert not near(block.eval()(x), x)


def test_in_training_it_is_random_only_where_it_drops():
    image = image_of(64, 64)
    for rates, same in ((dict(), True), (dict(drop_path=0.5), False), (dict(dropout=0.5), False)):
        model = random(**rates).train()
        assert torch.equal(model(image), model(image)) == same


@pytest.mark.parametrize(("height", "width"), ((64, 64), (33, 161), (97, 131)))
@pytest.mark.parametrize("sr_ratios", ((8, 4, 2, 1), (1, 1, 1, 1)))
def test_attention_maps_say_what_each_pixel_reads(sr_ratios, height, width):
    model, image = random(sr_ratios=sr_ratios), image_of(height, width)
    logits, grids = model(image), [x.shape[2:] for x in model.encoder(image)]
    maps = iter(model.attention(image))
    for stage, depth in enumerate((1, 2, 1, 2)):
        pixels = grids[stage][0] * grids[stage][1]
        squares = (grids[stage][0] // sr_ratios[stage]) * (grids[stage][1] // sr_ratios[stage])
        for _ in range(depth):
            layer = next(maps)
            assert layer.shape == (2, (1, 2, 4, 5)[stage], pixels, squares)
            assert 0 <= layer.min() and layer.max() <= 1
            assert near(layer.sum(dim=3), torch.ones(layer.shape[:3], dtype=torch.float64))
    assert next(maps, None) is None
    assert torch.equal(model(image), logits)


def test_plain_attention_has_nothing_to_reduce():
    reduced, plain = random(), random(sr_ratios=(1, 1, 1, 1))
    extra = {name.split(".")[-2] for name in reduced.state_dict().keys() - plain.state_dict()}
    assert extra == {"reduce", "norm"}
    plain.load_state_dict(reduced.state_dict(), strict=False)
    image = image_of(64, 64)
    assert not near(plain(image), reduced(image))


def test_where_squares_are_of_one_colour_reduced_attention_is_plain_attention():
    """Each square then holds one key and value R * R times over, which changes no softmax."""
    torch.manual_seed(0)
    reduced = EfficientSelfAttention(6, 2, sr_ratio=3).double()
    plain = EfficientSelfAttention(6, 2, sr_ratio=1).double()
    plain.attention.load_state_dict(reduced.attention.state_dict())
    reduced.norm = nn.Identity()
    mean = torch.eye(6, dtype=torch.float64).view(6, 6, 1, 1) / 9  # of the 9 pixels of a square
    reduced.reduce.weight.data[:] = mean
    nn.init.zeros_(reduced.reduce.bias)
    squares = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    x = squares.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)
    assert near(reduced(x), plain(x))
    assert not near(reduced(torch.randn_like(x)), plain(torch.randn_like(x)))


def test_plain_attention_alone_knows_no_order():
    layer = EfficientSelfAttention(6, 2, sr_ratio=1).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    order = torch.randperm(20)
    shuffled = layer(x.flatten(1, 2)[:, order].unflatten(1, (4, 5)))
    assert near(shuffled.flatten(1, 2), layer(x).flatten(1, 2)[:, order])


def test_mix_ffn_sees_a_pixel_and_its_8_neighbours_and_no_other_image():
    layer = MixFFN(4).double()
    x = torch.rand(2, 7, 9, 4, dtype=torch.float64, requires_grad=True)
    layer(x)[0, 3, 4].pow(2).sum().backward()
    seen = x.grad.abs().sum(dim=3) > 0
    expected = torch.zeros(2, 7, 9, dtype=torch.bool)
    expected[0, 2:5, 3:6] = True
    assert torch.equal(seen, expected)


def test_the_first_block_already_sees_the_whole_image():
    model, image = random(), image_of(64, 96).requires_grad_()
    stage = model.encoder.stages[0]
    stage(image)[0, :, 3, 2].pow(2).sum().backward()
    assert (image.grad[0].abs().sum(dim=0) > 0).all()
    assert image.grad[1].abs().max() == 0
    field = receptive_field(small(), torch.rand(1, 3, 96, 64))
    assert field.theoretical == (96, 64)


def test_position_leaks_in_through_zero_padding_alone():
    """A constant image: all pixels of a map are equal if nothing tells where the border is."""
    image = torch.full((1, 3, 64, 96), 0.5, dtype=torch.float64)
    for x in circular(random()).encoder(image):
        assert near(x, x[:, :, :1, :1].expand_as(x))
    for x in random().encoder(image):
        assert (x - x[:, :, :1, :1]).abs().max() > 1e-3
    logits = circular(random())(image)
    assert near(logits, logits[:, :, :1, :1].expand_as(logits))


def test_without_a_border_a_shifted_image_gives_shifted_maps():
    """Padded in a circle, the encoder knows no place; 32 pixels are a step of the coarsest map."""
    image = image_of(64, 96)
    model, with_border = circular(random()), random()
    for i, (shifted, x) in enumerate(
        zip(model.encoder(image.roll(32, dims=3)), model.encoder(image), strict=True)
    ):
        assert near(shifted, x.roll(8 // 2**i, dims=3))
    shifted = with_border.encoder(image.roll(32, dims=3))[0]
    assert not near(shifted, with_border.encoder(image)[0].roll(8, dims=3))


def test_each_map_reaches_the_head_through_its_own_layers():
    model = random()
    maps = [x.detach().requires_grad_() for x in model.encoder(image_of(64, 96))]
    model.head(maps).pow(2).sum().backward()
    for i, x in enumerate(maps):
        assert (x.grad.abs().sum((0, 2, 3)) > 0).all()
        silent = copy.deepcopy(model.head)
        nn.init.zeros_(silent.fuse[i].weight)
        assert torch.equal(silent(maps), silent([*maps[:i], x + 1, *maps[i + 1 :]]))


def test_an_encoder_moves_to_a_model_with_other_classes_and_head():
    source = random()
    model = small(7, channels=5).double().eval()
    model.encoder.load_state_dict(source.encoder.state_dict())
    image = image_of(40, 33)
    for ours, theirs in zip(model.encoder(image), source.encoder(image), strict=True):
        assert torch.equal(ours, theirs)
    assert model(image).shape == (2, 7, 40, 33)


def test_an_unknown_variant_is_named():
    for variant in ("b6", "B0", 0):
        with pytest.raises(ValueError, match="variant: .* b0, b1, b2, b3, b4, b5; got ") as error:
            SegFormer.from_variant(variant, 3)
        assert repr(variant) in str(error.value)


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ValueError, match="heads: .* divisor of the width 8; got 3"):
        small(heads=(1, 2, 3, 5))


@pytest.mark.parametrize("name", ("widths", "depths", "heads", "sr_ratios"))
@pytest.mark.parametrize("numbers", [(), (0, 2, 2, 2), (1.0, 2, 2, 2), 4, "1111", None])
def test_wrong_numbers_of_the_stages_are_named(name, numbers):
    with pytest.raises(ValueError, match=f"{name}: .* one for each stage.* got ") as error:
        small(**{name: numbers})
    assert repr(numbers) in str(error.value)


@pytest.mark.parametrize("name", ("depths", "heads", "sr_ratios"))
@pytest.mark.parametrize("numbers", [(1, 1, 1), (1, 1, 1, 1, 1)])
def test_settings_of_other_stages_than_the_widths_are_named(name, numbers):
    with pytest.raises(ValueError, match=f"{name}: .* as many as widths; got "):
        small(**{name: numbers})


@pytest.mark.parametrize("name", ("num_classes", "channels"))
@pytest.mark.parametrize("count", (0, -8, 0.5))
def test_a_wrong_count_is_named(name, count):
    with pytest.raises(ValueError, match=f"{name}: .* at least 1; got {count}"):
        small(**{name: count})


@pytest.mark.parametrize("name", ("drop_path", "dropout"))
@pytest.mark.parametrize("rate", (-0.1, 1, 1.5))
def test_a_wrong_rate_is_named(name, rate):
    with pytest.raises(ValueError, match=rf"{name}: .* \[0, 1\); got {rate}"):
        small(**{name: rate})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 3, 31, 64), "image: .* at least 32 pixels .* H = 31, W = 64"),
        (torch.rand(1, 1, 64, 64), r"image: .*\[B, 3, H, W\].* \[1, 1, 64, 64\]"),
        (torch.rand(3, 64, 64), r"image: .* \[3, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "image: .* torch.uint8"),
    ],
)
def test_a_wrong_image_is_named(image, message):
    model = small()
    for use in (model, model.encoder, model.attention):
        with pytest.raises(ValueError, match=message):
            use(image)


def test_an_image_too_small_for_a_square_to_read_is_named():
    model = small(sr_ratios=(8, 6, 2, 1))
    assert model(torch.rand(1, 3, 48, 48)).shape == (1, 3, 48, 48)
    with pytest.raises(ValueError, match="image: .* at least 48 pixels .* H = 48, W = 47"):
        model(torch.rand(1, 3, 48, 47))


def test_a_state_dict_that_does_not_fit_is_refused_with_what_differs():
    model = small()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    missing, reshaped = "head.fuse.2.weight", "encoder.stages.1.norm.bias"
    del state[missing]
    state[reshaped] = torch.rand(5)
    state["decode_head.other.weight"] = torch.rand(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="state: ") as error:
        model.load_transformers(state)
    assert f"missing: {missing};" in str(error.value)
    assert "foreign: decode_head.other.weight;" in str(error.value)
    assert str(error.value).endswith(f"of another shape: {reshaped}")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_of_many_missing_tensors_the_first_ones_are_listed():
    model = small()
    count = len(model.state_dict())
    with pytest.raises(ValueError, match=f"missing: .* and {count - 10} more$") as error:
        model.load_transformers({})
    assert str(error.value).count("encoder.stages.") == 10


def test_what_is_no_state_dict_is_named():
    with pytest.raises(TypeError, match="state: expected a state dict; got SegFormer"):
        small().load_transformers(small())
