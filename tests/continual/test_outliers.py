"""Pseudo-outliers: images of a task's own, but of no class."""

import pytest
import torch

from continual.benchmarks import make_benchmark
from continual.outliers import OUTLIERS, pseudo_outliers


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return make_benchmark("split-digits").tensors("train", 0)[0]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 4, 4)])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 40])
def test_as_many_as_asked_and_no_brighter_than_the_images(shape: tuple[int, ...], count: int) -> None:
    x = torch.rand(7, *shape, generator=generator()) * 3 - 1
    made = pseudo_outliers(x, count, generator(1))
    assert made.shape == (count, *shape)
    assert made.dtype == x.dtype
    if count:
        # Bilinear sampling and joining never leave the range.
        assert made.min() >= x.min() - 1e-5
        assert made.max() <= x.max() + 1e-5


def test_every_kind_has_its_share(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for name, recipe in OUTLIERS.items():
        monkeypatch.setitem(
            OUTLIERS._entries if hasattr(OUTLIERS, "_entries") else vars(OUTLIERS), name,
            lambda a, b, g, recipe=recipe: shares.append(len(a)) or recipe(a, b, g),
        )  # fmt: skip
    pseudo_outliers(images, 20, generator())
    assert len(shares) == len(OUTLIERS)
    assert sum(shares) == 20
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("kind", OUTLIERS)
def test_every_kind_differs_from_what_it_was_made_of(images: torch.Tensor, kind: str) -> None:
    a, b = images[:30] - images.min(), images[30:60] - images.min()
    before = a.clone(), b.clone()
    made = OUTLIERS[kind](a, b, generator(2))
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert made.shape == a.shape
    for source in (a, b):
        changed = (made - source).abs().flatten(1).amax(1) > 0.1
        assert changed.float().mean() > 0.9
    assert made.flatten(1).std(1).min() > 0.01  # not blank


def test_the_generator_alone_decides(images: torch.Tensor) -> None:
    state = torch.get_rng_state()
    one = pseudo_outliers(images, 24, generator(5))
    torch.rand(3)
    assert torch.equal(pseudo_outliers(images, 24, generator(5)), one)
    assert not torch.equal(pseudo_outliers(images, 24, generator(6)), one)
    torch.set_rng_state(state)


@pytest.mark.parametrize("shape", [(5, 64), (5, 8, 8), (5, 1, 8, 3)])
def test_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(n, c, h, w\) of 4×4 or more, got shape"):
        pseudo_outliers(torch.zeros(shape), 3, generator())
