"""Execute a learner's updates: eagerly, or by replaying a recorded update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from statistics import median
from typing import Any, Protocol

from apex.algos.base import Learner, Update
from apex.errors import ApexError
from apex.execution.comparison import (
    LearnerState,
    changed_value,
    copied,
    difference,
    host_values,
)
from apex.execution.recorders import Moment, Recorder
from apex.execution.static_batches import StaticBatch, form_of, without_episode_edges

log = logging.getLogger("apex.learner")

WARM_UP = 3
"""Updates of a form of batch that run eagerly before one is recorded."""
COMPARED = 3
"""Replayed updates that are compared with eager ones."""
TIMED = 20
"""Updates of either kind that are timed, where the faster one is wanted."""
FAR = 10**6
"""Updates by which the learner's count is moved, to see whether an update depends on it."""
MOST_FORMS = 4
"""Forms of batches that are recorded; each takes memory of its own."""


class Execution(Protocol):
    """Makes updates from batches on the learner's device."""

    def __call__(self, batch: Any) -> Update:
        """Make one update. The next one may overwrite the tensors of its result."""

    def reset(self) -> None:
        """Forget what was recorded, after a checkpoint was loaded into the learner."""


class Eager:
    """Runs each update in Python.

    Args:
        learner: makes the updates.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def __call__(self, batch: Any) -> Update:
        """Make one update."""
        return self._learner.run_update(batch)

    def reset(self) -> None:
        """Do nothing: nothing is recorded."""


class _Graph:
    """The recorded update of one form of batch, and how far its recording is."""

    def __init__(self) -> None:
        self.static: StaticBatch | None = None
        self.replay: Callable[[], None] | None = None
        self.result: Update | None = None
        self.warm_ups = self.compared = 0
        self.eager_ms: list[tuple[Moment, Moment]] = []
        self.replay_ms: list[tuple[Moment, Moment]] = []
        self.refused = False


class Graphed:
    """Records the update of each form of batch, and replays it for further batches.

    The first updates of a form run eagerly. Then one is recorded, and the next `COMPARED` are both
    replayed and run, from the same state: if they differ, or Python values change in an update,
    the form stays eager, and the log says why. A batch of fewer items than `batch_size`, from
    which corrupt ones were removed, is padded with items of weight 0.

    Args:
        learner: makes the updates.
        recorder: records them.
        batch_size: items of a batch; other batches run eagerly.
        only_if_faster: time both kinds, and replay only if that is faster.
    """

    def __init__(
        self, learner: Learner, recorder: Recorder, batch_size: int, *, only_if_faster: bool = False
    ) -> None:
        self._learner, self._recorder, self._batch_size = learner, recorder, batch_size
        self._timed = TIMED if only_if_faster else 0
        self._graphs: dict[Hashable, _Graph] = {}
        self._too_many = False

    @property
    def replays(self) -> bool:
        """Whether further batches of some form are replayed."""
        return any(graph.compared == COMPARED for graph in self._graphs.values() if graph.replay)

    def reset(self) -> None:
        """Forget the graphs: they hold the addresses of the optimizer's former averages."""
        self._graphs.clear()
        self._too_many = False
        self._recorder.forget()

    def __call__(self, batch: Any) -> Update:
        """Make one update."""
        fixed = without_episode_edges(batch)
        graph, rows = self._graph_of(fixed)
        if graph is None or rows is None or (rows != self._batch_size and graph.replay is None):
            return self._learner.run_update(batch)
        if len(graph.eager_ms) < self._timed:
            return self._timed_run(graph, batch)
        if graph.static is None:
            graph.static = StaticBatch(fixed, self._batch_size)
        graph.static.fill(fixed, rows)
        update = self._update(graph, graph.static)
        return update._replace(priorities=update.priorities[:rows])

    def _update(self, graph: _Graph, static: StaticBatch) -> Update:
        """Make an update of the batch in the graph's memory."""
        if graph.warm_ups < WARM_UP:
            graph.warm_ups += 1
            return self._recorder.warm_up(lambda: self._learner.run_update(static.batch))
        if graph.replay is None and not self._record(graph, static):
            return self._learner.run_update(static.batch)
        return self._compare(graph, static) if graph.compared < COMPARED else self._replay(graph)

    def _graph_of(self, batch: Any) -> tuple[_Graph | None, int | None]:
        """The graph of a batch's form, with the batch's items; None: the form stays eager."""
        form = form_of(batch)
        graph, rows = self._graphs.get(form.structure), form.rows
        if graph is None and rows == self._batch_size:
            if len(self._graphs) < MOST_FORMS:
                graph = self._graphs[form.structure] = _Graph()
                if len(self._graphs) > 1:
                    log.info("execution: another form of batch; it is recorded, too")
            elif not self._too_many:
                self._too_many = True
                log.warning(
                    "execution: eager for further forms of batches, since %d are recorded",
                    MOST_FORMS,
                )
        if graph is None or graph.refused:
            return None, rows
        short = rows is not None and 0 < rows < self._batch_size and self._learner.weighs_items
        return (graph if rows == self._batch_size or short else None), rows

    def _timed_run(self, graph: _Graph, batch: Any) -> Update:
        began = self._recorder.now()
        update = self._learner.run_update(batch)
        graph.eager_ms.append((began, self._recorder.now()))
        return update

    def _record(self, graph: _Graph, static: StaticBatch) -> bool:
        """Record an update; returns False if that is refused."""
        learner = self._learner
        state, values = LearnerState(learner), host_values(learner)
        try:
            graph.replay, graph.result = self._recorder.record(
                lambda: learner.run_update(static.batch)
            )
        except ApexError:
            raise
        except RuntimeError as error:  # such as an update that waits for the device
            return self._refuse(graph, f"the update cannot be recorded: {error}")
        finally:
            state.restore()
        changed = changed_value(values, host_values(learner))
        return self._refuse(graph, changed) if changed else True

    def _compare(self, graph: _Graph, static: StaticBatch) -> Update:
        """Replay the update and run it from the same state; compare, and keep the second."""
        assert graph.replay is not None and graph.result is not None
        learner = self._learner
        before = LearnerState(learner)
        graph.replay()
        replayed = copied(graph.result), LearnerState(learner)
        before.restore()
        differs = None
        if graph.compared == 0:  # a schedule by the number of updates, however slow, shows here
            learner.updates += FAR
            differs = self._difference(static, replayed, before)
            learner.updates -= FAR
            before.restore()
        update = learner.run_update(static.batch)
        run = update, LearnerState(learner)
        differs = differs or difference(replayed, run, before, self._recorder.tolerance)
        graph.compared += 1
        if differs:
            self._refuse(graph, f"a replay differs from the update that Python runs: {differs}")
        elif graph.compared == COMPARED and not self._timed:
            log.info("execution: updates are replayed as a graph")
        return update

    def _difference(
        self, static: StaticBatch, replayed: tuple[Update, LearnerState], before: LearnerState
    ) -> str | None:
        run = self._learner.run_update(static.batch), LearnerState(self._learner)
        return difference(replayed, run, before, self._recorder.tolerance)

    def _replay(self, graph: _Graph) -> Update:
        assert graph.replay is not None and graph.result is not None
        if len(graph.replay_ms) >= self._timed:
            graph.replay()
            return graph.result
        began = self._recorder.now()
        graph.replay()
        graph.replay_ms.append((began, self._recorder.now()))
        result = graph.result
        if len(graph.replay_ms) == self._timed:
            self._choose(graph)
        return result

    def _choose(self, graph: _Graph) -> None:
        """Stay with the graph only if it is faster."""
        eager, replayed = (
            median(began.ms_until(ended) for began, ended in pairs)
            for pairs in (graph.eager_ms, graph.replay_ms)
        )
        times = f"{replayed:.3g} ms an update replayed as a graph, {eager:.3g} ms run eagerly"
        if replayed < eager:
            log.info("execution: graph: %s", times)
        else:
            self._refuse(graph, times)

    def _refuse(self, graph: _Graph, reason: str) -> bool:
        """Stay eager for a form of batch; returns False."""
        log.warning("execution: eager: %s", reason)
        graph.refused, graph.replay, graph.result, graph.static = True, None, None, None
        return False
