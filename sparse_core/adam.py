"""Adam whose bias correction knows the age of every connection."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_core.topology import Rewiring


class Adam(Optimizer):
    """Adam with per-connection age: a connection born late takes the first steps a new parameter would.

    Plain Adam corrects its bias by one step count per tensor. A connection grown late has empty moments
    but that old count, so its first step is (1-β₁)/√(1-β₂) ≈ 3.2 times too large. Here each entry of a
    rewired parameter has its own count (Adam: Kingma & Ba 2015, arXiv:1412.6980; ages: SMET, arXiv:2606.00888).
    Until a parameter is rewired for the first time its entries share one age.

    Args:
        params: parameters or groups.
        lr: step size.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: L2 coefficient.
        decoupled: False adds the decay to the gradient (Adam's L2), True shrinks the weights (AdamW, arXiv:1711.05101).
        warmup: steps of its own age over which an entry's learning rate rises from zero to `lr` (SMET); 0: none.
        ages: whether entries have ages of their own; False is plain Adam, with one age a tensor.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        warmup: int = 0,
        ages: bool = True,
    ) -> None:
        for name, value in {"lr": lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"`{name}` must be a finite number ≥ 0, got {value!r}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"`betas` must both be in [0, 1), got {betas!r}")
        if not (isinstance(warmup, int) and warmup >= 0):
            raise ValueError(f"`warmup` must be a whole number of steps ≥ 0, got {warmup!r}")
        super().__init__(
            params,
            dict(
                lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled=decoupled, warmup=warmup, ages=ages
            ),
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient; each operation runs over a whole group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state_of(parameter) for parameter in parameters]
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        first, second, ages = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "age"))
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        if decay and group["decoupled"]:
            torch._foreach_mul_(parameters, 1 - lr * decay)
        elif decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_add_(ages, 1)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        times = [age.to(parameter.dtype) for age, parameter in zip(ages, parameters, strict=True)]
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, torch._foreach_sqrt(_unbias(times, beta2)))
        torch._foreach_add_(denominators, group["eps"])
        steps = torch._foreach_div(first, denominators)
        torch._foreach_div_(steps, _unbias(times, beta1))
        if group.get("warmup", 0):
            torch._foreach_mul_(steps, [(time / group["warmup"]).clamp_(max=1) for time in times])
        torch._foreach_add_(parameters, steps, alpha=-lr)

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's moments and age, new ones at its first step."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["age"] = torch.zeros((), dtype=torch.int32, device=parameter.device)
        return state

    def carry(self, parameter: Tensor, rewiring: Rewiring) -> None:
        """Give every entry an age of its own before `parameter`'s state follows `rewiring`, unless `ages` is False."""
        state = self.state.get(parameter)
        group = next(group for group in self.param_groups if any(parameter is each for each in group["params"]))
        if state and state["age"].dim() == 0 and group.get("ages", True):
            state["age"] = state["age"].expand(rewiring.before.numel(), *parameter.shape[1:]).clone()

    # As torch's, without what hides them from torch's compiler by importing it, which takes two seconds.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; ages come back as the integers they were (torch casts state to the parameter's dtype).

        State of torch's own Adam or AdamW is taken over: its step count is every entry's age.
        """
        before = [dict(group) for group in self.param_groups]  # torch's own groups know no `decoupled`
        inspect.unwrap(Optimizer.load_state_dict)(self, state_dict)
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for key, parameter in zip(saved, own, strict=True):
            given = state_dict["state"].get(key)
            if given:
                if not {"exp_avg", "exp_avg_sq"} <= given.keys() or not {"age", "step"} & given.keys():
                    raise ValueError(f"this is not the state of an Adam: it holds {sorted(given)}; load that of one")
                age = torch.as_tensor(given["age"] if "age" in given else given["step"])
                kept = {name: self.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {**kept, "age": age.to(parameter.device, torch.int32, copy=True)}
        for group, options in zip(self.param_groups, before, strict=True):
            group.update({name: value for name, value in options.items() if name not in group})


def _unbias(times: list[Tensor], beta: float) -> list[Tensor]:
    """1 - βᵗ for each age, exact for small 1 - β."""
    if beta == 0:
        return [torch.ones_like(time) for time in times]
    powers = torch._foreach_mul(times, math.log(beta))
    torch._foreach_expm1_(powers)
    torch._foreach_neg_(powers)
    return list(powers)
