"""What is to run on this machine: a preset, or the configuration of a run that is there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from apex.config.sections import Config
from apex.data.schema import Schema
from apex.errors import ApexError
from apex.plugins import FACTORY
from apex.runs.directory import RunDirectory


@dataclass(frozen=True)
class Subject:
    """What the machine is measured by.

    Args:
        name: for people: a preset's or a run's.
        config: as this machine would run it.
        run: where it runs, or ran; None: it would be a new run.
        environment: what was made of the environment; empty if nothing was.
        failure: why the environment or the algorithm cannot be used; empty if they can.
        schema: of the items, once known.
        parameter_bytes: of the network, once known.
    """

    name: str
    config: Config
    run: RunDirectory | None = None
    environment: str = ""
    failure: str = ""
    schema: Schema | None = None
    parameter_bytes: int = 0

    @property
    def running(self) -> bool:
        """Whether its daemons run now."""
        return self.run is not None and bool(self.run.living())


def preset_subject(name: str) -> Subject:
    """A preset, fitted to this machine. Raises `ConfigError`, or `ImportError` without torch."""
    from apex.launch.prepare import preset_config

    return _tried(Subject(f"preset {name}", preset_config(name, [])))


def run_subject(run: RunDirectory) -> Subject:
    """A run. Raises `ApexError` where its files cannot be used."""
    facts = run.facts()
    subject = Subject(f"run {run.path}", run.config(), run=run, schema=facts.schema)
    if facts.env.env_id.startswith(FACTORY):
        return replace(subject, environment=f"{facts.env.env_id}, of a script")
    return _tried(subject)


def _tried(subject: Subject) -> Subject:
    """The subject with what a trial of its environment and its algorithm shows."""
    from apex.launch.preflight import try_config

    try:
        trial = try_config(subject.config, steps=0)
        network = trial.algorithm.policy().network
    except ApexError as error:
        return replace(subject, failure=str(error))
    spec = trial.spec
    return replace(
        subject,
        config=trial.config,
        schema=subject.schema or trial.schema,
        environment=f"{spec.env_id}, observations {spec.policy_shape} {spec.observation_dtype}",
        parameter_bytes=sum(p.numel() * p.element_size() for p in network.parameters()),
    )
