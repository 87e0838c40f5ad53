"""Membership: slots, liveness and environment steps, with a test clock."""

from __future__ import annotations

import pytest

from apex.daemons.learner.membership import MAX_MEMBERS, Membership
from apex.daemons.status.reports import ActorReport, EvaluationsReport
from apex.errors import RefusedError
from apex.runs.checkpoint import ActorRecord
from apex.wire.messages import EvaluationReport, Heartbeat
from tests.support.builders import hello
from tests.support.clock import Clock


def make(
    num_actors: int = 2,
    env_steps: int = 0,
    records: dict[str, ActorRecord] | None = None,
    max_members: int = MAX_MEMBERS,
) -> tuple[Membership, Clock]:
    clock = Clock()
    membership = Membership(num_actors, 5, env_steps, records, clock, max_members=max_members)
    return membership, clock


def beat(steps: int = 0, phase: str = "stepping") -> Heartbeat:
    return Heartbeat(phase=phase, env_steps=steps)


def states(membership: Membership) -> dict[str, str]:
    return {row.actor_id: row.state for row in membership.actors()}


def test_configured_actor_has_the_slot_of_its_number_in_any_order():
    membership, _ = make(3)
    given = {n: membership.greet(hello(f"actor_{n:03d}")).slot for n in (2, 0, 1)}
    assert given == {0: 0, 1: 1, 2: 2}
    assert membership.greet(hello("actor_000")).instance == 5


def test_extra_actor_has_the_lowest_free_slot_past_the_configured_ones():
    membership, _ = make(2)
    slots = [membership.greet(hello(name)).slot for name in ("actor_007", "x", "actor_002")]
    assert slots == [2, 3, 4]


def test_returning_actor_has_its_old_slot_and_a_new_incarnation():
    membership, _ = make(1)
    membership.greet(hello("extra_a"))
    first = membership.greet(hello("extra_b", epoch=1))
    same = membership.greet(hello("extra_b", epoch=1))
    again = membership.greet(hello("extra_b", epoch=2))
    assert [w.slot for w in (first, same, again)] == [2, 2, 2]
    assert [w.incarnation for w in (first, same, again)] == [0, 0, 1]


def given(membership: Membership, name: str, epoch: int) -> tuple[int, int]:
    """The slot and incarnation of one start, which its seeds are made of."""
    welcome = membership.greet(hello(name, epoch=epoch))
    return welcome.slot, welcome.incarnation


def test_incarnations_of_a_slot_are_unique_across_its_holders():
    membership, clock = make(1)
    places = [given(membership, "actor_000", 1), given(membership, "extra_a", 1)]
    clock.now += 30.5  # both are silent, and the slot of the extra one is free
    places.append(given(membership, "extra_b", 2))
    places.append(given(membership, "extra_a", 3))
    places.append(given(membership, "actor_000", 2))
    clock.now += 30.5
    places += [given(membership, name, 4) for name in ("extra_c", "extra_a", "extra_b")]
    assert places == [(0, 0), (1, 0), (1, 1), (2, 0), (0, 1), (1, 2), (2, 1), (3, 0)]


def test_actor_that_lost_its_slot_gets_an_incarnation_of_the_new_slot():
    membership, clock = make(1)
    assert given(membership, "extra_a", 1) == (1, 0)
    membership.heartbeat(hello("extra_a"), beat(500))
    clock.now += 30.5
    assert given(membership, "extra_b", 1) == (1, 1)
    assert given(membership, "extra_c", 1) == (2, 0)
    clock.now += 30.5
    membership.heartbeat(hello("extra_b"), beat())
    membership.heartbeat(hello("extra_c"), beat())
    assert given(membership, "extra_a", 1) == (3, 0), "the same process, in a new slot"
    membership.heartbeat(hello("extra_a"), beat(510))
    assert membership.env_steps == 510, "its steps are not counted twice"


@pytest.mark.parametrize("saved", [None, 1, 2, 3], ids="checkpoint_of_start_{}".format)
def test_incarnations_are_unique_across_starts_of_the_learner(saved):
    """With any part of the actors in the checkpoint, or none."""
    records: dict[str, ActorRecord] = {}
    places, epoch = [], 0
    for start in range(4):
        membership = Membership(2, 5, 0, records, Clock(), start)
        for _ in range(3):
            epoch += 1
            places += [given(membership, name, epoch) for name in ("actor_000", "actor_001", "x")]
        if start == saved:
            records = dict(membership.records)
    assert len(places) == 36 == len(set(places))
    assert places[:3] == [(0, 0), (1, 0), (2, 0)], "the first incarnations are the same in each run"


