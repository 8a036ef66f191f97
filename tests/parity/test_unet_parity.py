"""U-Net against MONAI's BasicUNet, Attention U-Net against the formula written out.

BasicUNet enlarges as ours does, odd sizes included, but its last level does not halve the
channels; MONAI's own block that does takes its place. MONAI's AttentionUnet has another gate, so
the reference for ours is the functional code below.
"""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.basic_unet import BasicUNet, UpCat
from networks import randomise
from parity.same import equal, same_outputs_and_gradients

from segcourse.models.unet import AttentionUNet, UNet

CLASSES = 4
FEATURES = (2, 4, 8, 16, 32)
SIZES = ((64, 64), (97, 131), (33, 47), (16, 63))

each_size = pytest.mark.parametrize("size", SIZES)
each_mode = pytest.mark.parametrize("training", (True, False))


def monai_unet(features):
    """BasicUNet with the layers of ours: no bias before a norm, batch norm, ReLU in place."""
    block = dict(act=("relu", {"inplace": True}), norm=("batch", {"affine": True}), bias=False)
    fine, coarse = features[:2]
    model = BasicUNet(2, 3, CLASSES, (*features, fine), **block)
    model.upcat_1 = UpCat(2, coarse, fine, fine, halves=True, **block)
    return model


def counterpart(model):
    """MONAI's network with the weights and statistics of `model`: both hold them in one order.

    Ours lists the ways down and up level by level from the finest; MONAI lists the way up from
    the coarsest, each up-convolution beside its block.
    """
    ours = model.state_dict()
    names = [n for level in range(5) for n in ours if n.startswith(f"encoder.{level}.")]
    for level in reversed(range(4)):
        names += [n for n in ours if n.startswith(f"up.{level}.")]
        names += [n for n in ours if n.startswith(f"decoder.{level}.")]
    names += [n for n in ours if n.startswith("head.")]
    theirs = monai_unet(FEATURES).double()
    pairs = dict(zip(theirs.state_dict(), names, strict=True))
    theirs.load_state_dict({their: ours[our] for their, our in pairs.items()})
    return theirs, pairs


@each_size
@each_mode
def test_unet_equals_monais_with_equal_layers(size, training):
    torch.manual_seed(0)
    model = UNet(3, CLASSES, FEATURES).double()
    randomise(model)
    other, pairs = counterpart(model)
    same_outputs_and_gradients(model, other, pairs, size, training)


def reference_gate(w, i, skip, gating):
    """alpha of gate i, with slices and sums in place of convolutions and interpolation."""
    rows, columns = gating.shape[2:]
    corners = [skip[:, :, r : 2 * rows : 2, c : 2 * columns : 2] for r in (0, 1) for c in (0, 1)]
    kernels = w[f"gate.{i}.theta.weight"].flatten(2).unbind(2)
    q = sum(
        torch.einsum("oi,bihw->bohw", kernel, corner)
        for kernel, corner in zip(kernels, corners, strict=True)
    )
    phi = w[f"gate.{i}.phi.weight"][:, :, 0, 0]
    q = q + torch.einsum("oi,bihw->bohw", phi, gating) + w[f"gate.{i}.phi.bias"].view(1, -1, 1, 1)
    psi = w[f"gate.{i}.psi.weight"][:, :, 0, 0]
    q = torch.einsum("oi,bihw->bohw", psi, q.clamp(min=0)) + w[f"gate.{i}.psi.bias"]
    alpha = 1 / (1 + torch.exp(-q))
    for dim, goal in ((2, skip.shape[2]), (3, skip.shape[3])):
        side = alpha.shape[dim]
        # Pixel centres: fine pixel f lies at (f - 1/2) / 2 on the coarse grid, held to its ends.
        places = (torch.arange(2 * side, dtype=torch.float64) - 0.5).div(2).clamp(0, side - 1)
        low = places.floor().long()
        high, share = (low + 1).clamp(max=side - 1), places - low
        share = share.view(-1, 1) if dim == 2 else share
        alpha = alpha.index_select(dim, low) * (1 - share) + alpha.index_select(dim, high) * share
        alpha = alpha.index_select(dim, torch.arange(goal).clamp(max=2 * side - 1))
    return alpha


def reference_attention_unet(w, image):
    """Logits and attention maps of three levels from the weights `w`, a dict by name."""

    def block(name, x):
        for i in (1, 2):
            x = F.conv2d(x, w[f"{name}.conv{i}.weight"], padding=1)
            scale, shift = w[f"{name}.norm{i}.weight"], w[f"{name}.norm{i}.bias"]
            mean, var = w[f"{name}.norm{i}.running_mean"], w[f"{name}.norm{i}.running_var"]
            x = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
            x = (x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).clamp(min=0)
        return x

    def up(level, x, height, width):
        x = F.conv_transpose2d(x, w[f"up.{level}.weight"], w[f"up.{level}.bias"], stride=2)
        rows = torch.arange(height).clamp(max=x.shape[2] - 1)
        columns = torch.arange(width).clamp(max=x.shape[3] - 1)
        return x[:, :, rows][:, :, :, columns]

    down = [block("encoder.0", image)]
    for level in (1, 2, 3):
        down.append(block(f"encoder.{level}", F.max_pool2d(down[-1], 2)))
    x, alphas = down[3], []
    for level in (2, 1, 0):
        skip = down[level]
        if level > 0:
            alphas.append(reference_gate(w, level - 1, skip, x))
            skip = skip * alphas[-1]
        x = block(f"decoder.{level}", torch.cat([skip, up(level, x, *skip.shape[2:])], dim=1))
    return F.conv2d(x, w["head.weight"], w["head.bias"]), alphas[::-1]


@each_size
def test_attention_unet_equals_its_formula(size):
    torch.manual_seed(0)
    model = AttentionUNet(3, CLASSES, (2, 3, 5, 7)).double().eval()
    randomise(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name, _ in model.named_parameters():
        weights[name].requires_grad_()
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    ours = model(image)
    theirs, alphas = reference_attention_unet(weights, image)
    direction = torch.randn_like(theirs)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()

    equal(ours, theirs)
    for our, their in zip(model.attention(image), alphas, strict=True):
        assert their.std() > 1e-3
        equal(our, their)
    for name, weight in model.named_parameters():
        equal(weight.grad, weights[name].grad)
