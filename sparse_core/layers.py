"""Layers that own their connections: values and integer indices, no mask and no dense weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparse_core.backends import BACKENDS
from sparse_core.connectivity import Connectivity, assign
from sparse_core.distributions import check_sparsity
from sparse_core.initialisation import INITIALISATIONS
from sparse_core.signals import Capture, Pairs, matrix_gradient, matrix_gradient_at, observed
from sparse_core.topology import Topology


class SparseLinear(Connectivity):
    """A linear layer that stores only its connections; called like `nn.Linear`, batch first, any leading shape.

    `values` is a 1-D parameter, one entry per movable connection in the topology's order; indices are
    buffers. Frozen connections and biases are buffers too, so no optimizer can touch them.

    Args:
        in_features: inputs.
        out_features: outputs.
        bias: whether outputs have a bias (dense: one each).
        sparsity: share of connections left out, in [0, 1); the topology is drawn uniformly. Or give
        topology: the connectivity itself, of shape (out_features, in_features).
        init: a name from `INITIALISATIONS`: `"torch"`, or `"fan-in"` (scaled for the actual fan-in).
        generator: draws topology, then values, then biases; torch's global one by default.
        backend: what multiplies, a name from `BACKENDS`; `"auto"` measures at the first forward pass.
        device: of values and indices.
        dtype: of values and biases.
    """

    settled_for: int | None = None
    """How many weights it had when its backend was chosen by measurement; None if somebody named it."""
    _capture: Capture | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float | None = None,
        topology: Topology | None = None,
        init: str = "torch",
        generator: torch.Generator | None = None,
        backend: str = "gemm",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_up(
            (out_features, in_features), (), bias, sparsity=sparsity, topology=topology, init=init,
            generator=generator, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip

    def _set_up(
        self,
        shape: tuple[int, int],
        connection_shape: tuple[int, ...],
        bias: bool,
        *,
        sparsity: float | None,
        topology: Topology | None,
        init: str,
        generator: torch.Generator | None,
        backend: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make parameters and buffers for a topology of `shape` with values of `connection_shape` per connection."""
        out_features, in_features = shape
        if min(in_features, out_features) < 1:
            raise ValueError(f"a layer needs at least one input and one output, got {in_features} → {out_features}")
        scale = INITIALISATIONS[init]
        generator = torch.default_generator if generator is None else generator
        if (sparsity is None) == (topology is None):
            raise ValueError("give either `sparsity` or `topology`, not both and not neither")
        if sparsity is not None:
            nnz = round((1 - check_sparsity(sparsity)) * in_features * out_features)
            if nnz < 1:
                raise ValueError(
                    f"`sparsity` {sparsity} leaves no connection of {in_features}×{out_features}; lower it"
                )
            topology = Topology.random(shape, nnz, generator)
        assert topology is not None
        if topology.shape != shape:
            raise ValueError(f"`topology` must have shape {shape} (out, in), got {topology.shape}")
        self.in_features, self.out_features = in_features, out_features
        self.connection_shape = connection_shape
        self.masking = None
        self._derived: tuple[str, ...] = ()  # names of what the backend worked out
        self._bind(backend)
        bound = self.matrix_shape[1] ** -0.5
        dtype = dtype or torch.get_default_dtype()
        values = torch.empty(topology.nnz, *connection_shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
        self.values = nn.Parameter((values * self._spread(scale(topology)).to(dtype)).to(device))
        if bias:
            self.bias = nn.Parameter(
                torch.empty(out_features, dtype=dtype).uniform_(-bound, bound, generator=generator).to(device)
            )
        else:
            self.register_parameter("bias", None)
        empty = torch.empty(0, dtype=torch.int32, device=device)
        self.register_buffer("row_pointer", topology.row_pointer.to(device, copy=True))
        self.register_buffer("columns", topology.columns.to(device, copy=True))
        self.register_buffer("frozen", empty.clone())  # indices of frozen connections, topology order
        self.register_buffer("frozen_values", empty.to(dtype).new_empty(0, *connection_shape))
        self.register_buffer("frozen_bias", empty.clone())  # outputs whose bias is frozen
        self.register_buffer("frozen_bias_values", empty.to(dtype))
        self.register_buffer("bias_outputs", empty.long(), persistent=False)  # of movable biases, once some are frozen
        self._index()

    @classmethod
    def from_dense(
        cls, linear: nn.Linear, topology: Topology, *, init: str = "torch", backend: str = "gemm"
    ) -> SparseLinear:
        """The connections of a dense layer at `topology`, with its weights (scaled if `init` says so) and biases."""
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, topology=topology, backend=backend,
            generator=torch.Generator(), device=linear.weight.device, dtype=linear.weight.dtype,
        )  # fmt: skip
        layer._take_over(linear, topology, init)
        return layer

    @torch.no_grad()
    def _take_over(self, dense: nn.Linear | nn.Conv2d, topology: Topology, init: str) -> None:
        """Weights at the connections (scaled if `init` says so), biases, and whether they learn, of a dense layer."""
        scale = self._spread(INITIALISATIONS[init](topology).to(self.values))
        weights = dense.weight.reshape(-1, *self.connection_shape)
        self.values.copy_(weights[self.positions] * scale).requires_grad_(dense.weight.requires_grad)
        if self.bias is not None and dense.bias is not None:
            self.bias.copy_(dense.bias).requires_grad_(dense.bias.requires_grad)
        self.train(dense.training)

    def _spread(self, factors: Tensor) -> Tensor:
        """One number per connection (n,) in a shape that multiplies values."""
        return factors.view(-1, *(1 for _ in self.connection_shape))

    @property
    def multiplied(self) -> int:
        """Weights that take part in the forward pass: all that are present, but for a masking."""
        return self.nnz if self.masking is None else int(self.masking.kept.sum())

    @property
    def active_values(self) -> Tensor:
        """What is multiplied, as `values`: these, or what a masking makes of them."""
        return self.values if self.masking is None else self.masking(self.values)

    @property
    def strengths(self) -> Tensor:
        """One number per movable connection, (n,), for drop rules: its value, or the L2 norm of its several values."""
        return self.values if not self.connection_shape else self.values.detach().flatten(1).norm(dim=1)

    def per_connection(self, tensor: Tensor) -> Tensor:
        """A tensor (n, …) like `values`, summed to one number per connection, (n,)."""
        return tensor if tensor.dim() == 1 else tensor.flatten(1).sum(1)

    @property
    def capture(self) -> Capture | None:
        """Where inputs and output gradients go; None but for the last batches before a change."""
        return self._capture

    @capture.setter
    def capture(self, capture: Capture | None) -> None:
        if capture is not None:
            capture.rows_of, capture.entries_of = self._gradient_rows, self._gradient_at
        self._capture = capture

    def _gradient_rows(self, pairs: Pairs, start: int, stop: int) -> Tensor:
        """Rows start … stop-1 of the dense gradient that captured pairs give, (stop-start, in_features)."""
        return matrix_gradient(pairs, start, stop)

    def _gradient_at(self, pairs: Pairs, positions: Tensor, in_features: int) -> Tensor:
        """Entries of that gradient at flat positions, (k,)."""
        return matrix_gradient_at(pairs, positions, in_features)

    @property
    def active_topology(self) -> Topology:
        """A snapshot of where weights multiply: the topology, but for a masking."""
        if self.masking is None:
            return self.topology
        return Topology.from_positions(self.shape, self.masking.kept.nonzero().squeeze(1).cpu())

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (…, in_features) to outputs (…, out_features)."""
        if inputs.shape[-1] != self.in_features:
            raise ValueError(f"inputs must have {self.in_features} features last, got shape {tuple(inputs.shape)}")
        outputs = self._multiply(inputs)
        if self.capture is None:
            return outputs
        return observed(outputs, inputs.reshape(-1, self.in_features), self.capture, self.values.dtype)

    def _multiply(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and not self._traceable:
            from sparse_core.opaque import call  # imports torch's compiler, which takes two seconds

            return call(self._product, inputs, self)
        return self._product(inputs, self)

    def use_backend(self, backend: str) -> None:
        """Let another backend multiply from now on; connections, values and gradients stay as they are."""
        BACKENDS[backend]  # an unknown name changes nothing
        self.settled_for = None
        if backend == self.backend:
            return
        for name in self._derived:
            delattr(self, name)
        self._bind(backend)
        with torch.inference_mode(False), torch.no_grad():  # its buffers must serve training, wherever they are made
            self._index()

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """A dense `nn.Linear` copy with zeros where there is no connection; draws nothing."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.values.dtype
        ).to_empty(device=self.values.device)
        self._hand_over(linear)
        return linear

    def _hand_over(self, dense: nn.Linear | nn.Conv2d) -> None:
        """Write weights, zeros where there is no connection, and biases into a dense layer."""
        weights = dense.weight.zero_().view(-1, *self.connection_shape)
        weights[self.positions] = self.active_values
        weights[self.frozen_positions] = self.frozen_values
        bias = self.effective_bias()
        if bias is not None and dense.bias is not None:
            dense.bias.copy_(bias)

    def _index(self) -> None:
        """Rebuild what follows from the persistent indices, so that a forward pass need not."""
        derived = BACKENDS[self.backend].index(self)
        self._derived = tuple(derived)
        self.derive(derived)
        assign(self, "bias_outputs", self._movable_biases() if self.frozen_bias.numel() else self.frozen_bias.long())

    def derive(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a backend has worked out from the indices; no checkpoint holds it.

        Plain attributes: what goes over the buffers of two models side by side, as averages of weights do, would
        stumble over those of which only one has been used.
        """
        for name, tensor in tensors.items():
            if not hasattr(self, name):
                setattr(self, name, tensor[:0].to(self.columns.device, copy=True))
            assign(self, name, tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._derived:
            if name in vars(self):  # a buffer in a layer that was pickled when they were some
                setattr(self, name, fn(getattr(self, name)))
        return self

    @property
    def derived(self) -> dict[str, Tensor]:
        """What the backend has worked out from the indices, by name."""
        return {name: getattr(self, name) for name in self._derived}

    def _bind(self, backend: str) -> None:
        self._product: Callable[[Tensor, SparseLinear], Tensor] = BACKENDS[backend].product
        self._traceable = BACKENDS[backend].traceable
        self.backend = backend
        # Counts how often derived buffers were made anew: whoever keeps their addresses looks here.
        self.generation = vars(self).get("generation", 0) + 1

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"a {type(self).__name__} has no dense `weight`; read `values`, or make a copy with `to_dense()`"
            )
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_product": None, "_capture": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "masking" not in self._modules:
            self.masking = None  # of a layer that was pickled before there were any
        self._bind(self.backend)

    def extra_repr(self) -> str:
        """Sizes, exact count, sparsity and backend."""
        frozen = f", frozen={self.frozen.numel()}" if self.frozen.numel() else ""
        frozen += f", multiplied={self.multiplied}" if self.masking is not None else ""
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"nnz={self.nnz}, sparsity={self.sparsity:.4f}{frozen}, backend={self.backend}"
        )


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Every sparse layer of a model by its name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def learning(layers: Mapping[str, SparseLinear]) -> dict[str, SparseLinear]:
    """Those whose values learn: in others no gradient would ever reach a connection that came."""
    return {name: layer for name, layer in layers.items() if layer.values.requires_grad}
