"""What tests of networks share: weights that are not as they start, and images of any size."""

import torch


def randomise(model, amount=0.3):
    """Let no weight, bias or statistic stay as it starts; `amount` is the spread of the change."""
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value += torch.rand_like(value)
        elif value.is_floating_point():
            value += amount * torch.randn_like(value)
    return model


def image_of(height, width, channels=3):
    """Two images in float64, the same ones for the same size."""
    generator = torch.Generator().manual_seed(height + width)
    return torch.rand(2, channels, height, width, generator=generator, dtype=torch.float64)
