"""The table of kinds of spaces: its cells, texts and files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.environments.spaces_table import Cell, merged, read, remedy, write

SPACE = "Discrete observation"
LEARNED = Cell(SPACE, "r2d2", "serial", "learns", 7.25, 2.0, seed=3, commit="abc")
WORKS = Cell(SPACE, "r2d2", "local", "works", seed=3, commit="abc")
REFUSED = Cell("Text observation", "r2d2", "local", "refused", detail="no | text;\n use a wrapper")


def of(*cells: Cell) -> dict[tuple[str, str, str], Cell]:
    return {cell.key: cell for cell in cells}


def test_cell_says_score_or_remedy():
    assert LEARNED.text == "learns 7.2 (random 2.0)"
    assert WORKS.text == "works"
    assert REFUSED.text == "refused: use a wrapper"
    assert remedy("first | second") == "first / second"
    assert remedy("x" * 200) == "x" * 159 + "…"


def test_modes_that_agree_are_named_once():
    same = [REFUSED._replace(mode=mode) for mode in ("serial", "local", "central")]
    assert merged(of(*same), REFUSED.space, "r2d2") == "refused: use a wrapper"
    assert merged(of(LEARNED, WORKS), SPACE, "r2d2") == (
        "serial: learns 7.2 (random 2.0)<br>local: works<br>central: not measured"
    )


def test_written_cells_are_read_again(tmp_path: Path):
    assert read(tmp_path) == {}
    cells = of(LEARNED, WORKS, REFUSED)
    write(tmp_path, cells)
    assert read(tmp_path) == cells
    page = (tmp_path / "spaces.md").read_text()
    assert "**Of 228 cells, 1 learn, 1 work, 1 are refused with a remedy, 0 fail and 225" in page
