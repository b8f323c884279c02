"""Batch normalisation that tasks can own: frozen neurons keep statistics, scale and shift to the bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NORMS = ("none", "batch")


class TaskNorm(nn.Module):
    """Batch normalisation of (B, neurons) or (B, neurons, H, W), neuron by neuron frozen or not.

    Neurons that are not frozen behave as in `nn.BatchNorm1d`. Frozen ones use what was stored when they
    were frozen, in training too, and nothing an optimizer does can reach it.

    Args:
        neurons: or channels.
        momentum: share of a batch's statistics in the running ones.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    frozen: Tensor
    frozen_weight: Tensor
    frozen_bias: Tensor

    def __init__(self, neurons: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(neurons))
        self.bias = nn.Parameter(torch.zeros(neurons))
        self.register_buffer("running_mean", torch.zeros(neurons))
        self.register_buffer("running_var", torch.ones(neurons))
        self.register_buffer("frozen", torch.zeros(neurons, dtype=torch.bool))
        self.register_buffer("frozen_weight", torch.ones(neurons))
        self.register_buffer("frozen_bias", torch.zeros(neurons))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised by the batch where the module trains and the neuron is not frozen, else by what is stored."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            across = [axis for axis in range(x.dim()) if axis != 1]
            batch_variance, batch_mean = torch.var_mean(x, across, correction=0)
            self._run(batch_mean.detach(), batch_variance.detach(), x.numel() // x.shape[1])
            mean = torch.where(self.frozen, mean, batch_mean)
            variance = torch.where(self.frozen, variance, batch_variance)
        scale = torch.where(self.frozen, self.frozen_weight, self.weight) * (variance + self.eps).rsqrt()
        shift = torch.where(self.frozen, self.frozen_bias, self.bias) - mean * scale
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * scale.view(shape) + shift.view(shape)

    @torch.no_grad()
    def _run(self, mean: Tensor, variance: Tensor, samples: int) -> None:
        unbiased = variance * (samples / max(samples - 1, 1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.copy_(torch.where(self.frozen, running, running.lerp(now, self.momentum)))

    @torch.no_grad()
    def freeze(self, neurons: Tensor) -> None:
        """Keep what these neurons have now, for good; those frozen earlier stay as they are."""
        new = torch.zeros_like(self.frozen)
        new[neurons] = True
        new &= ~self.frozen
        self.frozen_weight.copy_(torch.where(new, self.weight, self.frozen_weight))
        self.frozen_bias.copy_(torch.where(new, self.bias, self.frozen_bias))
        self.frozen |= new

    @torch.no_grad()
    def begin(self) -> None:
        """Start anew, nothing frozen: what a task with statistics of its own begins with."""
        self.frozen.zero_()
        for tensor, value in ((self.weight, 1), (self.running_var, 1), (self.bias, 0), (self.running_mean, 0)):
            tensor.fill_(value)

    def content(self) -> dict[str, Tensor]:
        """What evaluation reads, copied: scale, shift and statistics of every neuron."""
        return {
            "weight": torch.where(self.frozen, self.frozen_weight, self.weight).detach().clone(),
            "bias": torch.where(self.frozen, self.frozen_bias, self.bias).detach().clone(),
            "running_mean": self.running_mean.clone(),
            "running_var": self.running_var.clone(),
        }

    @torch.no_grad()
    def restore(self, content: dict[str, Tensor]) -> None:
        """Take over what `content` gave, nothing frozen."""
        self.frozen.zero_()
        for name, tensor in content.items():
            getattr(self, name).copy_(tensor)
