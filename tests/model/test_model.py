"""Random steps on a real mount and on a plain directory: the same outcomes, the same trees, the same snapshots.

The `ci` profile takes the same few long examples every time. `make soak` (IPFSFS_TEST_PROFILE=soak) takes as many new
ones as it has time for; what it finds is shrunk, and kept in `test_regressions.py`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.model import steps
from tests.model.model import Model, Step

SOAK = not settings.default.derandomize  # type: ignore[union-attr]
EXAMPLES, STEPS = (100, 100) if SOAK else (30, 50)


def _batches(operations: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    """Several operations are one step for Hypothesis, so that what happens to the mount comes now and then only."""
    return st.lists(operations, min_size=1, max_size=20)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # Hypothesis about the lists of operations
def test_random_steps_end_as_on_a_plain_directory(tmp_path: Path) -> None:
    made: list[Model] = []

    class Machine(RuleBasedStateMachine):
        """Most rules operate, one makes things happen to the mount."""

        def __init__(self) -> None:
            super().__init__()
            self.model = Model(tmp_path / f"example{len(made)}")
            made.append(self.model)
            self.well = True

        def _take(self, batch: list[Step]) -> None:
            self.well = False
            for step in batch:
                self.model.step(*step)
            self.well = True

        @initialize(flags=steps.mount_flags)
        def begin(self, flags: tuple[str, ...]) -> None:
            self._take([("mount", flags), *steps.first])

        @rule(batch=_batches(steps.names))
        def names(self, batch: list[Step]) -> None:
            self._take(batch)

        @rule(batch=_batches(steps.attributes))
        def attributes(self, batch: list[Step]) -> None:
            self._take(batch)

        @rule(batch=_batches(steps.names))
        def more_names(self, batch: list[Step]) -> None:
            self._take(batch)

        @rule(first=steps.open_first, batch=_batches(steps.contents))
        def contents(self, first: list[Step], batch: list[Step]) -> None:
            self._take(first + batch)

        @rule(first=steps.open_first, batch=_batches(steps.contents))
        def more_contents(self, first: list[Step], batch: list[Step]) -> None:
            self._take(first + batch)

        @rule(batch=_batches(steps.mixed))
        def mixed(self, batch: list[Step]) -> None:
            self._take(batch)

        @rule(step=steps.happenings)
        def happens(self, step: Step) -> None:
            self._take([step])

        def teardown(self) -> None:
            try:
                if self.well:
                    self.model.finish()
            finally:
                self.model.close()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            report_multiple_bugs=False,
            stateful_step_count=STEPS,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
    done = sum((model.done for model in made), Counter())
    worked = Counter(how for (_, how), count in done.items() for _ in range(count))
    never = {name for name, _ in done} - {name for name, how in done if how == "works"}
    print(
        f"examples={len(made)} steps={sum(len(model.steps) for model in made)} operations={done.total()} "
        f"worked={worked['works']} never={sorted(never)}"
    )
    assert worked["works"] > done.total() / 4, "operations that fail show little"
    assert len(never) <= 3, f"{never} never worked"