def test_slot_of_an_extra_actor_is_free_after_thirty_seconds_of_silence():
    membership, clock = make(1)
    membership.greet(hello("extra_a"))
    membership.greet(hello("extra_b"))
    clock.now += 20
    membership.heartbeat(hello("extra_b"), beat())
    clock.now += 10.5
    assert membership.greet(hello("extra_c")).slot == 1
    assert states(membership).keys() == {"extra_b", "extra_c"}


def test_slot_of_an_extra_actor_is_free_when_it_leaves():
    membership, _ = make(1)
    membership.greet(hello("extra_a"))
    membership.heartbeat(hello("extra_a"), beat(phase="leaving"))
    assert membership.greet(hello("extra_b")).slot == 1


def test_actor_is_suspect_after_3_s_and_gone_after_30_s():
    membership, clock = make(1)
    membership.greet(hello("actor_000"))
    assert states(membership) == {"actor_000": "starting"}
    membership.heartbeat(hello("actor_000"), beat(phase="waiting_for_credit"))
    clock.now += 2.9
    assert states(membership) == {"actor_000": "waiting_for_credit"}
    clock.now += 0.2
    assert states(membership) == {"actor_000": "suspect"}
    clock.now += 27.0
    assert states(membership) == {"actor_000": "gone"}
    membership.heartbeat(hello("actor_000"), beat())
    assert states(membership) == {"actor_000": "stepping"}


def test_rows_are_sorted_by_slot_and_show_the_last_heartbeat():
    membership, clock = make(2)
    membership.greet(hello("actor_001", pid=77))
    membership.greet(hello("extra"))
    membership.greet(hello("actor_000"))
    membership.heartbeat(
        hello("actor_001"),
        Heartbeat(
            phase="stepping", param_version=3, env_steps=40, env_steps_per_s=12.34,
            episodes=2, mean_return=-20.5,
        ),
    )  # fmt: skip
    clock.now += 1.5
    rows = membership.actors()
    assert [row.slot for row in rows] == [0, 1, 2]
    assert rows[1] == ActorReport(
        actor_id="actor_001", slot=1, pid=77, state="stepping", env_steps=40,
        env_steps_per_s=12.3, param_version=3, heartbeat_age_s=1.5, episodes=2,
        mean_return=-20.5, env_faults=0,
    )  # fmt: skip


def test_env_steps_add_up_over_actors_and_their_restarts():
    membership, _ = make(2, env_steps=1000)
    for name in ("actor_000", "actor_001"):
        membership.greet(hello(name, epoch=1))
        membership.heartbeat(hello(name), beat(0))
    membership.heartbeat(hello("actor_000"), beat(50))
    membership.heartbeat(hello("actor_001"), beat(30))
    membership.heartbeat(hello("actor_000"), beat(70))
    assert membership.env_steps == 1100
    membership.greet(hello("actor_000", epoch=1))  # reconnected: no step is counted twice
    membership.heartbeat(hello("actor_000"), beat(80))
    assert membership.env_steps == 1110
    membership.greet(hello("actor_000", epoch=2))  # restarted: counts from zero
    membership.heartbeat(hello("actor_000"), beat(0))
    membership.heartbeat(hello("actor_000"), beat(5))
    assert membership.env_steps == 1115


def test_env_steps_are_not_counted_again_when_the_learner_restarts():
    """An actor that kept running reports all steps since its own start."""
    before, _ = make(1)
    before.greet(hello("actor_000", epoch=1))
    before.heartbeat(hello("actor_000"), beat(0))
    before.heartbeat(hello("actor_000"), beat(5000))
    after, _ = make(1, before.env_steps, before.records)
    welcome = after.greet(hello("actor_000", epoch=1))
    after.heartbeat(hello("actor_000"), beat(5010))
    after.heartbeat(hello("actor_000"), beat(5030))
    assert (after.env_steps, welcome.incarnation) == (5030, 0)
    # An actor that restarted meanwhile counts from zero, as another incarnation.
    other, _ = make(1, before.env_steps, before.records)
    welcome = other.greet(hello("actor_000", epoch=2))
    other.heartbeat(hello("actor_000"), beat(30))
    assert (other.env_steps, welcome.incarnation) == (5030, 1)


def test_env_steps_past_the_checkpoint_are_counted_after_the_learners_restart():
    """The checkpoint is older than the last heartbeats; the actor reports the missing steps."""
    after, _ = make(1, 4000, {"actor_000": ActorRecord(1, incarnation=3, slot=0, env_steps=4000)})
    assert after.greet(hello("actor_000", epoch=1)).incarnation == 3
    after.heartbeat(hello("actor_000"), beat(5000))
    assert after.env_steps == 5000


def test_older_start_of_a_name_is_superseded():
    membership, _ = make(1)
    membership.greet(hello("actor_000", epoch=2))
    with pytest.raises(RefusedError) as error:
        membership.greet(hello("actor_000", epoch=1))
    assert error.value.code == "superseded" and membership.knows(hello("actor_000", epoch=2))


