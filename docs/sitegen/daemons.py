"""Print the table of daemons in ARCHITECTURE.md: `python -m sitegen.daemons` in docs/."""

from __future__ import annotations

from collections.abc import Iterator

from apex.config.loading import apply_overlay, parse, read_table
from apex.config.sections import Config
from apex.daemons.catalog import CATALOG, DaemonSpec
from sitegen.markdown import table

HEAD = ("daemon", "binds (ROUTER)", "connects (DEALER)", "torch")


def daemon_table() -> str:
    """Table of the endpoints that each daemon binds and connects, and whether it imports torch."""
    presets = map(read_table, ("cartpole", "cartpole-seed"))
    local, central = (parse(apply_overlay(preset, gpu=False)) for preset in presets)
    return table(HEAD, [row for spec in CATALOG for row in _rows(spec, local, central)])


def _rows(spec: DaemonSpec, local: Config, central: Config) -> Iterator[tuple[str, ...]]:
    """One row, and a second one if central inference changes it."""
    name = f"`{spec.kind}`" if spec.count is None else f"`{spec.kind}_NNN`"
    usual, other = _cells(spec, local), _cells(spec, central)
    yield (name, *usual)
    if other != usual:
        yield (f"{name}, central inference", *other)


def _cells(spec: DaemonSpec, config: Config) -> tuple[str, str, str]:
    binds, connects = (
        ", ".join(f"`{endpoint}`" for endpoint in endpoints)
        for endpoints in (spec.binds, spec.connects(config))
    )
    return binds, connects, spec.torch(config)


if __name__ == "__main__":
    print(daemon_table(), end="")
