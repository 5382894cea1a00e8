"""Everything that is shown runs: README's Python, every experiment with --quick, every notebook; by glob."""

import re
from pathlib import Path

import pytest

from experiments import __main__ as command_line

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


SLOW_PAGES = ("report.md",)  # five models through all attacks
SHOWN = [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW_PAGES)) for p in PAGES if python_blocks(p)]


@pytest.mark.parametrize("page", SHOWN, ids=lambda p: p.name)
def test_python_of_a_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


# others of the fast suite take the same paths: table1 and demo train, demo attacks, figure3 draws
SLOW = ("beyond_attacks", "figure1", "figure2", "figure_s3", "figure_s4", "table3", "worst_case", "cost", "verify")
ELSEWHERE = ("runbook", "figure_s7")  # tests/test_experiments_paper.py
EXPERIMENTS = [
    pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in command_line.names() if n not in ELSEWHERE
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_quick(name, tmp_path, monkeypatch, tfds_dir):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    module, config = command_line.parse(name, ["--quick"])
    assert config != module.Config()
    command_line.run(module, config)
    assert list(tmp_path.rglob("*.json")), "an experiment leaves its result"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
    """The .ipynb for Colab is the .py, and runs from top to bottom."""
    nbformat, nbclient, jupytext = (pytest.importorskip(m) for m in ("nbformat", "nbclient", "jupytext"))
    notebook = nbformat.read(path.with_suffix(".ipynb"), 4)
    source = jupytext.read(path)
    cells = lambda n: [(c.cell_type, c.source) for c in n.cells]
    assert cells(notebook) == cells(source), f"run `make notebooks`: {path.stem}.ipynb is not what its .py says"
    assert len(notebook.cells) <= 15
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