def test_evaluator_with_an_actors_name_is_a_separate_member():
    membership, _ = make(1)
    membership.greet(hello("actor_000", epoch=5))
    membership.heartbeat(hello("actor_000", epoch=5), beat(10))
    false = hello("actor_000", "evaluator", epoch=9)
    assert membership.greet(false).slot == -1
    membership.heartbeat(false, beat(700))
    assert membership.knows(hello("actor_000", epoch=5)) and membership.env_steps == 10
    assert [row.env_steps for row in membership.actors()] == [10]


def test_total_env_steps_are_capped_at_2_to_the_53():
    membership, _ = make(1)
    for epoch in range(3):
        membership.greet(hello("actor_000", epoch=epoch))
        membership.heartbeat(hello("actor_000", epoch=epoch), beat(2**53))
    assert membership.env_steps == 2**53


def test_mean_of_large_returns_is_finite():
    membership, _ = make(1)
    report = EvaluationReport(returns=(1.5e308, 1.5e308))
    assert membership.evaluation(report) == 1.5e308


def test_env_steps_are_not_counted_again_when_an_extra_actor_was_away():
    """For example stopped for a minute: it lost its slot, but its epoch is the same."""
    membership, clock = make(1)
    membership.greet(hello("extra", epoch=1))
    membership.heartbeat(hello("extra"), beat(0))
    membership.heartbeat(hello("extra"), beat(5000))
    clock.now += 60
    assert membership.actors() == ()
    membership.greet(hello("extra", epoch=1))
    membership.heartbeat(hello("extra"), beat(5010))
    assert membership.env_steps == 5010


def test_evaluator_has_no_slot_and_is_not_listed_as_an_actor():
    membership, _ = make(1)
    assert membership.greet(hello("evaluator", "evaluator")).slot == -1
    assert membership.actors() == () and membership.evaluator().phase is None
    membership.heartbeat(hello("evaluator", "evaluator"), Heartbeat(phase="evaluating"))
    assert membership.actors() == () and membership.evaluator().phase == "evaluating"
    assert membership.evaluator().episode_steps == 0
    evaluating = Heartbeat(phase="evaluating", env_steps=70_000)
    membership.heartbeat(hello("evaluator", "evaluator"), evaluating)
    assert membership.evaluator().episode_steps == 70_000 and membership.env_steps == 0
    assert membership.greet(hello("extra")).slot == 1


def test_member_is_known_by_name_and_epoch():
    membership, _ = make(1)
    membership.greet(hello("actor_000", epoch=3))
    assert membership.knows(hello("actor_000", epoch=3))
    assert not membership.knows(hello("actor_000", epoch=4))
    assert not membership.knows(hello("actor_001", epoch=3))


def test_measured_scalars_are_those_of_the_last_heartbeat_and_evaluation():
    membership, _ = make(1)
    greeting = hello("actor_000")
    membership.greet(greeting)
    membership.heartbeat(greeting, Heartbeat(phase="stepping", metrics={"success": 0.25}))
    assert membership.actors()[0].metrics == {"success": 0.25}
    assert membership.evaluator().metrics == {}
    for value in (0.5, 0.75):
        membership.evaluation(EvaluationReport(returns=(1.0,), metrics={"success": value}))
    assert membership.evaluator().metrics == {"success": 0.75}


def test_evaluations_give_means_and_the_best_whole_one():
    membership, _ = make(1)
    means = [
        membership.evaluation(EvaluationReport(returns=returns))
        for returns in ((1.0, 3.0), (-5.0, 21.0, 2.0), (0.0, 0.0))
    ]
    assert means == [2.0, 6.0, 0.0]
    assert membership.evaluator() == EvaluationsReport(
        phase=None, env_faults=0, episodes=7, mean_return=0.0, best_mean_return=6.0
    )
    assert membership.best_return == pytest.approx(6.0)


def test_oldest_member_is_forgotten_when_there_are_too_many():
    membership, _ = make(1, max_members=3)
    for name in ("actor_000", "a", "b", "a", "c"):
        membership.greet(hello(name))
    assert list(membership.records) == ["b", "a", "c"]
    assert not membership.knows(hello("actor_000")) and membership.knows(hello("b"))


def test_forgotten_actor_can_greet_again():
    membership, _ = make(1, max_members=3)
    membership.greet(hello("actor_000"))
    for name in ("a", "b", "c", "d"):
        membership.greet(hello(name))
        membership.heartbeat(hello(name), Heartbeat(phase="leaving"))
    assert not membership.knows(hello("actor_000"))
    membership.greet(hello("actor_000"))
    membership.heartbeat(hello("actor_000"), Heartbeat(phase="stepping", env_steps=7))
    assert membership.env_steps == 7
