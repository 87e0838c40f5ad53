"""Examples of every message kind."""

from __future__ import annotations

from apex.wire import messages
from tests.support.builders import hello

EVERY_MESSAGE = [
    hello(),
    messages.Welcome(instance=2**62, credits=4, last_seq=7, slot=2, incarnation=1),
    messages.Error(code="x", detail="größer"),
    messages.Insert(seq=3),
    messages.InsertAck(seq=3, credits=4),
    messages.Sample(request_id=9, batch_size=512),
    messages.SampleReply(request_id=9, table_items=10),
    messages.UpdatePriorities(),
    messages.Act(seq=0, begins=True, slot=3, incarnation=1),
    messages.Actions(seq=0),
    messages.Leave(),
    messages.GetParams(newer_than=-1),
    messages.Params(param_version=1, learner_step=2, env_steps=3, train_s=1.5, crc32=2**32 - 1),
    messages.NotModified(),
    messages.Heartbeat(phase="stepping", mean_return=None),
    messages.Heartbeat(phase="idle", mean_return=-20.5, env_steps_per_s=1e3),
    messages.Heartbeat(phase="stepping", metrics={"success": 0.25}),
    messages.HeartbeatAck(learner_step=1),
    messages.EvaluationReport(returns=(1.0, -2.5)),
    messages.EvaluationReport(returns=(1.0,), metrics={"success": 1.0, "distance": -0.5}),
    messages.ReportMoments(seq=2, counts={"observation": 40, "discounted_return": 8}),
    messages.MomentsAck(seq=2),
    messages.Ack(),
    messages.Status(),
    messages.StatusReply(status={"items": 3, "nested": {"a": [1.5, None, "x", True]}}),
    messages.Snapshot(),
    messages.SnapshotReply(snapshot_id=4, saved={"items": 3, "durable": True}),
]
