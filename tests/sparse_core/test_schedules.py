import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_core import SCHEDULES, Every

# ζ = 0.4 over 100 steps: (name, step, value) by hand.
WORKED = [
    ("constant", 0, 0.4), ("constant", 500, 0.4),
    ("linear", 0, 0.4), ("linear", 25, 0.3), ("linear", 100, 0.0), ("linear", 500, 0.0),
    ("cosine", 0, 0.4), ("cosine", 50, 0.2), ("cosine", 25, 0.2 + 0.1 * 2**0.5),
    ("cosine", 100, 0.0), ("cosine", 500, 0.0),
    ("staged", 0, 0.4), ("staged", 74, 0.4), ("staged", 75, 0.2), ("staged", 99, 0.2), ("staged", 100, 0.0),
    ("cubic", 0, 0.4), ("cubic", 50, 0.05), ("cubic", 100, 0.0), ("cubic", 500, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "step", "value"), WORKED)
def test_worked_values(name: str, step: int, value: float) -> None:
    assert SCHEDULES[name](0.4, 100)(step) == pytest.approx(value, abs=1e-12)


def test_every_schedule_has_worked_values() -> None:
    assert {name for name, _, _ in WORKED} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
@given(start=st.floats(0, 1), over=st.integers(1, 1000), step=st.integers(0, 2000))
def test_schedules_start_at_the_start_and_never_rise(name: str, start: float, over: int, step: int) -> None:
    schedule = SCHEDULES[name](start, over)
    later, now = schedule(step + 1), schedule(step)  # in this order: a counter inside would show
    assert schedule(0) == pytest.approx(start)
    assert 0 <= later <= now + 1e-12 <= start + 2e-12


def test_a_wrong_name_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"no schedule called 'cosin'; did you mean 'cosine'\?"):
        SCHEDULES["cosin"]


def test_every_by_hand() -> None:
    every = Every(10, until=35)
    assert [step for step in range(60) if every.due(step)] == [10, 20, 30]
    assert [every.next_due(step) for step in (0, 9, 10, 29, 30, 40)] == [10, 10, 20, 30, None, None]
    assert Every(10).next_due(1000) == 1010
    assert not any(Every(10, until=0).due(step) for step in range(30))


@given(period=st.integers(1, 20), until=st.none() | st.integers(0, 60), step=st.integers(0, 80))
def test_next_due_is_the_first_due_step_to_come(period: int, until: int | None, step: int) -> None:
    every = Every(period, until)
    to_come = [later for later in range(step + 1, step + 1 + period) if every.due(later)]
    assert every.next_due(step) == (to_come[0] if to_come else None)


def test_a_period_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"`period` must be at least 1 step.*got 0"):
        Every(0)
