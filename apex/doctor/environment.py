"""Check the environment: its packages, its ROMs, and whether it can be made."""

from __future__ import annotations

from collections.abc import Iterator

from apex.doctor.findings import Finding

EXTRA_OF_PACKAGE = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco"}
"""Extra of apex, by the package of gymnasium that has the environment."""


def is_atari(env_id: str) -> bool:
    """Whether an environment is an Atari game of ALE."""
    return env_id.startswith("ALE/")


def extra_of(env_id: str) -> str | None:
    """The extra of apex that an environment needs; None if it needs none or is unknown."""
    import gymnasium

    from apex.envs.sets import set_of

    found = set_of(env_id)
    if found is not None:
        return found.extra or None
    try:
        entry = str(gymnasium.spec(env_id).entry_point)
    except gymnasium.error.Error:
        return None
    for package, extra in EXTRA_OF_PACKAGE.items():
        if entry.startswith(package):
            return extra
    return None


def check_roms(env_id: str) -> Iterator[Finding]:
    """For an Atari game: check that ale-py and its ROMs are installed."""
    if not is_atari(env_id):
        return
    try:
        from ale_py import roms

        games = list(roms.get_all_rom_ids())
    except ImportError as error:
        found, remedy = f"ale-py cannot be imported ({error})", "pip install 'apex-suite[atari]'"
        yield Finding("roms", "problem", found, f"ale-py, for {env_id}", remedy)
        return
    missing = [game for game in games if roms.get_rom_path(game) is None]
    if missing or not games:
        found = f"ROMs are missing: {', '.join(missing) or 'all'}"
        remedy = "pip install --force-reinstall ale-py"
        yield Finding("roms", "problem", found, "the ROMs that come with ale-py", remedy)
    else:
        yield Finding("roms", "ok", f"{len(games)} games come with ale-py")


def check_environment(subject_name: str, described: str, failure: str) -> Iterator[Finding]:
    """Report whether the environment could be made and suits the algorithm.

    Args:
        subject_name: the preset or run.
        described: the environment, described; empty if it could not be made.
        failure: why it cannot be used; empty if it can.
    """
    if failure:
        remedy = "the message says what to change; `apex config check` tries it again"
        yield Finding("environment", "problem", failure, f"{subject_name} can be made", remedy)
    else:
        yield Finding("environment", "ok", described)
