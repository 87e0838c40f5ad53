"""Health, bottleneck and alarms of literal reports; decoding of reports."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from apex.config.sections import ActorConfig, Config, EnvConfig, EvaluatorConfig, RunConfig
from apex.daemons.status.bottleneck import bottleneck, limiting_part
from apex.daemons.status.health import alarms, configured_alarms, health
from apex.daemons.status.reports import (
    InferenceSummary,
    LearnerAnswer,
    LearnerSummary,
    ReplayReport,
    ReplaySummary,
    from_wire,
    to_wire,
)
from apex.daemons.status.run_status import EvaluatorSummary, RunStatus
from apex.errors import DecodeError
from tests.support.statuses import (
    actor_report,
    inference_report,
    learner_report,
    replay_report,
    run_status,
)

NAMES = ("replay", "learner", "evaluator", "actor_000", "actor_001")
NO_LEARNER = LearnerSummary(state="down", pid=None)
NO_REPLAY = ReplaySummary(state="down", pid=None, capacity=10_000)
NO_EVALUATOR = EvaluatorSummary(state="down", pid=None)


# Health


def test_run_whose_daemons_all_work_is_healthy() -> None:
    assert health(run_status(), NAMES) == "healthy"
    waiting = actor_report(1, state="waiting_for_credit")
    warming_up = run_status(
        learner=learner_report(state="waiting"), actors=(actor_report(0), waiting)
    )
    assert health(warming_up, NAMES) == "healthy"
    central = run_status(
        inference=inference_report(), actors=(actor_report(0, state="waiting_for_actions"),)
    )
    assert health(central, ("replay", "learner", "inference", "actor_000")) == "healthy"


def test_run_without_learner_and_replay_is_down() -> None:
    assert health(run_status(learner=NO_LEARNER, replay=NO_REPLAY), NAMES) == "down"
    assert health(run_status(learner=NO_LEARNER), NAMES) == "degraded"
    assert health(run_status(replay=NO_REPLAY), NAMES) == "degraded"


@pytest.mark.parametrize(
    "changed",
    [
        {"learner": LearnerSummary(state="silent", pid=11)},
        {"learner": learner_report(state="draining")},
        {"replay": replay_report(state="recovering")},
        {"inference": InferenceSummary(state="starting", pid=13)},
        {"inference": inference_report(state="waiting")},
        {"evaluator": NO_EVALUATOR},
        {"actors": (actor_report(0), actor_report(1, state="suspect"))},
        {"actors": (actor_report(0), actor_report(1, state="recreating"))},
        {"actors": (actor_report(0, state="down", pid=None), actor_report(1))},
        {"run": {"alarms": ("the disk is full",)}},
    ],
    ids=str,
)  # fmt: skip
def test_run_is_degraded_by_one_daemon_or_one_alarm(changed: dict[str, Any]) -> None:
    assert health(run_status(**changed), (*NAMES, "inference")) == "degraded"


def test_attached_actor_counts_and_an_evaluator_that_was_not_asked_for_does_not() -> None:
    without = ("replay", "learner", "actor_000", "actor_001")
    assert health(run_status(evaluator=NO_EVALUATOR), without) == "healthy"
    for state, expected in (("stepping", "healthy"), ("suspect", "degraded")):
        attached = actor_report(0, actor_id="far-away", slot=2, state=state)
        status = run_status(actors=(actor_report(0), actor_report(1), attached))
        assert health(status, NAMES) == expected


# Bottleneck


def test_bottleneck_is_a_missing_daemon() -> None:
    assert bottleneck(run_status(learner=NO_LEARNER, replay=NO_REPLAY)) == "down: learner"
    assert bottleneck(run_status(replay=NO_REPLAY)) == "down: replay"


def test_bottleneck_is_a_daemon_that_is_starting() -> None:
    starting = LearnerSummary(state="starting", pid=11)
    assert bottleneck(run_status(learner=starting)) == "starting: learner"


@pytest.mark.parametrize(
    ("learner", "replay"), [("waiting", "running"), ("training", "recovering")]
)
def test_bottleneck_at_first_is_the_warm_up(learner: str, replay: str) -> None:
    few = replay_report(state=replay, items=400)
    status = run_status(learner=learner_report(state=learner), replay=few)
    assert (
        bottleneck(status)
        == "warm-up: replay has 400 of the 1000 items that training needs to start"
    )
    enough = replay_report(state=replay, items=1_000)
    status = run_status(learner=learner_report(state=learner), replay=enough)
    assert bottleneck(status) == "learner: it computes all the time"


@pytest.mark.parametrize(
    ("wait", "waiting_samples", "blocked", "expected"),
    [
        (0.11, 1, 0, "actors: the learner waits for their items (samples_per_insert)"),
        (0.11, 0, 2, "data path: the learner waits for batches that replay could serve"),
        (0.10, 1, 1, "learner: actors wait for it (samples_per_insert)"),
        (0.10, 1, 0, "learner: it computes all the time"),
        (None, 1, 0, "learner: it computes all the time"),
    ],
)
def test_bottleneck_is_what_the_others_wait_for(
    wait: float | None, waiting_samples: int, blocked: int, expected: str
) -> None:
    found = limiting_part(
        data_wait_fraction=wait, waiting_samples=waiting_samples, blocked_actors=blocked
    )
    assert found == expected
    states = ["waiting_for_credit"] * blocked + ["stepping"] * (2 - blocked)
    status = run_status(
        learner=learner_report(data_wait_fraction=wait) if wait is not None else
        LearnerSummary(state="silent", pid=11),
        replay=replay_report(waiting_samples=waiting_samples),
        actors=tuple(actor_report(index, state=state) for index, state in enumerate(states)),
    )  # fmt: skip
    assert bottleneck(status) == expected


def test_bottleneck_is_derived_from_the_learner_when_replay_does_not_answer() -> None:
    silent = ReplaySummary(state="silent", pid=12, capacity=10_000)
    status = run_status(learner=learner_report(data_wait_fraction=0.5), replay=silent)
    assert bottleneck(status) == "data path: the learner waits for batches that replay could serve"


# Alarms


def test_no_alarm_without_a_reason() -> None:
    assert alarms(run_status(inference=inference_report())) == []
    assert alarms(run_status(learner=NO_LEARNER, replay=NO_REPLAY)) == []


def test_disk_alarms_name_what_is_not_saved() -> None:
    status = run_status(
        learner=learner_report(alarm="no checkpoint at step 7: the disk is full"),
        replay=replay_report(alarm="the disk is full", durable=False),
    )
    assert alarms(status) == [
        "inserts are not durable: the disk is full",
        "the newest training is not saved: no checkpoint at step 7: the disk is full",
    ]


@pytest.mark.parametrize("name", ["learner", "replay", "inference"])
def test_process_near_its_open_file_limit_raises_an_alarm(name: str) -> None:
    make = {"learner": learner_report, "replay": replay_report, "inference": inference_report}
    limit = run_status(**{name: make[name](open_files=16_000)})
    assert alarms(limit) == []
    (alarm,) = alarms(run_status(**{name: make[name](open_files=16_001)}))
    assert alarm == (
        f"{name} has 16001 open files of at most 20000: check for an excess of connections to its "
        "endpoints"
    )


# Answers


def test_report_round_trip_is_equal() -> None:
    answer = LearnerAnswer(
        learner=learner_report(), env_steps=5_000, actors=(actor_report(0),),
        evaluator=to_evaluations(),
    )  # fmt: skip
    assert from_wire(to_wire(answer), LearnerAnswer) == answer
    assert from_wire(to_wire(replay_report()), ReplayReport) == replay_report()


def to_evaluations() -> Any:
    from apex.daemons.status.reports import EvaluationsReport

    return EvaluationsReport(phase="idle", episodes=20, mean_return=1.5, best_mean_return=2.0)


def test_report_with_unknown_fields_and_whole_numbers_is_accepted() -> None:
    answer = to_wire(replay_report()) | {"shards": 3, "inserts_per_s": 300}
    assert from_wire(answer, ReplayReport) == replay_report()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"items": "many"}, r"Expected `int`, got `str` - at `\$.items`"),
        ({"items": 3.5}, r"Expected `int`, got `float` - at `\$.items`"),
        ({"refused_by": [1]}, r"Expected `object`, got `array` - at `\$.refused_by`"),
        ({"min_size": None}, r"Expected `int`, got `null` - at `\$.min_size`"),
    ],
)
def test_report_with_a_wrong_type_is_refused_with_its_field(
    changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(
        DecodeError, match=f"not a valid ReplayReport: {reason}; install the same version"
    ):
        from_wire(to_wire(replay_report()) | changed, ReplayReport)


def test_report_without_a_field_is_refused_with_its_name() -> None:
    answer = to_wire(replay_report())
    del answer["min_size"]
    with pytest.raises(DecodeError, match="missing required field `min_size`"):
        from_wire(answer, ReplayReport)


# Episodes without an end, and items that are refused


def configured(**run: Any) -> Config:
    """A configuration of two actors with four environments each."""
    return Config(
        env=EnvConfig(id="own"),
        algorithm={"name": "apex_dqn"},
        run=RunConfig(**run),
        actor=ActorConfig(count=2, num_envs=4),
    )


def test_actors_whose_episodes_never_end_raise_an_alarm_with_the_remedy() -> None:
    def actors(steps: int, episodes: int) -> RunStatus:
        rows = (actor_report(0, env_steps=steps, episodes=0),
                actor_report(1, env_steps=steps, episodes=episodes))  # fmt: skip
        return run_status(actors=rows)

    assert configured_alarms(actors(399_999, 0), configured()) == []
    assert configured_alarms(actors(400_000, 1), configured()) == []
    (alarm,) = configured_alarms(actors(400_000, 0), configured())
    assert alarm == (
        "no episode has ended after 800,000 steps of 8 environments: there are no returns; set "
        "env.max_episode_steps if episodes may be endless"
    )
    (alarm,) = configured_alarms(actors(400_000, 0), configured(until_return=5.0))
    assert "run.until_return cannot end the run; set env.max_episode_steps" in alarm


def test_evaluation_whose_episode_does_not_end_raises_an_alarm() -> None:
    def evaluator(steps: int) -> RunStatus:
        row = EvaluatorSummary(state="running", pid=14, phase="evaluating", episode_steps=steps)
        return run_status(evaluator=row)

    assert configured_alarms(evaluator(99_999), configured()) == []
    (alarm,) = configured_alarms(evaluator(100_000), configured())
    assert alarm.startswith("an episode of the evaluation has not ended after 100,000 steps; set")


def test_run_without_actors_raises_no_alarm_about_episodes() -> None:
    assert configured_alarms(run_status(actors=()), configured()) == []


def test_refused_chunks_are_counted_in_an_alarm_with_their_reason() -> None:
    replay = replay_report(
        refused_by={"bad_chunk": 2822}, refused_chunk="of actor_001: priorities: expected 0 to 1"
    )
    status = run_status(replay=replay)
    assert alarms(status) == [
        "items are lost: replay has refused 2,822 chunks, the last one of actor_001: priorities: "
        "expected 0 to 1"
    ]
    long_ago = replay_report(refused_by={"bad_chunk": 2822})
    assert alarms(run_status(replay=long_ago)) == []


def test_return_that_ends_the_run_needs_evaluations() -> None:
    config = msgspec.structs.replace(
        configured(until_return=5.0), evaluator=EvaluatorConfig(enabled=False)
    )
    (alarm,) = configured_alarms(run_status(), config)
    assert alarm.endswith("without evaluations: set evaluator.enabled = true")


def test_items_that_are_not_learned_from_raise_an_alarm_if_they_are_many() -> None:
    def learner(corrupt_items: int, learner_step: int) -> RunStatus:
        report = learner_report(corrupt_items=corrupt_items, learner_step=learner_step)
        return run_status(learner=report)

    # Batches have 32 items: 10,000 steps sample 320,000.
    assert configured_alarms(learner(999, 0), configured()) == []
    assert configured_alarms(learner(31_999, 10_000), configured()) == []
    (alarm,) = configured_alarms(learner(32_000, 10_000), configured())
    assert alarm.startswith("32,000 sampled items were not learned from: the learner's log")
    assert len(configured_alarms(learner(1000, 0), configured())) == 1
