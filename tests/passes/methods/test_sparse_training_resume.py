"""A run that was stopped goes on bit for bit, with whatever its options have to remember."""

from __future__ import annotations

import pytest
from sparse_training_runs import Stop, Stopped, same, trained, watched

KERNELS = {"rule": "dsr_exact", "granularity": "kernels", "layers": {"5": False}}
SLOW = {"marks": pytest.mark.slow}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "options"),
    [
        ("energy<=60%", {"rule": "dsr_plus"}),
        pytest.param("nonzeros<=60%", KERNELS, **SLOW),
        pytest.param("nonzeros<=20%", {"rule": "dsr", "new_values": "normal", "l1": 1e-3}, **SLOW),
        pytest.param("nonzeros<=20%", {"rule": "gradual"}, **SLOW),
        pytest.param("nonzeros<=20%", {"rule": "set", "every": None}, **SLOW),
    ],
    ids=lambda value: value if isinstance(value, str) else value["rule"],
)
def test_a_stopped_run_goes_on(budget, options, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    whole = trained(budget, **options)
    expected = seen.masks()
    with pytest.raises(Stop):
        trained(budget, data=Stopped(15), out=tmp_path, **options)
    seen.events.clear()
    again = trained(budget, out=tmp_path, **options)
    assert 0 < len(seen.events) < len(expected)
    assert same(seen.masks(), expected[-len(seen.events) :])
    assert same(whole.model.state_dict().values(), again.model.state_dict().values())


def test_events_count_optimizer_steps_not_batches(monkeypatch):
    seen = watched(monkeypatch)
    trained(rule="dsr_exact", train={"accumulate": 3}, every=3)  # 2 steps an epoch, 8 in all
    assert seen.steps == [3, 6]
