"""GRN as the paper writes it."""

import torch


def grn_formula(x, weight, bias):
    """Algorithm 1 of the paper in float64, `x (N, H, W, C)`."""
    x = x.double()
    energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    share = energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)
    return weight.double() * (x * share) + bias.double() + x
