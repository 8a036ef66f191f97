"""SegFormer against `transformers`: B0 and B2 with equal weights, logits and all gradients.

The reference is built from the paper's numbers below, not from ours. Its layer norms have one eps
throughout; the authors' code has 1e-6 in blocks and at the end of a stage, and so has ours.
"""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from networks import randomise
from safetensors.torch import load_file
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segcourse.models.segformer import DropPath, SegFormer, from_transformers

CLASSES = 4
SIZES = ((64, 64), (97, 131), (33, 161), (128, 96))
SETTINGS = {
    "b0": dict(hidden_sizes=(32, 64, 160, 256), depths=(2, 2, 2, 2), decoder_hidden_size=256),
    "b2": dict(hidden_sizes=(64, 128, 320, 512), depths=(3, 4, 6, 3), decoder_hidden_size=768),
}

each_size = pytest.mark.parametrize("size", SIZES)


def their_segformer(variant, **rates):
    """The network of `transformers`, with the authors' eps."""
    config = SegformerConfig(num_labels=CLASSES, **SETTINGS[variant], **rates)
    model = SegformerForSemanticSegmentation(config)
    for name, layer in model.named_modules():
        embedding_or_reduction = "patch_embeddings" in name or "sequence_reduction" in name
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-5 if embedding_or_reduction else 1e-6
    return model


@cache
def pair(variant):
    """Ours and theirs in float64 with equal weights and statistics, none left as it starts."""
    torch.manual_seed(0)
    theirs = their_segformer(variant, drop_path_rate=0, classifier_dropout_prob=0).double()
    randomise(theirs, 0.1)
    ours = SegFormer.from_variant(variant, CLASSES).double()
    ours.load_transformers(theirs.state_dict())
    for layer in ours.modules():  # nothing is dropped at random on either side
        if isinstance(layer, DropPath):
            layer.rate = 0
        elif isinstance(layer, nn.Dropout2d):
            layer.p = 0
    return ours.eval(), theirs.eval()


def equal(ours, theirs, scale=None):
    """The largest difference is at most 1e-9 of the largest value, or of `scale` if given."""
    scale = scale or theirs.abs().max().item()
    assert ours.shape == theirs.shape and scale > 1e-6
    assert (ours - theirs).abs().max() <= 1e-9 * scale


def compare(ours, theirs, size, batch):
    image = torch.rand(batch, 3, *size, dtype=torch.float64)
    images = image.clone().requires_grad_(), image.clone().requires_grad_()
    logits = ours(images[0])
    expected = F.interpolate(theirs(images[1]).logits, size, mode="bilinear", align_corners=False)
    equal(logits, expected)

    direction = torch.randn_like(expected)
    for model, output in ((ours, logits), (theirs, expected)):
        model.zero_grad()
        (output * direction).sum().backward()
    equal(images[0].grad, images[1].grad)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    gradients = from_transformers(gradients, stages=4)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, weight in ours.named_parameters():
        gradient = gradients.pop(name)
        nought = is_nought(name, ours.training)
        assert (gradient.abs().max() < 1e-9 * largest) == nought, name
        equal(weight.grad, gradient, scale=largest if nought else None)
    assert not gradients


def is_nought(name, training):
    """Whether the gradient of a weight is 0 but for rounding.

    A number that is added to all keys changes no softmax. One that is added to a channel at all
    pixels of a batch changes nothing after the batch norm.
    """
    before_norm = name.startswith("head.linear") or name == "encoder.stages.3.norm.bias"
    return name.endswith("attention.k.bias") or (
        training and before_norm and name.endswith("bias")
    )


@each_size
@pytest.mark.parametrize("variant", SETTINGS)
def test_segformer_equals_that_of_transformers(variant, size):
    compare(*pair(variant), size, batch=1)


@each_size
def test_it_trains_alike(size):
    """With the statistics of the batch, and the same running statistics after."""
    ours, theirs = copy.deepcopy(pair("b0"))
    compare(ours.train(), theirs.train(), size, batch=2)
    after = from_transformers(theirs.state_dict(), stages=4)
    for name in ("head.norm.running_mean", "head.norm.running_var"):
        equal(ours.state_dict()[name], after[name])


def test_attention_maps_equal_those_of_transformers():
    ours, theirs = copy.deepcopy(pair("b0"))
    theirs.set_attn_implementation("eager")
    image = torch.rand(1, 3, 97, 131, dtype=torch.float64)
    maps = ours.attention(image)
    expected = theirs(image, output_attentions=True).attentions
    assert len(maps) == len(expected) == 8
    for our, their in zip(maps, expected, strict=True):  # their softmax is in float32
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


def test_files_have_other_names_and_load_too(tmp_path):
    """`save_pretrained` writes the names that published files have."""
    torch.manual_seed(0)
    theirs = their_segformer("b0")
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert "segformer.encoder.block.0.1.attention.self.sr.weight" in state
    from_file, from_model = (SegFormer.from_variant("b0", CLASSES) for _ in range(2))
    from_file.load_transformers(state)
    from_model.load_transformers(theirs.state_dict())
    for name, value in from_model.state_dict().items():
        assert torch.equal(value, from_file.state_dict()[name]), name


def test_the_state_of_another_variant_is_refused():
    with pytest.raises(ValueError, match="of another shape: encoder.stages.0.patch_embedding"):
        SegFormer.from_variant("b1", CLASSES).load_transformers(pair("b0")[1].state_dict())
    with pytest.raises(ValueError, match=r"foreign: encoder\.stages\.0\.blocks\.2\.norm1.* more"):
        SegFormer.from_variant("b1", CLASSES).load_transformers(pair("b2")[1].state_dict())


def test_in_float32_the_logits_agree_too():
    ours, theirs = (model.float() for model in copy.deepcopy(pair("b0")))
    image = torch.rand(2, 3, 97, 131)
    expected = F.interpolate(theirs(image).logits, (97, 131), mode="bilinear", align_corners=False)
    assert (ours(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
