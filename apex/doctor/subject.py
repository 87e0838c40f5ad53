"""The preset or run that the checks are about."""

from __future__ import annotations

from dataclasses import dataclass, replace

from apex.config.sections import Config
from apex.data.schema import Schema
from apex.errors import ApexError
from apex.plugins import FACTORY
from apex.runs.directory import RunDirectory


@dataclass(frozen=True)
class Subject:
    """A preset or run that this machine is to run.

    Args:
        name: `preset NAME` or `run PATH`, for messages.
        config: its configuration, as this machine would run it.
        run: the run; None: a preset, for a new run.
        environment: description of its environment; empty if it could not be made.
        failure: why the environment or the algorithm cannot be used; empty if they can.
        schema: schema of its items, if known.
        parameter_bytes: bytes of the network's parameters, if known.
        activation_bytes: bytes of the network's activations for one item, if known.
    """

    name: str
    config: Config
    run: RunDirectory | None = None
    environment: str = ""
    failure: str = ""
    schema: Schema | None = None
    parameter_bytes: int = 0
    activation_bytes: int = 0

    @property
    def running(self) -> bool:
        """Whether its daemons are running now."""
        return self.run is not None and bool(self.run.living())


def preset_subject(name: str) -> Subject:
    """Subject of a preset, fitted to this machine.

    Raises:
        ConfigError: an unknown preset, or one that cannot be used.
        ImportError: torch is missing.
    """
    from apex.launch.prepare import preset_config

    return _with_trial(Subject(f"preset {name}", preset_config(name, [])))


def run_subject(run: RunDirectory) -> Subject:
    """Subject of a run. Raises `ApexError` if its files cannot be used."""
    facts = run.facts()
    subject = Subject(f"run {run.path}", run.config(), run=run, schema=facts.schema)
    if facts.env.env_id.startswith(FACTORY):
        return replace(subject, environment=f"{facts.env.env_id}, from a script")
    return _with_trial(subject)


def _with_trial(subject: Subject) -> Subject:
    """Try the subject's environment and algorithm, and add the results to it."""
    from apex.doctor.activations import activation_bytes
    from apex.launch.preflight import try_config

    try:
        trial = try_config(subject.config, steps=0)
        network = trial.algorithm.policy().network
        activations = activation_bytes(trial.algorithm)
    except ApexError as error:
        return replace(subject, failure=str(error))
    spec = trial.spec
    return replace(
        subject,
        config=trial.config,
        schema=subject.schema or trial.schema,
        environment=f"{spec.env_id}, observations {spec.observations_text}",
        parameter_bytes=sum(p.numel() * p.element_size() for p in network.parameters()),
        activation_bytes=activations,
    )
