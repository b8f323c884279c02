"""Backend `auto`: what multiplies fastest, by measurement, for each layer and batch size on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_core import csr
from sparse_core.backends import BACKENDS, Backend
from sparse_core.conv import SparseConv2d
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.measurements import Measurements, Seconds

logger = logging.getLogger(__name__)

AUTO = "auto"
LARGEST_SCRATCH = 256 << 20  # bytes of dense weight up to which `gemm` is a candidate
MEASURABLE = 1 << 16  # outputs that the passes which are timed can count
BUDGET = 0.01  # seconds of repetitions that settle a layer, where one repetition does not take longer
REPETITIONS = (7, 50)  # at least, at most
PATIENCE = 1.0  # seconds after which even the least repetitions are not waited for


def settle(model: nn.Module, batch_size: int, *, cache: Path | None = None) -> dict[str, str]:
    """Give every layer on backend `auto` the fastest one for this batch size and torch's present thread count.

    Called again, it does so too for layers that settled and have half or twice as many connections since: a method
    that starts dense and prunes leaves what was fastest. Nothing else changes a settled layer.
    What was measured before on this machine is not measured again, and no generator but its own is drawn from.

    Args:
        model: holds the sparse layers; those with another backend keep it.
        batch_size: of the forward passes to come.
        cache: folder of the measurements, by default one in the user's cache folder (see `SPARSE_AGENTS_CACHE`).

    Returns:
        The backend of every sparse layer by its name.
    """
    layers = sparse_layers(model)
    open_ones = {name: layer for name, layer in layers.items() if layer.backend == AUTO or _is_outgrown(layer)}
    if open_ones:
        measurements = Measurements(cache)
        for name, layer in open_ones.items():
            _settle(layer, batch_size, measurements, name or "the layer")
    return {name: layer.backend for name, layer in layers.items()}


def _is_outgrown(layer: SparseLinear) -> bool:
    return layer.settled_for is not None and not layer.settled_for / 2 < layer.nnz < layer.settled_for * 2


def candidates(layer: SparseLinear) -> list[str]:
    """Backends that can multiply this layer where it is; only where there are several is anything measured."""
    values = layer.values
    wide = layer.cells * values.element_size() > LARGEST_SCRATCH
    if isinstance(layer, SparseConv2d):  # the others' patches cost more than their products save
        return ["rows"] if wide else ["gemm"]
    compiled = values.device.type == "cpu" and values.dtype in csr.DTYPES and _compiler_loads()
    if wide:
        return ["csr"] if compiled else ["rows"]
    if layer.out_features > MEASURABLE:
        return ["csr"] if compiled else ["gemm"]
    return ["gemm", "csr"] if compiled else ["gemm"]


def case_of(layer: SparseLinear, batch_size: int) -> str:
    """All that a measurement depends on, besides machine and versions."""
    device, dtype = layer.values.device.type, str(layer.values.dtype).removeprefix("torch.")
    return (
        f"{layer.out_features}x{layer.in_features} nnz={layer.nnz} batch={batch_size} "
        f"threads={torch.get_num_threads()} device={device} dtype={dtype}"
    )


def measure(layer: SparseLinear, batch_size: int, names: Sequence[str]) -> Seconds:
    """Seconds of one training pass on each backend: the fastest of several, taken in turn.

    The fastest, since whatever else runs on the machine only ever adds to them, and what is found is kept.
    """
    generator = torch.Generator().manual_seed(0)
    x, dy = (
        torch.randn(features, batch_size, dtype=layer.values.dtype, generator=generator)
        for features in (layer.in_features, layer.out_features)
    )
    from sparse_core.trials import training_pass  # brings Numba along

    passes = {name: training_pass(layer, name, x, dy) for name in names}
    for run in passes.values():  # compiles, and brings everything into the caches
        run()
    times: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    least, most = REPETITIONS
    for repetition in range(1, most + 1):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        spent = time.perf_counter() - began
        if spent > BUDGET and (repetition >= least or spent > PATIENCE):
            break
    return {name: min(taken) for name, taken in times.items()}


def _settle(layer: SparseLinear, batch_size: int, measurements: Measurements, name: str) -> None:
    batch_size = max(1, batch_size)
    names, case = candidates(layer), case_of(layer, batch_size)
    backend, why = names[0], "the only one that can"
    if len(names) > 1:
        seconds = measurements.get(case)
        if seconds is None or set(seconds) != set(names):
            with torch.inference_mode(False), torch.no_grad():
                seconds = measure(layer, batch_size, names)
            measurements.add(case, seconds)
        backend = min(names, key=seconds.__getitem__)
        why = ", ".join(f"{each} {1e6 * seconds[each]:.0f} µs" for each in names)
    logger.info("%s (%s) multiplies with %s: %s", name, case, backend, why)
    layer.use_backend(backend)
    layer.settled_for = layer.nnz


def auto(inputs: Tensor, layer: Any) -> Tensor:
    """The fastest of the others, measured at the first forward pass for its batch size and kept from then on."""
    _settle(layer, inputs.numel() // layer.in_features, Measurements(), "a layer")
    return BACKENDS[layer.backend].product(inputs, layer)


def _compiler_loads() -> bool:
    try:
        csr.kernels()
    except (ImportError, OSError) as error:
        logger.info("without compiled kernels: Numba cannot be imported (%s)", error)
        return False
    return True


BACKENDS.add(AUTO, Backend(auto, lambda layer: {}))
