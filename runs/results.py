"""`result.json`: what a finished run has to say for itself."""

from __future__ import annotations

from typing import Any

from agents import SparseAgent
from agents.costs import training_cost
from runs.input_records import real_features
from runs.recorder import Journal, bytes_in_training
from runs.scoring import FRESH_SEED, Score
from runs.settings import Settings
from runs.topology_courses import small_worlds
from runs.topology_records import degree_histograms, input_connections
from sparse_core import meters

FORMAT = "sparse-agents-result"


def result(
    model: SparseAgent, settings: Settings, journal: Journal, final: Score | None, measured: dict[str, Any]
) -> dict[str, Any]:
    """The result of a finished run; whatever two identical runs may differ in is under `measured`."""
    networks = {"actor": model.actor} | {f"critic.qf{index}": q for index, q in enumerate(model.critic.q_networks)}
    counts = {
        f"{name}.{layer}": count
        for name, network in networks.items()
        for layer, count in meters.layer_counts(network).items()
    }
    return {
        "format": FORMAT,
        "version": 1,
        "algo": settings.algo,
        "env": settings.env,
        "topology": settings.topology,
        "preset": settings.preset,
        "norm": settings.norm,
        "seed": settings.seed,
        "steps": settings.steps,
        "updates": model._n_updates,
        "topology_changes": model.changes,
        "sparsity_target": settings.sparsity,
        "sparsity": total_sparsity(model),
        "sparsity_by_network": {name: meters.sparsity(network) for name, network in networks.items()},
        "nnz": {name: count.nnz for name, count in counts.items()},
        "nnz_total": sum(count.nnz for count in counts.values()),
        "backends": model.backends,
        "eval": journal.last_score,
        "curve": journal.curve,
        "final": None if final is None else final.as_dict() | {"seed": FRESH_SEED, "returns": list(final.returns)},
        "dormant": journal.dormant,
        "topology_course": journal.course,
        "topology_distance": journal.distances,
        "gradient_flow": journal.gradient_flow,
        "small_world": small_worlds(model, settings.seed),
        "degrees": degree_histograms(model),
        "input_connections": input_connections(model),
        "real_features": real_features(model, settings.steps),
        "input_course": journal.inputs,
        "train_flops": training_cost(model, model._n_updates, settings.steps),
        "bytes": bytes_in_training(model, journal.peak_bytes),
        "measured": measured,
    }


def total_sparsity(model: SparseAgent) -> float:
    """1 - connections / connections possible, over actor and critics, targets not counted again."""
    counts = [*meters.layer_counts(model.actor).values(), *meters.layer_counts(model.critic).values()]
    return 1 - sum(count.nnz for count in counts) / sum(count.cells for count in counts)
