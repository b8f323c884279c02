"""Calibration, where slopes and norms are known."""

import pytest
import torch

from continual.calibration import calibrate
from continual.networks import Connections, SubspaceNetwork, connect


def line(first: list[float], second: list[list[float]]) -> SubspaceNetwork:
    """Two inputs, as many hidden neurons reading one each, and dense outputs; hidden neurons are open."""
    network = SubspaceNetwork(2, (2,), len(second), dtype=torch.float64)
    nothing = Connections(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    one, two = network.chain.values()
    connect(one, nothing, Connections(torch.tensor([0, 3]), torch.tensor(first).double()), torch.zeros(2).double())
    values = torch.tensor(second).double().flatten()
    connect(two, nothing, Connections(torch.arange(len(values)), values), torch.zeros(len(second)).double())
    return network


def test_by_hand() -> None:
    # Where both inputs are positive, logit u is 2·w[u,0]·x0 + 0.5·w[u,1]·x1.
    network = line([2.0, 0.5], [[3.0, 4.0], [1.0, 0.0], [5.0, 5.0]])
    x, y = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 2.0]]), torch.tensor([7, 7, 4])
    calibrate(network, x, y, torch.tensor([0, 1]), torch.tensor([7, 4]))
    *_, last = network.chain.values()
    first = (2 * 3.0) ** 2 + (0.5 * 4.0) ** 2  # the slope, squared
    factors = (first**0.5 * 5) ** -0.5, (2.0 * 1) ** -0.5
    expected = [3 * factors[0], 4 * factors[0], 1 * factors[1], 0.0, 5.0, 5.0]  # unit 2 is of no class of the task
    assert last.values.tolist() == pytest.approx(expected)


def test_slopes_are_means_over_the_classes_own_samples() -> None:
    network = line([1.0, 1.0], [[3.0, 4.0]])
    # The first sample sees both neurons, the second only one of them, the third is of another class.
    x, y = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]]), torch.tensor([0, 0, 1])
    calibrate(network, x, y, torch.tensor([0]), torch.tensor([0]))
    *_, last = network.chain.values()
    factor = ((5.0 + 4.0) / 2 * 5) ** -0.5
    assert last.values.tolist() == pytest.approx([3 * factor, 4 * factor])


def test_afterwards_the_scale_of_a_unit_is_nothing() -> None:
    x, y = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(50).long()
    values = []
    for scale in (1.0, 10.0):
        network = line([1.0, 0.3], [[0.2 * scale, 0.1 * scale]])
        calibrate(network, x, y, torch.tensor([0]), torch.tensor([0]))
        values.append(list(network.chain.values())[-1].values.tolist())
    assert values[0] == pytest.approx(values[1])


def test_a_unit_that_answers_to_nothing_is_left_alone() -> None:
    network = line([1.0, 1.0], [[3.0, 4.0]])
    calibrate(network, -torch.ones(4, 2), torch.zeros(4).long(), torch.tensor([0]), torch.tensor([0]))
    assert list(network.chain.values())[-1].values.tolist() == [3.0, 4.0]
    assert all(parameter.grad is None for parameter in network.parameters())
