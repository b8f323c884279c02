"""Neural networks that are never dense: sparse layers, and rules that move their connections while they learn.

```python
model = sparsify(model, sparsity=0.9, distribution="erk")
optimizer = Adam(model.parameters(), lr=1e-3)
sparsifier = Sparsifier.preset("rigl", model, optimizer, total_steps=10_000)
...
loss.backward(); optimizer.step(); sparsifier.step()
```
"""

from sparse_core import methods  # noqa: F401  # registers every method; after what they are made of
from sparse_core.activations import AllReLU
from sparse_core.adam import Adam
from sparse_core.backends import BACKENDS
from sparse_core.birth import BIRTHS, birth
from sparse_core.conv import SparseConv2d
from sparse_core.correlated import Correlated
from sparse_core.courses import COURSES, course
from sparse_core.crossover import settle
from sparse_core.distributions import DISTRIBUTIONS, allocate, distribution
from sparse_core.draws import generators
from sparse_core.drop import DROP_RULES, drop_rule
from sparse_core.fixed_totals import density_of_epsilon, epsilon_of_density
from sparse_core.grow import GROW_RULES, grow_rule
from sparse_core.initial_topologies import INITIAL_TOPOLOGIES, initial_topology
from sparse_core.initialisation import INITIALISATIONS
from sparse_core.layers import SparseLinear, sparse_layers
from sparse_core.maskings import MASKINGS, Masking, masking
from sparse_core.mlp import SparseMLP
from sparse_core.optimizer_state import carry_state
from sparse_core.planning import Plan, plan
from sparse_core.presets import PRESETS, Preset
from sparse_core.redistribution import REDISTRIBUTIONS, redistribution
from sparse_core.registry import Registry
from sparse_core.schedules import SCHEDULES, Every
from sparse_core.small_world import SmallWorld, small_world
from sparse_core.sparsifier import Sparsifier
from sparse_core.sparsify import sparsify
from sparse_core.steps import STEP_RULES, StepRule
from sparse_core.topology import Rewiring, Topology
from sparse_core.topology_measures import (
    NetworkDistance,
    effective_gradient_flow,
    gradient_flow,
    in_time_overparameterisation,
    network_distance,
)
from sparse_core.unmasking import to_semi_structured, to_sparse
from sparse_core.view import Constraint, LayerView

__all__ = [
    "BACKENDS",
    "BIRTHS",
    "COURSES",
    "DISTRIBUTIONS",
    "DROP_RULES",
    "GROW_RULES",
    "INITIALISATIONS",
    "INITIAL_TOPOLOGIES",
    "MASKINGS",
    "PRESETS",
    "REDISTRIBUTIONS",
    "SCHEDULES",
    "STEP_RULES",
    "Adam",
    "AllReLU",
    "Constraint",
    "Correlated",
    "Every",
    "LayerView",
    "Masking",
    "NetworkDistance",
    "Plan",
    "Preset",
    "Registry",
    "Rewiring",
    "SmallWorld",
    "SparseConv2d",
    "SparseLinear",
    "SparseMLP",
    "Sparsifier",
    "StepRule",
    "Topology",
    "allocate",
    "birth",
    "carry_state",
    "course",
    "density_of_epsilon",
    "distribution",
    "drop_rule",
    "effective_gradient_flow",
    "epsilon_of_density",
    "generators",
    "gradient_flow",
    "grow_rule",
    "in_time_overparameterisation",
    "initial_topology",
    "masking",
    "network_distance",
    "plan",
    "redistribution",
    "settle",
    "small_world",
    "sparse_layers",
    "sparsify",
    "to_semi_structured",
    "to_sparse",
]
