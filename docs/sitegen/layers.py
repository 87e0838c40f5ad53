"""Print the import layers in ARCHITECTURE.md from setup.cfg: `python -m sitegen.layers`."""

from __future__ import annotations

import configparser

from sitegen.repository import ROOT

CONTRACT = "importlinter:contract:layers"


def layer_list() -> str:
    """One line per layer, the highest first, as an indented block."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser[CONTRACT]["layers"].strip().splitlines()
    return "".join(f"    {line.strip()}\n" for line in lines)


if __name__ == "__main__":
    print(layer_list(), end="")
