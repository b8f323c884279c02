"""What a run says about its topology."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import assert_equal_runs, flags, main, metrics_of, result_of, train

import envs
from agents import SparseTD3
from agents.costs import training_memory
from runs.building import build
from runs.checkpoints import CheckpointStore
from runs.given_topology import FILE, read_topologies, topologies, write_topologies
from runs.global_draws import generator_states
from runs.loading import load_agent, read_config
from runs.recorder import Journal
from runs.snapshot import pack, unpack
from runs.topology_courses import by_network, distances, flow_of_networks, gradient_flows, small_worlds
from runs.topology_measures import MOST, WIDEST, distance, small_worldness
from runs.topology_records import (
    degree_histograms,
    dormant_shares,
    input_connections,
    positions_now,
    replaced_and_explored,
)
from sparse_core import Rewiring, Topology, network_distance, sparse_layers


def test_replaced_and_explored_by_hand() -> None:
    # A layer of 2 × 5 with connections at 0, 3, 7, 9: three changes of one connection each, and what was ever seen.
    explored = {"a": torch.tensor([0, 3, 7, 9])}
    shape = (2, 5)
    first = Rewiring.of(shape, torch.tensor([0, 3, 7, 9]), torch.tensor([1]), torch.tensor([4]))  # 3 goes, 4 comes
    assert replaced_and_explored({"a": first}, explored) == (1 / 4, 5 / 10)
    second = Rewiring.of(shape, first.after, torch.tensor([1]), torch.tensor([3]))  # and back: nothing new
    assert replaced_and_explored({"a": second}, explored) == (1 / 4, 5 / 10)
    third = Rewiring.of(shape, second.after, torch.tensor([0]), torch.tensor([0]), "fresh")  # in place
    assert replaced_and_explored({"a": third}, explored) == (1 / 4, 5 / 10)
    assert explored["a"].tolist() == [0, 3, 4, 7, 9]


def small_agent(**options: Any) -> SparseTD3:
    env = DummyVecEnv([lambda: envs.make("Hopper-v5")])
    chosen = dict(sparsity=0.6, policy_kwargs=dict(net_arch=[8, 8]), seed=0, device="cpu", buffer_size=50, batch_size=4)
    return SparseTD3("MlpPolicy", env, **{**chosen, **options})  # type: ignore[arg-type]


def test_dormant_neurons_by_hand() -> None:
    model = small_agent(topology="dense", sparsity=0)
    assert dormant_shares(model) == {}  # no experience
    with torch.no_grad():
        for network in (model.actor.mu, *model.critic.q_networks):
            for layer in (network[0], network[2]):
                layer.weight.zero_()
                # Activities 1, 1, 1, 1, 1, 1, 0.05 and 0: their mean is 0.756, a tenth of it 0.0756.
                layer.bias.copy_(torch.tensor([1.0, 1, 1, 1, 1, 1, 0.05, -3]))
        model.actor.mu[0].bias.fill_(1.0)  # here nobody sleeps
    buffer = model.replay_buffer
    assert buffer is not None
    space = model.observation_space
    assert isinstance(space, spaces.Box)
    row = np.zeros((1, *space.shape), np.float32)
    buffer.add(row, row, np.zeros((1, 3), np.float32), np.zeros(1), np.zeros(1), [{}])
    assert dormant_shares(model) == {"actor": 2 / 16, "critic": 4 / 16}


def test_looking_at_neurons_draws_nothing_and_is_not_captured() -> None:
    model = small_agent(topology="rigl", learning_starts=10, period=4, stop=1.0)
    model.learn(20)
    before = pack(generator_states())
    captured = {name: len(layer.capture or []) for name, layer in sparse_layers(model.policy).items()}
    assert 0 < dormant_shares(model)["actor"] < 1
    after = pack(generator_states())
    assert after[1] == before[1]
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in after[0].items())
    assert {name: len(layer.capture or []) for name, layer in sparse_layers(model.policy).items()} == captured


def test_degrees_and_inputs_count_every_connection() -> None:
    model = small_agent()
    layers = {name: layer for name, layer in sparse_layers(model.policy).items() if "target" not in name}
    found = degree_histograms(model)
    assert set(found) == set(layers) == set(topologies(model)) == set(positions_now(model))
    for name, layer in layers.items():
        for side, neurons in (("fan_in", layer.out_features), ("fan_out", layer.in_features)):
            assert sum(count for _, count in found[name][side]) == neurons
            assert sum(degree * count for degree, count in found[name][side]) == layer.nnz
    inputs = input_connections(model)
    assert {name: len(counts) for name, counts in inputs.items()} == {"actor": 11, "critic.qf0": 14, "critic.qf1": 14}
    assert sum(inputs["actor"]) == layers["actor.mu.0"].nnz
    assert input_connections(small_agent(topology="dense", sparsity=0))["critic.qf0"] == [8] * 14


@pytest.mark.end_to_end
def test_result_has_the_course_of_the_search(finished: Path) -> None:
    result, lines = result_of(finished), metrics_of(finished)
    course, changes = result["topology_course"], [line for line in lines if line["kind"] == "topology"]
    assert len(course) == result["topology_changes"] == len(changes) == 16
    assert course == [[line["step"], line["replaced_share"], line["explored_share"]] for line in changes]
    explored = [entry[2] for entry in course]
    assert explored == sorted(explored)
    assert 0.4 < explored[0] < explored[-1] < 1
    assert [step for step, _ in result["dormant"]] == [step for step, _ in result["curve"]]
    # Of all positions, those that ever held a connection: also of the layers that the last checkpoint has.
    stored = CheckpointStore(finished / "checkpoints").load(replay=False)
    seen = unpack(stored.state, stored.tensors)["journal"]["explored"]
    model, _, _ = load_agent(finished)
    for name, topology in topologies(model).items():
        assert np.isin(topology.positions.numpy(), seen[name].numpy()).all()
    cells = sum(topology.shape[0] * topology.shape[1] for topology in topologies(model).values())
    assert explored[-1] == pytest.approx(sum(len(positions) for positions in seen.values()) / cells)


@pytest.mark.end_to_end
def test_masks_are_measured_by_what_multiplies(tmp_path: Path) -> None:
    """A masked layer keeps every weight: not that moves, but which of them multiply."""
    written = result_of(train(tmp_path / "run", topology="top-kast", sparsity=0.6))
    course = np.array(written["topology_course"])
    assert len(course) == written["topology_changes"] > 5
    assert (course[:, 1] < 1).all()
    assert course[:, 1].max() > 0
    assert (np.diff(course[:, 2]) >= 0).all()
    assert 0 < course[0, 2] < course[-1, 2] < 1
    assert all(0 < each < 1 for each in written["topology_distance"][-1][1].values())
    last = topologies(load_agent(tmp_path / "run")[0])
    assert sum(each.nnz for each in last.values()) < 0.7 * sum(each.shape[0] * each.shape[1] for each in last.values())


@pytest.mark.end_to_end
def test_bytes_are_those_of_the_moment_with_most(tmp_path: Path) -> None:
    """GMP begins dense: what it holds in the end is less than what it needed."""
    pruned = result_of(train(tmp_path / "gmp", topology="gmp"))
    model, *_ = load_agent(tmp_path / "gmp")
    assert pruned["bytes"]["total"] > 1.5 * training_memory(model).total
    moving = result_of(train(tmp_path / "set"))
    model, *_ = load_agent(tmp_path / "set")
    held = {name: moving["bytes"][name] for name in ("parameters", "indices")}
    assert held == {"parameters": training_memory(model).parameters, "indices": training_memory(model).indices}


@pytest.mark.end_to_end
def test_result_has_distances_and_gradient_flow(finished: Path) -> None:
    result = result_of(finished)
    lines = [line for line in metrics_of(finished) if line["kind"] == "eval"]
    steps = [line["step"] for line in lines]
    assert result["topology_distance"] == [
        [line["step"], line["distance_from_start"], line["distance_from_last"]] for line in lines
    ]
    # The first evaluation's last one is the start; then less moved since the last one than since the start.
    (_, start, last), *_, (_, far, near) = result["topology_distance"]
    assert start == last
    assert start.keys() == {"actor", "critic.qf0", "critic.qf1"}
    assert all(0 < near[name] < far[name] < 1 for name in far)
    # The start is what the seed gives.
    settings, written = read_config(finished)
    begun, (ended, _, _) = topologies(build(settings, written["backends"])), load_agent(finished)
    for name in far:
        assert far[name] == network_distance(by_network(begun)[name], by_network(topologies(ended))[name]).mean
    flows = result["gradient_flow"]
    assert flows == [[line["step"], line["gradient_flow"]] for line in lines]
    assert [step for step, _ in flows] == steps
    assert set(flows[0][1]) == {*result["nnz"]}
    assert all(flow > 0 for _, each in flows for flow in each.values())


def test_result_has_small_worldness(finished: Path) -> None:
    worlds = result_of(finished)["small_world"]
    assert set(worlds) == {"actor", "critic.qf0", "critic.qf1"}
    for world in worlds.values():
        own = world["clustering"] / world["random_clustering"], world["path_length"] / world["random_path_length"]
        assert world["sigma"] == pytest.approx(own[0] / own[1])
        assert 0.5 < world["sigma"] < 2


def test_measures_are_scalars_of_tensorboard(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    result = result_of(finished)
    for tag, column in (("distance_from_start", 1), ("distance_from_last", 2)):
        wanted = [(each[0], pytest.approx(each[column]["critic.qf1"])) for each in result["topology_distance"]]
        assert [(event.step, event.value) for event in events.Scalars(f"{tag}/critic.qf1")] == wanted
    flow = sum(each for name, each in result["gradient_flow"][-1][1].items() if name.startswith("actor"))
    assert events.Scalars("gradient_flow/actor")[-1].value == pytest.approx(flow)
    assert events.Scalars("topology/explored")[-1].value == pytest.approx(result["topology_course"][-1][2])


def test_networks_that_do_not_move_have_gradients_only() -> None:
    for topology, sparsity in (("static", 0.6), ("dense", 0.0)):
        model = small_agent(topology=topology, sparsity=sparsity)
        assert distances(model, positions_now(model)) == {}
        assert gradient_flows(model) == {}  # no experience
        assert set(small_worlds(model, 0)) == ({"actor", "critic.qf0", "critic.qf1"} if sparsity else set())


def test_wide_networks_are_not_measured_by_runs() -> None:
    wide, gap = Topology.random((WIDEST + 1, 4), 50, torch.Generator().manual_seed(0)), Topology.full((2, 3))
    assert distance({"a": wide}, {"a": wide}) is None
    assert distance({"a": gap}, {"a": gap}) == 0
    assert small_worldness({"a": wide, "b": gap}, torch.Generator()) is None
    assert small_worldness({"a": Topology.full((MOST // 2 + 1, 2))}, torch.Generator()) is None
    assert flow_of_networks({"actor.mu.0": 1.0, "actor.mu.2": 2.0, "critic.qf0.0": None}) == {"actor": 3.0}


def test_journal_of_an_earlier_version_goes_on_without_distances(finished: Path) -> None:
    """What a checkpoint does not have cannot be made up: where the topology started is not known."""
    stored = CheckpointStore(finished / "checkpoints").load(replay=False)
    state = unpack(stored.state, stored.tensors)["journal"]
    assert {name: len(each) for name, each in state["begun"].items()} == {
        name: len(each) for name, each in state["evaluated_positions"].items()
    }
    for name in ("begun", "evaluated_positions", "distances", "gradient_flow"):
        del state[name]
    assert distances(load_agent(finished)[0], Journal(**state).begun) == {}


def test_seconds_stand_beside_every_evaluation(finished: Path) -> None:
    measured = json.loads((finished / "result.json").read_text())["measured"]
    seconds = [each for _, each in measured["curve_seconds"]]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] <= measured["seconds"]
    processor = [each for _, each in measured["curve_processor_seconds"]]
    assert 0 < processor[0] < processor[-1] <= measured["processor_seconds"]


@pytest.mark.end_to_end
def test_final_episodes_are_those_of_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", final_episodes=3)
    final = result_of(run)["final"]
    assert final["episodes"] == len(final["returns"]) == 3
    assert len({*final["returns"]}) == 3
    capsys.readouterr()
    assert main("evaluate", run, "--episodes", "3") == 0
    assert f"return {final['mean_return']:,.1f} ± {final['std_return']:,.1f} over 3 episodes" in capsys.readouterr().out


# Given topologies


def test_topologies_come_back_from_their_file(tmp_path: Path) -> None:
    given = {"actor.mu.0": Topology.random((5, 3), 7, torch.Generator().manual_seed(0)), "b": Topology.full((2, 2))}
    write_topologies(tmp_path, given, "")
    assert read_topologies(tmp_path) == given


@pytest.mark.end_to_end
def test_run_keeps_a_topology_of_its_own(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run it came from may go: nothing but the file in the run's own directory is read when it is continued."""
    run = train(tmp_path / "run", topology="final-topology", topology_from=finished)
    assert topologies(load_agent(run)[0]) == topologies(load_agent(finished)[0])
    (run / "result.json").unlink()
    (run / FILE).write_bytes(b"damaged")
    assert main("resume", run) == 2
    assert f"{run / FILE} holds no topologies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(topology="final-topology"),
            "topology 'final-topology' takes the last topology of a run; name that with --topology-from RUN",
        ),
        (dict(topology_from="somewhere"), "--topology-from is for --topology final-topology, got topology"),
        (
            dict(topology="final-topology", topology_from="/nowhere"),
            "no result of the run whose last topology is to be taken",
        ),
        (dict(norm="layers"), "invalid choice"),
        (dict(final_episodes=-1), "`final_episodes` must be a finite number ≥ 0, got -1"),
    ],
)
def test_what_cannot_be(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*flags(tmp_path / "run", **changes)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_normalised_run_is_continued_bit_for_bit(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", norm="layer")
    half = train(tmp_path / "half", norm="layer")
    (half / "result.json").unlink()
    assert main("resume", half, "--step", "600") == 0
    assert_equal_runs(whole, half)
    assert result_of(whole)["norm"] == "layer"


def test_config_of_an_earlier_version_is_still_read(finished: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    config = json.loads((old / "config.json").read_text())
    for name in ("norm", "final_episodes", "topology_from"):
        del config["settings"][name]
    (old / "config.json").write_text(json.dumps(config))
    assert load_agent(old)[1].norm == "none"
