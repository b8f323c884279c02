"""ANF: an agent whose input layers alone are sparse."""

from typing import Any

import pytest
from small_agents import agent, fill, target_distance

from sparse_core import sparse_layers
from sparse_core.meters import layer_counts


def anf(**options: Any) -> Any:
    return agent(**{"sparsity": None, "input_sparsity": 0.8, "period": 2, "total_updates": 20, **options})


def test_first_layers_alone_are_sparse_to_the_connection() -> None:
    model = anf()
    # Reach has 3 observations and 2 actions; hidden layers are 16 wide.
    assert {name: layer.nnz for name, layer in sparse_layers(model.actor).items()} == {"mu.0": 48 - round(0.8 * 48)}
    critic = {name: layer.nnz for name, layer in sparse_layers(model.critic).items()}
    assert critic == {"qf0.0": 80 - 64, "qf1.0": 80 - 64}
    assert layer_counts(model.actor)["mu.2"].nnz == 256
    before = sparse_layers(model.critic)["qf0.0"].topology
    fill(model)
    for _ in range(8):
        model.train(1, 16)
        assert target_distance(model) == 0
    assert model.changes == 4
    after = sparse_layers(model.critic)["qf0.0"]
    assert (after.nnz, after.topology != before) == (16, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5}, "`input_sparsity` 0.8 leaves every other layer dense; leave `sparsity`"),
        ({"critic_sparsity": 0.5}, "leaves every other layer dense"),
        ({"topology": "gmp"}, "topology 'gmp' cannot keep an input layer sparse alone"),
        ({"topology": "dense"}, "topology 'dense' cannot keep an input layer sparse alone"),
        ({"input_sparsity": 1.0}, r"`sparsity` must be a number in \[0, 1\)"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anf(**options)
