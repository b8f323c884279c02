"""`sparse-agents export`: a trained agent for tools that know nothing of sparsity."""

from __future__ import annotations

import math
from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor, nn

from agents import SparseAgent
from runs import algos
from runs.failure import UserError
from runs.files import write_atomically, writing
from runs.loading import load_agent
from runs.options import Export
from runs.settings import Settings
from sparse_core import SparseLinear, sparse_layers

DEFAULT_NAMES = {"dense-state-dict": "policy.safetensors", "sb3": "{algo}.zip", "onnx": "actor.onnx"}
OPSET = 17


def export(options: Export) -> int:
    """Write the file and say where it is."""
    model, settings, step = load_agent(options.directory, options.step)
    path = options.out or options.directory / "export" / DEFAULT_NAMES[options.to].format(algo=settings.algo)
    data = {"dense-state-dict": _state_dict_bytes, "sb3": _sb3_bytes, "onnx": _onnx_bytes}[options.to](model, settings)
    if options.out is None:
        with writing(path.parent):
            path.parent.mkdir(exist_ok=True)
    write_atomically(path, data)
    print(f"step {step} of {options.directory} as {options.to}: {path}")
    return 0


def dense_state_dict(model: SparseAgent) -> dict[str, Tensor]:
    """The policy's state under the names of Stable-Baselines3, zeros where there is no connection.

    With normalisation the names are those of SB3's `create_mlp` with `post_linear_modules=[nn.LayerNorm]`.
    """
    state: dict[str, Tensor] = {}
    below = tuple(f"{name}." for name in sparse_layers(model.policy))
    for name, module in model.policy.named_modules():
        if name.startswith(below):  # a masking, which `to_dense` has heard
            continue
        if isinstance(module, SparseLinear):
            dense = module.to_dense()
            state |= {f"{name}.{key}": tensor.detach() for key, tensor in dense.state_dict().items()}
        else:
            own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            state |= {f"{name}.{key}".removeprefix("."): tensor.detach() for key, tensor in own.items()}
    return state


def to_sb3(model: SparseAgent, settings: Settings) -> OffPolicyAlgorithm:
    """A plain agent of Stable-Baselines3 that acts as the sparse agent does; its optimizers start anew."""
    chosen = algos.find(settings.algo)
    if any(isinstance(module, nn.LayerNorm) for module in model.policy.modules()):
        name = chosen.plain.__name__
        raise UserError(
            f"export to SB3 needs networks that a plain stable_baselines3.{name} can make, and it makes none with "
            "layer normalisation; export the actor with `--to onnx`, or all weights with `--to dense-state-dict`"
        )
    environment: Any = model.get_env()
    plain = chosen.plain(
        "MlpPolicy", environment, learning_rate=settings.learning_rate, buffer_size=settings.batch_size,
        learning_starts=settings.learning_starts, batch_size=settings.batch_size, tau=settings.tau,
        gamma=settings.gamma,
        policy_kwargs=dict(net_arch=list(settings.hidden), optimizer_kwargs=dict(weight_decay=settings.weight_decay)),
        action_noise=model.action_noise,
        seed=settings.seed, device="cpu", **chosen.options(settings),
    )  # fmt: skip
    plain.policy.load_state_dict(dense_state_dict(model))
    for name in model._get_torch_save_params()[1]:  # SAC's entropy coefficient
        getattr(plain, name).data.copy_(getattr(model, name))
    plain.buffer_size = settings.buffer_size
    return plain


def _state_dict_bytes(model: SparseAgent, settings: Settings) -> bytes:
    from safetensors.torch import save

    state = {name: tensor.contiguous().clone() for name, tensor in dense_state_dict(model).items()}
    return save(state, metadata={"env": settings.env, "topology": settings.topology})


def _sb3_bytes(model: SparseAgent, settings: Settings) -> bytes:
    import io

    buffer = io.BytesIO()
    to_sb3(model, settings).save(buffer)
    return buffer.getvalue()


def _onnx_bytes(model: SparseAgent, settings: Settings) -> bytes:
    """The actor as ONNX: `observation` (batch, n) float32 to `action` (batch, m) in the environment's own units."""
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise UserError(
            "export to ONNX needs the package onnx; install it with `pip install 'sparse-agents[onnx]'`"
        ) from error
    space: Any = model.action_space
    low, high = torch.as_tensor(space.low).flatten(), torch.as_tensor(space.high).flatten()
    constants: dict[str, Tensor] = {"scale": (high - low) / 2, "centre": (high + low) / 2}
    nodes: list[Any] = []
    current = "observation"
    for index, module in enumerate(model.acting_modules):
        following = f"layer_{index}"
        if isinstance(module, (nn.Linear, SparseLinear)):
            dense = module.to_dense() if isinstance(module, SparseLinear) else module
            constants |= {f"{following}.weight": dense.weight.detach(), f"{following}.bias": dense.bias.detach()}
            inputs = [current, f"{following}.weight", f"{following}.bias"]
            nodes.append(helper.make_node("Gemm", inputs, [following], transB=1))
        elif isinstance(module, nn.LayerNorm):
            constants |= {f"{following}.scale": module.weight.detach(), f"{following}.shift": module.bias.detach()}
            inputs = [current, f"{following}.scale", f"{following}.shift"]
            nodes.append(helper.make_node("LayerNormalization", inputs, [following], axis=-1, epsilon=module.eps))
        elif isinstance(module, (nn.ReLU, nn.Tanh)):
            nodes.append(helper.make_node(type(module).__name__.replace("ReLU", "Relu"), [current], [following]))
        else:
            raise UserError(
                "export to ONNX knows linear layers, layer normalisation, ReLU and Tanh; this actor has a "
                f"{type(module).__name__}"
            )
        current = following
    nodes.append(helper.make_node("Mul", [current, "scale"], ["scaled"]))
    nodes.append(helper.make_node("Add", ["scaled", "centre"], ["action"]))
    size_in, size_out = math.prod(model.observation_space.shape or ()), low.numel()
    graph = helper.make_graph(
        nodes,
        "actor",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", size_in])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", size_out])],
        [numpy_helper.from_array(tensor.float().cpu().numpy(), name) for name, tensor in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sparse-agents")
    proto.ir_version = 8  # what opset 17 came with: a newer one would lock out older readers
    checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data
