"""What the models share: the batch norm that trains on one value, attention, and the checks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segcourse.models.layers import (
    Attention,
    BatchNorm2d,
    attention_maps,
    check_counts,
    check_image,
)


def pair():
    """Our batch norm and torch's, in float64, with the same weights and statistics."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(3, generator=generator) + 0.5)
        ours.state_dict()[name].copy_(value)
    return ours, theirs


SIDES = st.integers(1, 4)


@given(SIDES, SIDES, SIDES, st.booleans())
def test_with_several_values_it_is_the_usual_batch_norm(batch, height, width, training):
    if batch * height * width == 1:
        training = False
    ours, theirs = (layer.train(training) for layer in pair())
    x = torch.randn(batch, 3, height, width, dtype=torch.float64)
    xs = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = [layer(x) for layer, x in zip((ours, theirs), xs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.pow(3).sum().backward()
    assert torch.equal(xs[0].grad, xs[1].grad)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


def test_with_one_value_it_uses_its_running_statistics_and_keeps_them():
    ours, theirs = pair()
    x = torch.randn(1, 3, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        theirs.train()(x)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    output = ours.train()(x)
    assert torch.equal(output, theirs.eval()(x))
    output.sum().backward()
    assert torch.equal(ours.bias.grad, torch.ones(3).double()) and ours.weight.grad.all()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name])


def test_two_images_of_one_pixel_are_a_batch():
    layer = BatchNorm2d(3).train()
    output = layer(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    torch.testing.assert_close(output[:, 0, 0, 0], torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-5)
    assert layer.num_batches_tracked == 1


def random_attention(width, heads):
    """An attention layer in float64 with weights and biases that are not small."""
    torch.manual_seed(0)
    layer = Attention(width, heads).double()
    for weight in layer.parameters():
        nn.init.normal_(weight)
    return layer


def tokens(count, width):
    return torch.randn(2, count, width, dtype=torch.float64)


@pytest.mark.parametrize("heads", (1, 2, 3, 6))
def test_attention_equals_that_of_torch(heads):
    """Output and weights are those of `nn.MultiheadAttention`, which has other names."""
    ours = random_attention(6, heads)
    theirs = nn.MultiheadAttention(6, heads, batch_first=True).double()
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(ours, part), kind) for part in "qkv"]
        getattr(theirs, f"in_proj_{kind}").data = torch.cat(parts)
        getattr(theirs.out_proj, kind).data = getattr(ours.proj, kind)
    x, source = tokens(7, 6), tokens(4, 6)
    output, weights = theirs(x, source, source, average_attn_weights=False)
    torch.testing.assert_close(ours(x, source), output, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.weights(x, source), weights, rtol=1e-10, atol=1e-10)
    ones = torch.ones(2, heads, 7, dtype=torch.float64)
    torch.testing.assert_close(ours.weights(x, source).sum(dim=3), ones)


def test_attention_knows_no_order():
    """Other tokens in another order read the same from a source in another order."""
    layer, x, source = random_attention(6, 2), tokens(7, 6), tokens(5, 6)
    order, of_source = torch.randperm(7), torch.randperm(5)
    shuffled = layer(x[:, order], source[:, of_source])
    torch.testing.assert_close(shuffled, layer(x, source)[:, order], rtol=1e-10, atol=1e-10)
    weights = layer.weights(x[:, order], source[:, of_source])
    expected = layer.weights(x, source)[:, :, order][:, :, :, of_source]
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-10)


def test_attention_maps_are_those_of_each_layer_in_turn():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.late = random_attention(6, 2)
            self.early = random_attention(6, 3)

        def forward(self, x):
            return self.late(self.early(x, x[:, :4]), x)

    encoder, x = Encoder(), tokens(7, 6)
    early, late = attention_maps(encoder, x)
    assert torch.equal(early, encoder.early.weights(x, x[:, :4]))
    assert torch.equal(late, encoder.late.weights(encoder.early(x, x[:, :4]), x))
    assert not encoder.early._forward_pre_hooks


@pytest.mark.parametrize(("width", "heads"), ((8, 3), (2, 4), (5, 2)))
def test_heads_that_do_not_divide_the_width_are_named(width, heads):
    with pytest.raises(ValueError, match=f"heads: .* divisor of the width {width}; got {heads}"):
        Attention(width, heads)
    with pytest.raises(ValueError, match="heads: .* at least 1; got 0"):
        Attention(width, 0)


def test_a_good_image_passes():
    check_image(torch.rand(1, 3, 32, 32))
    check_image(torch.rand(2, 1, 4, 9).half(), channels=1, min_side=4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 2, 3, 64), "image: expected at least 4 pixels a side; got H = 3, W = 64"),
        (torch.rand(1, 2, 64, 0), "image: expected at least 4 pixels a side; got H = 64, W = 0"),
        (torch.rand(1, 3, 64, 64), r"image: expected \[B, 2, H, W\] .* got \[1, 3, 64, 64\]"),
        (torch.rand(2, 64, 64), r"image: expected \[B, 2, H, W\] .* got \[2, 64, 64\]"),
        (torch.rand(0, 2, 64, 64), r"image: .* B >= 1; got \[0, 2, 64, 64\]"),
        (torch.zeros(1, 2, 64, 64).long(), "image: .* floating-point .* torch.int64"),
    ],
)
def test_a_wrong_image_is_named(image, message):
    with pytest.raises(ValueError, match=message):
        check_image(image, channels=2, min_side=4)


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match="image: expected a tensor; got list"):
        check_image([1.0, 2.0])


@pytest.mark.parametrize("count", (0, -3, 2.0, "2", None, True))
def test_a_wrong_count_is_named(count):
    check_counts(classes=1, width=64)
    with pytest.raises(ValueError, match=f"width: .* at least 1; got {count!r}"):
        check_counts(classes=1, width=count)
