"""Exports that other tools load and that act as the sparse agent does."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.torch_layers import create_mlp
from tiny_runs import flags, main, train

from agents import SparseTD3
from runs.checkpoints import CheckpointStore
from runs.export import _onnx_bytes, dense_state_dict, to_sb3
from runs.failure import UserError
from runs.loading import load_agent
from runs.snapshot import unpack
from sparse_core import SparseLinear

pytestmark = pytest.mark.end_to_end

# Actions in [-1, 1], [-2, 2] and [-0.4, 0.4].
ENVS = ["Hopper-v5", "Pendulum-v1", "Humanoid-v5"]


@pytest.fixture(scope="module", params=ENVS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "Hopper-v5":
        finished: Path = request.getfixturevalue("finished")
        return finished
    out = tmp_path_factory.mktemp("export") / "run"
    return train(out, env=request.param, steps=160, checkpoint_every=1000, sparsity=0.5)


def observations(model: Any, count: int = 64) -> np.ndarray[Any, Any]:
    shape = model.observation_space.shape
    values: np.ndarray[Any, Any] = np.random.default_rng(0).normal(scale=3, size=(count, *shape))
    return values


def export(run: Path, to: str, tmp_path: Path) -> Path:
    path = tmp_path / f"file-{to}.zip"
    assert main("export", run, "--to", to, "--out", path) == 0
    return path


def test_sb3(run: Path, tmp_path: Path) -> None:
    model, settings, _ = load_agent(run)
    plain = TD3.load(export(run, "sb3", tmp_path))
    assert type(plain) is TD3
    x = observations(model)
    wanted = model.predict(x, deterministic=True)[0]
    np.testing.assert_allclose(plain.predict(x, deterministic=True)[0], wanted, rtol=1e-6, atol=1e-6)
    assert np.ptp(wanted) > 1e-3
    names = ("gamma", "tau", "batch_size", "buffer_size", "learning_starts", "policy_delay", "target_policy_noise")
    assert [getattr(plain, name) for name in names] == [getattr(settings, name) for name in names]
    # Critics and targets as well: what it would learn from.
    mine, theirs = model.critic_target, plain.critic_target
    obs, act = torch.as_tensor(x, dtype=torch.float32), torch.zeros(len(x), *model.action_space.shape)
    for a, b in zip(mine(obs, act), theirs(obs, act), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_mujoco_log")
def test_an_sb3_export_can_be_trained_on(finished: Path, tmp_path: Path) -> None:
    env = gymnasium.make("Hopper-v5")
    plain = TD3.load(export(finished, "sb3", tmp_path), env=env, buffer_size=200, learning_starts=10)
    before = plain.actor.mu[0].weight.clone()
    plain.learn(30)
    assert not torch.equal(before, plain.actor.mu[0].weight)


def test_onnx(run: Path, tmp_path: Path) -> None:
    model, _, _ = load_agent(run)
    path = export(run, "onnx", tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 64):  # any batch size
        x = observations(model, count)
        (actions,) = session.run(None, {"observation": x.astype(np.float32)})
        np.testing.assert_allclose(actions, model.predict(x, deterministic=True)[0], atol=1e-5)
    low, high = model.action_space.low, model.action_space.high
    (extreme,) = session.run(None, {"observation": (1e6 * observations(model)).astype(np.float32)})
    assert (extreme >= low - 1e-6).all()
    assert (extreme <= high + 1e-6).all()
    assert [output.name for output in session.get_outputs()] == ["action"]


def test_dense_state_dict(run: Path, tmp_path: Path) -> None:
    model, settings, _ = load_agent(run)
    state = safetensors.torch.load_file(export(run, "dense-state-dict", tmp_path))
    plain = TD3("MlpPolicy", settings.env, policy_kwargs=dict(net_arch=settings.hidden), device="cpu", buffer_size=1)
    expected = plain.policy.state_dict()
    assert state.keys() == expected.keys()
    assert all(tensor.shape == expected[name].shape for name, tensor in state.items())
    plain.policy.load_state_dict(state)
    x = observations(model)
    np.testing.assert_allclose(
        plain.predict(x, deterministic=True)[0], model.predict(x, deterministic=True)[0], rtol=1e-6, atol=1e-6
    )


def test_there_are_zeros_where_there_is_no_connection(finished: Path, tmp_path: Path) -> None:
    model, _, _ = load_agent(finished)
    state = safetensors.torch.load_file(export(finished, "dense-state-dict", tmp_path))
    sparse = {name: layer for name, layer in model.policy.named_modules() if isinstance(layer, SparseLinear)}
    assert len(sparse) == 12
    for name, layer in sparse.items():
        topology = layer.topology
        there = torch.zeros(topology.shape, dtype=torch.bool).flatten()
        there[topology.positions.long()] = True
        weight = state[f"{name}.weight"].flatten()
        assert not weight[~there].any()
        assert torch.equal(weight[there], layer.values)


def test_the_default_place_and_what_is_said(finished: Path, unfinished: Path, capsys: Any) -> None:
    for to, name in [("sb3", "td3.zip"), ("onnx", "actor.onnx"), ("dense-state-dict", "policy.safetensors")]:
        assert main("export", unfinished, "--to", to) == 0
        path = unfinished / "export" / name
        assert capsys.readouterr().out == f"step 900 of {unfinished} as {to}: {path}\n"
        assert path.stat().st_size > 1000
    assert main("export", unfinished, "--to", "onnx", "--step", "600") == 0
    assert capsys.readouterr().out.startswith("step 600 of ")


@pytest.mark.parametrize("topology", ["top-kast", "trainable-threshold", "sr-ste"])
def test_masked_agents(topology: str, tmp_path: Path) -> None:
    run = train(tmp_path / "run", topology=topology, sparsity=None, steps=160, eval_every=160, checkpoint_every=160)
    model, settings, _ = load_agent(run)
    plain = to_sb3(model, settings)
    states = observations(model)
    acted, expected = (each.predict(states, deterministic=True)[0] for each in (plain, model))
    np.testing.assert_allclose(acted, expected, atol=1e-6)
    assert set(dense_state_dict(model)) == set(plain.policy.state_dict())


def test_sac_keeps_its_entropy_coefficient_and_has_its_name(tmp_path: Path, capsys: Any) -> None:
    assert main(*flags(tmp_path / "run", "sac", steps=160, eval_every=160, checkpoint_every=160)) == 0
    assert main("export", tmp_path / "run", "--to", "sb3") == 0
    plain = SAC.load(tmp_path / "run" / "export" / "sac.zip")
    stored = CheckpointStore(tmp_path / "run" / "checkpoints").load(None, replay=False)
    learned = unpack(stored.state["agent"], stored.tensors)["log_ent_coef"]
    assert float(learned) != 0
    assert torch.equal(plain.log_ent_coef.detach(), learned)


def test_an_earlier_step_is_another_agent(finished: Path) -> None:
    x = observations(load_agent(finished)[0])
    last, earlier = (load_agent(finished, step)[0].predict(x, deterministic=True)[0] for step in (None, 600))
    assert not np.array_equal(last, earlier)


def test_without_onnx(unfinished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main("export", unfinished, "--to", "onnx") == 2
    assert re.search(r"install it with `pip install 'sparse-agents\[onnx\]'`", capsys.readouterr().err)
    assert not (unfinished / "export").exists()


def test_places_that_cannot_be(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("export", finished, "--to", "onnx", "--out", tmp_path / "none" / "actor.onnx") == 2
    assert "No such file or directory; create its directory" in capsys.readouterr().err
    assert main("export", finished, "--to", "onnx", "--out", tmp_path) == 2
    assert "Is a directory; choose the name of a file" in capsys.readouterr().err
    assert main("export", finished, "--to", "sb3", "--step", "7", "--out", tmp_path / "a.zip") == 2
    assert "no checkpoint of step 7" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_metadata(finished: Path, tmp_path: Path) -> None:
    data = export(finished, "dense-state-dict", tmp_path).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"env": "Hopper-v5", "topology": "set"}


def normalised() -> Any:
    env = gymnasium.make("Pendulum-v1")
    model = SparseTD3("MlpPolicy", env, norm="layer", sparsity=0.5, seed=0, device="cpu", buffer_size=300)
    with torch.no_grad():
        for module in model.policy.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.uniform_(-1, 1)
                module.bias.uniform_(-1, 1)
    return model


def test_normalised_networks(finished: Path) -> None:
    model, (_, settings, _) = normalised(), load_agent(finished)
    with pytest.raises(UserError, match="makes none with layer normalisation; export the actor with `--to onnx`"):
        to_sb3(model, settings)
    session = onnxruntime.InferenceSession(_onnx_bytes(model, settings), providers=["CPUExecutionProvider"])
    x = observations(model)
    (actions,) = session.run(None, {"observation": x.astype(np.float32)})
    np.testing.assert_allclose(actions, model.predict(x, deterministic=True)[0], atol=1e-5)
    assert np.ptp(actions) > 1e-3
    mlp = create_mlp(3, 1, [400, 300], squash_output=True, post_linear_modules=[torch.nn.LayerNorm])
    actor = {name: value for name, value in dense_state_dict(model).items() if name.startswith("actor.mu.")}
    plain = torch.nn.Sequential(*mlp)
    plain.load_state_dict({name.removeprefix("actor.mu."): value for name, value in actor.items()})
    wanted = model.actor(torch.as_tensor(x, dtype=torch.float32))
    torch.testing.assert_close(plain(torch.as_tensor(x, dtype=torch.float32)), wanted, rtol=0, atol=1e-6)
