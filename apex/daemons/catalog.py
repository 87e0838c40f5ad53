"""Catalog of the daemon kinds: when a run has each, how it starts and stops, what it needs.

The supervisord programs, the launcher, the names of processes, the doctor's budgets, the rows of
a status and the table of daemons in ARCHITECTURE.md are derived from it. A new daemon needs a
package and an entry here.
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
    """Return a function that gives the same value for every configuration."""
    return lambda config: value


@dataclass(frozen=True, kw_only=True)
class DaemonSpec:
    """One kind of daemon."""

    kind: str
    """Name of the kind and of its executable in `bin/`; numbered processes are `KIND_NNN`."""
    body: str
    """The function that the daemon runs, as `module:function`; only its process imports it."""
    start_order: int
    """Lower numbers start first and stop last; those with the same number stop together."""
    enabled: Callable[[Config], bool] | None = None
    """Whether a run has this daemon; None: every run does."""
    count: Callable[[Config], int] | None = None
    """How many processes a run has, numbered by name; None: one, without a number."""
    stop_timeout_s: float = 10.0
    """Seconds to drain before the engine kills the process."""
    takes_extensions: bool = True
    """Whether the body takes the environment and algorithm that a script passes in."""
    role: Role | None = None
    """Role in which it connects to endpoints; None: it connects to none."""
    binds: tuple[str, ...] = ()
    """Endpoints that it serves."""
    status_endpoint: str | None = None
    """The endpoint of `binds` that answers STATUS."""
    healthy_states: tuple[str, ...] = ("running",)
    """States in `apex status` that count as healthy."""
    connects: Callable[[Config], tuple[str, ...]]
    """Endpoints of other daemons to which it connects."""
    torch: Callable[[Config], Torch]
    """Whether it imports torch, and where it computes."""
    own_threads: tuple[str, ...] = ()
    """Essential threads; when one of them crashes, the process ends."""
    threads: Callable[[Config], int]
    """Maximum threads of the process without those of BLAS; measured and rounded up."""
    memory_bytes: Callable[[Config], float]
    """Resident bytes of the process without table, batches and parameters; measured."""

    def names(self, config: Config) -> list[str]:
        """Names of all processes of this kind that a run's engine keeps alive."""
        if self.enabled is not None and not self.enabled(config):
            return []
        if self.count is None:
            return [self.kind]
        return [self.name(index) for index in range(self.count(config))]

    def name(self, index: int) -> str:
        """Name of a numbered process: `actor_003` for 3."""
        return f"{self.kind}_{index:03d}"

    def index(self, name: str) -> int:
        """Number in a process's name: 3 for `actor_003`."""
        return int(name.removeprefix(f"{self.kind}_"))

    def load_body(self) -> Callable[..., Any]:
        """Import and return the body."""
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
    stop_timeout_s=40.0,  # to write the last checkpoint
    role="learner",
    binds=("learner.params",),
    status_endpoint="learner.params",
    healthy_states=("waiting", "training"),
    connects=always(("replay.sample",)),
    torch=always("yes"),
    own_threads=("params-server", "prefetch"),
    threads=lambda config: 14 + config.learner.decode_threads + config.learner.torch_threads,
    # Measured: 320 to 600 MB, the most with sequences, whose freed memory torch keeps.
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
    torch=always("yes"),
    threads=lambda config: 9 + config.evaluator.torch_threads,
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
    # Measured without torch, with eight Atari environments: 65 MB.
    memory_bytes=lambda config: 80e6 if config.central else ACTOR_BYTES,
)

CATALOG = (REPLAY, LEARNER, INFERENCE, EVALUATOR, ACTOR)
"""All kinds, in start order."""


def daemon_names(config: Config) -> list[str]:
    """Names of the daemons that an engine keeps alive, in start order."""
    return [name for spec in CATALOG for name in spec.names(config)]


def spec_of(name: str) -> DaemonSpec:
    """Return the kind of a daemon from its name; attached actors included.

    Raises:
        ValueError: the name belongs to no kind.
    """
    for spec in CATALOG:
        if name == spec.kind or (spec.count is not None and name.startswith(f"{spec.kind}_")):
            return spec
    raise ValueError(f"expected the name of a daemon ({_example_names()}), got '{name}'")


def _example_names() -> str:
    return ", ".join(spec.kind if spec.count is None else spec.name(0) for spec in CATALOG)
