"""The kinds of daemon: when a run has each, how it is started and ended, and what it needs.

From this list come the supervisord programs, what the launcher starts, the names of processes,
the doctor's budgets, the rows of a status, and the table of daemons in ARCHITECTURE.md. A new
daemon is a package of its own and one entry here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from apex.config.machine_fitting import ACTOR_BYTES
from apex.config.sections import Config
from apex.wire.messages import Role

Torch: TypeAlias = Literal["never", "yes", "yes, on the CPU"]
Value = TypeVar("Value")


def always(value: Value) -> Callable[[Config], Value]:
    """The same value for every configuration."""
    return lambda config: value


@dataclass(frozen=True, kw_only=True)
class DaemonSpec:
    """One kind of daemon."""

    kind: str
    """Its name, and that of its executable in `bin/`; numbered ones are `KIND_NNN`."""
    body: str
    """The function that it runs, as `module:function`; only its own process imports it."""
    start_order: int
    """Lower ones are started first and ended last; those of one number end together."""
    enabled: Callable[[Config], bool] | None = None
    """Whether a run has it; None: every run has it."""
    count: Callable[[Config], int] | None = None
    """How many a run has, each with a number in its name; None: one, without a number."""
    stop_timeout_s: float = 10.0
    """Seconds that it may take to drain before its engine kills it."""
    takes_extensions: bool = True
    """Whether its body also takes the environment and algorithm that a script brought."""
    role: Role | None = None
    """How it introduces itself at the endpoints of others; None: it connects to none."""
    binds: tuple[str, ...] = ()
    """Endpoints that it serves."""
    status_endpoint: str | None = None
    """The one of them that answers STATUS."""
    healthy_states: tuple[str, ...] = ("running",)
    """States of its row in a status in which it does its work."""
    connects: Callable[[Config], tuple[str, ...]]
    """Endpoints of others that it uses."""
    torch: Callable[[Config], Torch]
    """Whether it imports torch, and where it computes."""
    own_threads: tuple[str, ...] = ()
    """Threads of its own code; without one of them the daemon is not whole and ends."""
    threads: Callable[[Config], int]
    """Threads of the process at most, without those of NumPy's algebra: measured, rounded up."""
    memory_bytes: Callable[[Config], float]
    """Resident memory of the process, without table, batches and parameters: measured."""

    def names(self, config: Config) -> list[str]:
        """The names of all processes of this kind that a run's engine keeps alive."""
        if self.enabled is not None and not self.enabled(config):
            return []
        if self.count is None:
            return [self.kind]
        return [self.name(index) for index in range(self.count(config))]

    def name(self, index: int) -> str:
        """The name of a numbered process: `actor_003` for 3."""
        return f"{self.kind}_{index:03d}"

    def index(self, name: str) -> int:
        """The number in a name: 3 for `actor_003`."""
        return int(name.removeprefix(f"{self.kind}_"))

    def load_body(self) -> Callable[..., Any]:
        """Import the body."""
        module, _, function = self.body.partition(":")
        body: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return body


REPLAY = DaemonSpec(
    kind="replay",
    body="apex.daemons.replay.daemon:body",
    start_order=1,
    takes_extensions=False,
    binds=("replay.insert", "replay.sample"),
    status_endpoint="replay.sample",
    connects=always(()),
    torch=always("never"),
    threads=always(12),
    memory_bytes=always(60e6),
)
LEARNER = DaemonSpec(
    kind="learner",
    body="apex.daemons.learner.daemon:body",
    start_order=2,
    stop_timeout_s=40.0,  # it writes its last checkpoint
    role="learner",
    binds=("learner.params",),
    status_endpoint="learner.params",
    healthy_states=("waiting", "training"),
    connects=always(("replay.sample",)),
    torch=always("yes"),
    own_threads=("params-server", "prefetch"),
    threads=lambda config: 14 + config.learner.decode_threads + config.learner.torch_threads,
    # 320 to 600 MB were measured, most where torch keeps what sequences freed.
    memory_bytes=always(650e6),
)
INFERENCE = DaemonSpec(
    kind="inference",
    body="apex.daemons.inference.daemon:body",
    start_order=3,
    enabled=lambda config: config.central,
    role="inference",
    binds=("inference.act",),
    status_endpoint="inference.act",
    connects=always(("replay.insert", "learner.params")),
    torch=always("yes"),
    threads=lambda config: 9 + config.inference.torch_threads,
    memory_bytes=always(ACTOR_BYTES),
)
EVALUATOR = DaemonSpec(
    kind="evaluator",
    body="apex.daemons.evaluator.daemon:body",
    start_order=3,
    enabled=lambda config: config.evaluator.enabled,
    role="evaluator",
    connects=always(("learner.params",)),
    torch=always("yes, on the CPU"),
    threads=always(10),
    memory_bytes=always(ACTOR_BYTES),
)
ACTOR = DaemonSpec(
    kind="actor",
    body="apex.daemons.actor.daemon:body",
    start_order=4,
    count=lambda config: config.actor.count,
    role="actor",
    healthy_states=("stepping", "waiting_for_credit", "waiting_for_actions"),
    connects=lambda config: (
        ("inference.act", "learner.params")
        if config.central
        else ("replay.insert", "learner.params")
    ),
    torch=lambda config: "never" if config.central else "yes, on the CPU",
    threads=lambda config: 9 + config.actor.torch_threads,
    # With eight Atari environments and no torch: 65 MB.
    memory_bytes=lambda config: 80e6 if config.central else ACTOR_BYTES,
)

CATALOG = (REPLAY, LEARNER, INFERENCE, EVALUATOR, ACTOR)
"""Every kind, in the order in which they are started."""


def daemon_names(config: Config) -> list[str]:
    """The daemons that an engine keeps alive, in the order in which it starts them."""
    return [name for spec in CATALOG for name in spec.names(config)]


def spec_of(name: str) -> DaemonSpec:
    """The kind of a daemon by its name; also of an attached actor, which no engine knows."""
    for spec in CATALOG:
        if name == spec.kind or (spec.count is not None and name.startswith(f"{spec.kind}_")):
            return spec
    raise ValueError(f"'{name}' is not a daemon of apex: expected one of {_kinds()}")


def _kinds() -> str:
    return ", ".join(spec.kind if spec.count is None else spec.name(0) for spec in CATALOG)
