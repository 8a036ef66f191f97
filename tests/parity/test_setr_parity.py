"""SETR: its encoder against timm's ViT, its decoders and positions against formulas written out.

timm's ViT resizes position embeddings by another rule, so here it is given positions that are
already on its grid, resized by matrices of the bilinear weights.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import randomise
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.func import functional_call

from segcourse.models.setr import SETR, NaiveDecoder, PUPDecoder

CLASSES = 5
WIDTH, DEPTH, HEADS = 24, 3, 4
SIZES = ((48, 48), (64, 64), (97, 131), (33, 161), (32, 40))

each_patch = pytest.mark.parametrize("patch", (8, 16, 12, 5))


def random_setr(patch, decoder=PUPDecoder):
    torch.manual_seed(0)
    model = SETR(
        CLASSES,
        image_size=48,
        patch_size=patch,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        decoder=decoder,
        channels=7,
    ).double()
    randomise(model, 0.2)
    return model


def leaves(model):
    """Copies of the weights and statistics by name, which gather gradients of their own."""
    return {
        name: value.clone().requires_grad_(value.is_floating_point())
        for name, value in model.state_dict().items()
    }


def enlarging(new, old):
    """The matrix [new, old] of bilinear interpolation along an axis, with pixels as areas."""
    places = ((torch.arange(new).double() + 0.5) * old / new - 0.5).clamp(0, old - 1)
    return (1 - (places[:, None] - torch.arange(old)).abs()).clamp(min=0)


def resize(x, rows, columns):
    return torch.einsum(
        "rh,cw,bkhw->bkrc", enlarging(rows, x.shape[2]), enlarging(columns, x.shape[3]), x
    )


def timm_names(w, rows, columns):
    """The weights of our encoder as timm's ViT names them, with positions for its grid."""
    theirs = {
        "patch_embed.proj.weight": w["patch_embedding.weight"],
        "patch_embed.proj.bias": w["patch_embedding.bias"],
        "pos_embed": resize(w["position"], rows, columns).flatten(2).transpose(1, 2),
    }
    for kind in ("weight", "bias"):
        theirs[f"norm.{kind}"] = w[f"norm.{kind}"]
        for i in range(DEPTH):
            block = f"blocks.{i}"
            theirs |= {
                f"{block}.norm1.{kind}": w[f"{block}.norm1.{kind}"],
                f"{block}.attn.qkv.{kind}": torch.cat(
                    [w[f"{block}.attention.{part}.{kind}"] for part in "qkv"]
                ),
                f"{block}.attn.proj.{kind}": w[f"{block}.attention.proj.{kind}"],
                f"{block}.norm2.{kind}": w[f"{block}.norm2.{kind}"],
                f"{block}.mlp.fc1.{kind}": w[f"{block}.mlp.0.{kind}"],
                f"{block}.mlp.fc2.{kind}": w[f"{block}.mlp.2.{kind}"],
            }
    return theirs


def equal(ours, theirs, scale=None):
    """The largest difference is at most 1e-9 of the largest value, or of `scale` if given."""
    scale = scale or theirs.abs().max().item()
    assert ours.shape == theirs.shape and scale > 1e-6
    assert (ours - theirs).abs().max() <= 1e-9 * scale


def compare(model, image, reference):
    """`model(image)` against `reference(weights, image)`: outputs and all gradients."""
    weights = leaves(model)
    images = image.clone().requires_grad_(), image.clone().requires_grad_()
    ours, theirs = model(images[0]), reference(weights, images[1])
    equal(ours, theirs)
    direction = torch.randn_like(theirs)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    equal(images[0].grad, images[1].grad)
    largest = max(weights[name].grad.abs().max().item() for name, _ in model.named_parameters())
    for name, weight in model.named_parameters():
        gradient = weights[name].grad
        nought = name.endswith("attention.k.bias")  # added to all keys, it changes no softmax
        assert (gradient.abs().max() < 1e-9 * largest) == nought, name
        equal(weight.grad, gradient, scale=largest if nought else None)


@each_patch
@pytest.mark.parametrize("size", SIZES)
def test_the_encoder_equals_timms_vit(size, patch):
    rows, columns = (-(-side // patch) for side in size)
    theirs = VisionTransformer(
        img_size=(rows * patch, columns * patch),
        patch_size=patch,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        class_token=False,
        global_pool="",
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        dynamic_img_size=True,
        dynamic_img_pad=True,
    ).double()

    def reference(weights, image):
        tokens = functional_call(theirs, timm_names(weights, rows, columns), image, strict=True)
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    compare(random_setr(patch).encoder, torch.rand(2, 3, *size, dtype=torch.float64), reference)


def normed(x, w, name, *, training):
    """ReLU of a batch norm, written out."""
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    x = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
    x = x * w[f"{name}.weight"].view(1, -1, 1, 1) + w[f"{name}.bias"].view(1, -1, 1, 1)
    return x.clamp(min=0)


# How often each step has enlarged the patches of this size in all: by 2, and the last by the rest.
ENLARGED = {16: (2, 4, 8, 16), 8: (2, 4, 8), 12: (2, 4, 8, 12), 5: (2, 4, 5)}


@each_patch
@pytest.mark.parametrize("training", (True, False))
def test_progressive_upsampling_equals_its_formula(patch, training):
    """Convolve and enlarge in turns, then classify the pixels, as the paper has it."""
    decoder = random_setr(patch).decoder.train(training)

    def reference(w, x):
        rows, columns = x.shape[2:]
        for i, times in enumerate(ENLARGED[patch]):
            x = F.conv2d(x, w[f"steps.{i}.0.weight"], padding=1)
            x = normed(x, w, f"steps.{i}.1", training=training)
            x = resize(x, times * rows, times * columns)
        return F.conv2d(x, w["classifier.weight"], w["classifier.bias"])

    compare(decoder, torch.randn(2, WIDTH, 4, 3, dtype=torch.float64), reference)


@each_patch
@pytest.mark.parametrize("training", (True, False))
def test_the_naive_decoder_equals_its_formula(patch, training):
    decoder = random_setr(patch, NaiveDecoder).decoder.train(training)

    def reference(w, x):
        rows, columns = x.shape[2:]
        x = torch.einsum("oi,bihw->bohw", w["conv.weight"][:, :, 0, 0], x)
        x = normed(x, w, "norm", training=training)
        x = torch.einsum("oi,bihw->bohw", w["classifier.weight"][:, :, 0, 0], x)
        return resize(x + w["classifier.bias"].view(1, -1, 1, 1), patch * rows, patch * columns)

    compare(decoder, torch.randn(2, WIDTH, 4, 3, dtype=torch.float64), reference)


@pytest.mark.parametrize("size", SIZES)
def test_the_logits_are_those_of_the_decoder_over_the_image(size):
    model = random_setr(8).eval()
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    logits = model.decoder(model.encoder(image))
    assert torch.equal(model(image), logits[:, :, : size[0], : size[1]])
