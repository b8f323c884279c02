"""Which networks compiled passes can compute: perceptrons of linear layers, sparse or dense, and ReLU between them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparse_core import csr
from sparse_core.layers import SparseLinear
from sparse_core.normalisation import EPSILON

Linear = SparseLinear | nn.Linear


@dataclass(frozen=True)
class Perceptron:
    """What a network of linear, ReLU, linear, …, linear is made of."""

    layers: list[Linear]
    norms: list[nn.LayerNorm | None]
    """After each layer: its normalisation, if there is one between it and its ReLU."""
    closed: bool
    """Whether Tanh comes last."""


def perceptron(network: nn.Module) -> Perceptron | None:
    """The parts of linear, (LayerNorm,) ReLU, linear, …, linear, and Tanh or not; None for any other network.

    A `SparseConv2d` is none of these layers, though it is a `SparseLinear`: types are compared exactly.
    """
    modules: list[nn.Module] = list(network) if isinstance(network, nn.Sequential) else []
    closed = bool(modules) and type(modules[-1]) is nn.Tanh
    modules = modules[: len(modules) - closed]
    found = Perceptron([], [], closed)
    while modules:
        layer = modules.pop(0)
        if not isinstance(layer, Linear) or type(layer) not in (SparseLinear, nn.Linear):
            return None
        norm = modules.pop(0) if modules and type(modules[0]) is nn.LayerNorm else None
        found.layers.append(layer)
        found.norms.append(norm if isinstance(norm, nn.LayerNorm) else None)
        if not modules and norm is None:
            return found
        if not modules or type(modules.pop(0)) is not nn.ReLU:
            return None
    return None  # nothing, or a ReLU comes last


def fusible(*networks: nn.Module) -> bool:
    """Whether `FusedNetworks` can compute these together."""
    found = [one for network in networks if (one := perceptron(network))]
    if len(found) < len(networks) or len({len(one.layers) for one in found}) > 1:
        return False
    depth = [list(layers) for layers in zip(*(one.layers for one in found), strict=True)]
    tensors = [tensor for network in networks for tensor in network.parameters()]
    return (
        {tensor.device.type for tensor in tensors} == {"cpu"}
        and len({tensor.dtype for tensor in tensors}) == 1
        and tensors[0].dtype in csr.DTYPES
        and all(tensor.requires_grad and tensor.is_contiguous() for tensor in tensors)
        and all(len({_kind(layer) for layer in layers}) == 1 for layers in depth)
        and all(len({(layer.out_features, layer.in_features) for layer in layers}) == 1 for layers in depth)
        and all(_kind(layer) != "other" for layers in depth for layer in layers)
        and all(len({norm is None for norm in norms}) == 1 for norms in zip(*(one.norms for one in found), strict=True))
        and all(_normalises(*pair) for one in found for pair in zip(one.norms, one.layers, strict=True))
        and not any(is_hooked(network) for network in networks)
    )


def is_hooked(network: nn.Module) -> bool:
    """Whether somebody has a say in what modules compute or what gradients become."""
    modules, parameters = list(network.modules()), list(network.parameters())
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return (
        any(getattr(module, name) for module in modules for name in hooks)
        or any("forward" in vars(module) for module in modules)
        or any(parameter._backward_hooks for parameter in parameters)
        or any(getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in parameters)
    )


def _kind(layer: Linear) -> str:
    if isinstance(layer, nn.Linear):
        return "dense" if {"weight", "bias"} <= layer._parameters.keys() and layer.bias is not None else "other"
    odd = bool(layer.frozen.numel() or layer.frozen_bias.numel()) or layer.masking is not None or layer.bias is None
    wide = layer.out_features > csr.WIDEST
    return "other" if odd or wide or layer.backend not in ("csr", "gemm") else layer.backend


def _normalises(norm: nn.LayerNorm | None, layer: Linear) -> bool:
    """Whether there is nothing between layer and ReLU, or torch's own normalisation of all outputs."""
    return norm is None or (
        norm.normalized_shape == (layer.out_features,)
        and norm.eps == EPSILON
        and all(norm._parameters.get(name) is not None for name in ("weight", "bias"))
    )
