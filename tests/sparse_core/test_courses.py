"""How sparse a network is along its training, at ways worked out by hand."""

import pytest

from sparse_core.courses import COURSES

# From nothing to 80 % sparse.
WORKED = [
    ("cubic", 0.5, 0.7),  # 0.8 - 0.8 · ½³
    ("sigmoid", 0.5, 0.4),
    ("sigmoid", 0.25, 0.036141),  # 0.8 · (σ(-3) - σ(-6)) / (σ(6) - σ(-6))
    ("staged", 0.74, 0.0), ("staged", 0.75, 0.4), ("staged", 0.99, 0.4), ("staged", 1.0, 0.8),
    ("at-once", 0.01, 0.8),
    ("phases", 0.04, 0.0), ("phases", 0.05, 0.8), ("phases", 0.14, 0.8), ("phases", 0.15, 0.0), ("phases", 0.25, 0.8),
    ("phases", 0.84, 0.0), ("phases", 0.85, 0.8),
]  # fmt: skip


def test_every_course_is_worked() -> None:
    assert {name for name, *_ in WORKED} == {*COURSES}


@pytest.mark.parametrize(("name", "way", "sparsity"), WORKED)
def test_courses_by_hand(name: str, way: float, sparsity: float) -> None:
    assert COURSES[name](way, 0.0, 0.8) == pytest.approx(sparsity, abs=1e-6)


@pytest.mark.parametrize("name", COURSES)
def test_every_course_ends_at_the_final_sparsity(name: str) -> None:
    assert COURSES[name](1.0, 0.3, 0.9) == pytest.approx(0.9)
