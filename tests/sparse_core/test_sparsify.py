import logging
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from sparse_core import SparseLinear, plan, sparse_layers, sparsify
from sparse_core.meters import nnz, sparsity


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 5))


class Named(nn.Module):
    """Layers in a tree, as a user would name them; initial weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Linear(20, 30), "second": nn.Linear(30, 30)})
        self.head = nn.Linear(30, 5)
        nn.init.orthogonal_(self.head.weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.head.bias)
        nn.init.orthogonal_(self.head.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.relu(self.body["second"](torch.relu(self.body["first"](inputs)))))


class ReadsWeight(Named):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + self.head.weight.norm()


class InheritsTheReader(ReadsWeight):
    pass


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.attention(inputs, inputs, inputs)[0])


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "er:1,2"])
def test_the_whole_model_has_the_sparsity(distribution: str) -> None:
    # 600 + 900 + 150 cells; a fifth stays.
    model = sparsify(mlp(), 0.8, distribution=distribution)
    assert nnz(model) == 330
    assert {name: type(layer) for name, layer in model.named_children() if name in "024"} == {
        "0": SparseLinear,
        "2": SparseLinear,
        "4": nn.Linear,
    }


def test_weights_stay_at_the_connections_drawn() -> None:
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparsify(model, 0.8, dense=())
    for name, layer in sparse_layers(model).items():
        mask = layer.topology.to_mask()
        assert torch.equal(layer.to_dense().weight, before[f"{name}.weight"] * mask)
        assert torch.equal(layer.bias, before[f"{name}.bias"])
    assert [name for name, _ in model.named_parameters()] == [
        f"{index}.{part}" for index in (0, 2, 4) for part in ("values", "bias")
    ]


def test_fan_in_scales_the_weights() -> None:
    plain, scaled = mlp(), mlp()
    scaled.load_state_dict(plain.state_dict())
    first = sparsify(plain, 0.8, generator=seeded())[0]
    second = sparsify(scaled, 0.8, init="fan-in", generator=seeded())[0]
    assert first.topology == second.topology
    fan_in = first.topology.fan_in[first.topology.rows.long()]
    torch.testing.assert_close(second.values, first.values * (20 / fan_in).sqrt())


def test_the_generator_decides_the_topology() -> None:
    topologies = [
        [layer.topology for layer in sparse_layers(sparsify(mlp(), 0.8, generator=seeded(seed))).values()]
        for seed in (1, 1, 2)
    ]
    assert topologies[0] == topologies[1]
    assert topologies[0] != topologies[2]


def test_sparsity_zero_leaves_the_model_as_it_is() -> None:
    model = mlp()
    modules = list(model)
    assert sparsify(model, 0, distribution="er:7,64") is model
    assert all(now is before for now, before in zip(model, modules, strict=True))


def test_a_plain_linear_layer_comes_back_sparse() -> None:
    linear = nn.Linear(10, 10).eval()
    layer = sparsify(linear, 0.7)
    assert isinstance(layer, SparseLinear)
    assert layer.nnz == 30
    assert not layer.training


def test_parameters_that_do_not_learn_still_do_not() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    sparsify(model, 0.5)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, False, True, True]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ["body.first", "body.second"]),
        ({"dense": ()}, ["body.first", "body.second", "head"]),
        ({"dense": ("input",)}, ["body.second", "head"]),
        ({"dense": ("body.*",)}, ["head"]),
        ({"dense": (1,)}, ["body.first", "head"]),
        ({"include": "body.*"}, ["body.first", "body.second"]),
        ({"include": ["*first", "head"], "dense": ()}, ["body.first", "head"]),
        ({"exclude": "*second"}, ["body.first"]),
        ({"exclude": ["body.second", "head"], "dense": ()}, ["body.first"]),
    ],
)
def test_names_choose(options: dict[str, object], chosen: list[str]) -> None:
    assert list(plan(Named(), 0.05, distribution="uniform", **options).counts) == chosen
    model = sparsify(Named(), 0.05, distribution="uniform", **options)
    assert list(sparse_layers(model)) == chosen
    assert nnz(model) == 1650 - round(0.05 * 1650)
    assert model(torch.ones(2, 20)).shape == (2, 5)


def tied() -> nn.Module:
    model = Named()
    model.copy = nn.Linear(30, 5)
    model.copy.weight = model.head.weight
    return model


def shared() -> nn.Module:
    model = Named()
    model.copy = model.head
    return model


def hooked() -> nn.Module:
    model = Named()
    model.head.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def normed() -> nn.Module:
    model = Named()
    with pytest.warns(FutureWarning):
        weight_norm(model.head)
    return model


def parametrized() -> nn.Module:
    model = Named()
    parametrizations.spectral_norm(model.head)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tied, r"its weight is tied: head\.weight, copy\.weight"),
        (shared, r"its weight is tied: head\.weight, copy\.weight"),
        (ReadsWeight, r"ReadsWeight reads its `\.weight`"),
        (InheritsTheReader, r"InheritsTheReader reads its `\.weight`"),
        (hooked, "it has hooks"),
        (normed, "it has hooks"),
        (parametrized, "a ParametrizedLinear, not a plain nn.Linear"),
    ],
)
def test_a_layer_whose_weight_others_need_stays_as_it_is(make: type[nn.Module], reason: str) -> None:
    model = make().eval()
    chosen = plan(model, 0.5, dense=())
    assert list(chosen.counts) == ["body.first", "body.second"]
    assert re.search(reason, chosen.skipped["head"])
    assert re.search(f"head: stays dense, .*{reason}", str(chosen))
    head = model.head
    sparsify(model, 0.5, dense=())
    assert model.head is head
    assert sparsity(model) == pytest.approx(0.5, abs=1e-3)
    assert model(torch.ones(2, 20)).shape == (2, 5)


def test_attention_projections_stay_dense_and_count() -> None:
    model = Attends()
    chosen = plan(model, 0.1, dense=())
    assert chosen.skipped == {"attention.out_proj": "an attention projection whose weight its module reads"}
    # 24×8 in_proj + 8×8 out_proj + 8×8 out: 320 cells, 32 go, all of them from `out`.
    assert chosen.counts == {"out": 32}
    sparsify(model, 0.1, dense=())
    assert nnz(model) == 288
    assert model(torch.ones(2, 3, 8)).shape == (2, 3, 8)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_torch_transformer_works_in_evaluation_too(padded: bool, batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
    sparsify(model, 0.2, dense=())
    assert len(sparse_layers(model)) == 4
    inputs = torch.randn(2, 5, 8, generator=seeded())
    length = inputs.shape[1] if batch_first else inputs.shape[0]
    mask = torch.zeros(inputs.numel() // 8 // length, length, dtype=torch.bool)
    mask[-1, -1] = True
    options = {"src_key_padding_mask": mask} if padded else {}
    with torch.no_grad():  # where torch would take its fast path
        expected, actual = model.train()(inputs, **options), model.eval()(inputs, **options)
    seen = ~mask if padded else torch.ones_like(mask)
    order = (lambda t: t) if batch_first else (lambda t: t.transpose(0, 1))
    torch.testing.assert_close(order(actual)[seen], order(expected)[seen])


def test_other_weights_count_as_dense() -> None:
    # Embedding 10×8, grouped convolution 4×1×3×3 = 36, linear 8×8: 180 cells; what goes is all of the linear one.
    model = nn.ModuleList([nn.Embedding(10, 8), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(8, 8)])
    assert plan(model, 0.25, dense=()).counts == {"2": 64 - 45}
    with pytest.raises(ValueError, match="of 180 connections 116 are in layers kept dense"):
        plan(model, 0.5, dense=())


def test_the_plan_does_nothing_and_tells_everything() -> None:
    model = mlp()
    # 70 % of 1,650 are 1,155; layers 2 and 4 keep their 900 and 150.
    text = str(plan(model, 0.3, exclude="2"))
    assert not sparse_layers(model)
    assert text.splitlines() == [
        "0: 105 connections",
        "2: stays dense, excluded",
        "4: stays dense, kept dense by `dense='output'`",
    ]


def test_skipped_layers_are_logged_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sparse_core.sparsify"):
        sparsify(Named(), 0.5)
    assert "head stays dense: kept dense by `dense='output'`" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "tail"}, "glob 'tail' names no linear layer or convolution; known: body.first, body.second, head"),
        ({"exclude": "tail.*"}, "glob 'tail.*' names no linear layer"),
        ({"dense": ("tail",)}, "`dense` names no layer with 'tail'"),
        ({"sparsity": 1.0}, "`sparsity` must be a number in [0, 1)"),
        ({"sparsity": 0.95, "exclude": "body.second"}, "cannot be met"),
        ({"distribution": "random"}, "no distribution called 'random'"),
        ({"exclude": "*"}, "no layer of this model can be made sparse"),
    ],
)
def test_what_cannot_be_done_is_an_error_and_changes_nothing(options: dict[str, object], message: str) -> None:
    model = Named()
    with pytest.raises(ValueError, match=re.escape(message)):
        sparsify(model, **{"sparsity": 0.5, **options})
    assert not sparse_layers(model)


@pytest.mark.parametrize("options", [{"init": "fan"}, {"backend": "gem"}])
def test_a_wrong_part_is_an_error_and_changes_nothing(options: dict[str, str]) -> None:
    model = Named()
    with pytest.raises(ValueError, match="did you mean"):
        sparsify(model, 0.5, **options)
    assert not sparse_layers(model)


def test_a_sparse_model_is_not_made_sparse_again() -> None:
    model = sparsify(mlp(), 0.5)
    with pytest.raises(ValueError, match="the model has sparse layers already: 0, 2"):
        sparsify(model, 0.5)
    assert sparsify(model, 0) is model
