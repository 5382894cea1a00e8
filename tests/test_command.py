"""`jacreg`: a demonstration, a report on a model that can be imported, and clear words for what cannot."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import jacreg_jax
from jacreg_jax import command

ROOT = Path(__file__).resolve().parents[1]

MODEL = (
    "import jax.numpy as jnp\ndef f(x):\n    s = x.sum((1, 2, 3))\n    return jnp.stack([s, 8.0 - s], 1)\nnot_one = 3\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a model and data, as a user has them."""
    (tmp_path / "someones_model.py").write_text(MODEL)
    x = np.random.default_rng(0).uniform(0, 1, (12, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "test.npz", x=x, y=(x.sum((1, 2, 3)) < 4).astype(int))
    np.savez(tmp_path / "other.npz", a=x)
    np.savez(tmp_path / "bytes.npz", x=(255 * x).astype(np.uint8), y=np.zeros(12, int))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("someones_model", None)


def test_the_demonstration_shows_what_the_penalty_buys(capsys):
    command.main(["demo", "--steps", "1500", "--norm", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "A perceptron on 1,297 handwritten digits, 1,500 steps each"
    plain, penalised = ([float(word) for word in line[14:].replace("%", "").split()[:4]] for line in lines[3:5])
    assert penalised[0] > 94
    assert penalised[1] > plain[1] + 3
    assert penalised[3] < plain[3] / 3
    assert penalised[3] == pytest.approx(5, rel=0.3)
    assert "jacreg report" in lines[-1]


@pytest.mark.slow
def test_a_report_on_a_model_of_ones_own(folder, capsys):
    command.main(["report", "someones_model:f", "--data", "test.npz", "--epsilon", "linf=0.01", "--budget", "quick"])
    assert "clean" in capsys.readouterr().out
    found = json.loads((folder / "report" / "report.json").read_text())
    assert found["sections"]["clean"]["accuracy"] == 1.0
    assert (folder / "report" / "report.png").stat().st_size > 1000


def test_a_radius_may_be_a_fraction():
    assert command._radii_of(["linf=8/255", "l2=0.5", "l1=1e1"]) == {"linf": 8 / 255, "l2": 0.5, "l1": 10.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "someones_model"}, r"model must be MODULE:FUNCTION, got 'someones_model'"),
        ({"model": "no_such_module:f"}, "No module named 'no_such_module'"),
        ({"model": "someones_model:g"}, "has no attribute 'g'"),
        ({"model": "someones_model:not_one"}, "model must name a function, 'someones_model:not_one' is int"),
        ({"data": "missing.npz"}, r"--data must be an .npz file that is there, got 'missing.npz'"),
        ({"data": "other.npz"}, r"--data must be an .npz with arrays x and y; 'other.npz'"),
        ({"data": "someones_model.py"}, r"--data must be an .npz with arrays x and y; 'someones_model.py'"),
        ({"epsilon": "linf"}, "--epsilon must be NORM=RADIUS each, such as linf=0.03, got linf"),
        ({"epsilon": "linf=8/0"}, "--epsilon must be NORM=RADIUS each, such as linf=0.03, got linf=8/0"),
        ({"data": "bytes.npz"}, r"x must be floating point raw pixels, got uint8; x / 255 is in \[0, 1\]"),
        ({"out": "test.npz"}, r"--out must be a folder that can be written, got 'test.npz'"),
        ({"epsilon": "l7=0.1"}, "epsilon"),
        ({"epsilon": "linf=-1"}, "epsilon"),
    ],
)
def test_what_is_wrong_is_one_line(folder, change, message):
    words = {"model": "someones_model:f", "data": "test.npz", "epsilon": "linf=0.01"} | change
    line = f"report {words['model']} --data {words['data']} --epsilon {words['epsilon']} --budget quick"
    line += f" --out {words['out']}" if "out" in words else ""
    with pytest.raises(SystemExit, match=f"jacreg: .*{message}"):
        command.main(line.split())
    assert not (folder / "report").exists()


REPORT = ["report", "my_net:f", "--data", "test.npz", "--epsilon", "linf=0.01", "--budget", "quick"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(x):\n    raise KeyError('pos_embed')\n", "my_net:f failed"),
        ("def f(x):\n    return x.reshape(-1, 7)\n", "my_net:f failed"),
        ("def f(x:\n", "my_net cannot be imported"),
    ],
)
def test_errors_of_ones_own_code_come_with_their_traceback(folder, source, message):
    (folder / "my_net.py").write_text(source)
    with pytest.raises(RuntimeError, match=message) as error:
        command.main(["report", "my_net:f", "--data", "test.npz", "--epsilon", "linf=0.01", "--budget", "quick"])
    assert isinstance(error.value.__cause__, KeyError | TypeError | SyntaxError)
    sys.modules.pop("my_net", None)


def test_a_function_of_numpy_gets_the_advice_of_the_library(folder):
    (folder / "my_net.py").write_text("import numpy as np\ndef f(x):\n    return np.asarray(x).sum((1, 2))\n")
    with pytest.raises(RuntimeError, match="my_net:f failed") as error:
        command.main(REPORT)
    assert "f is traced by JAX and must be written in it" in "".join(error.value.__cause__.__notes__)
    sys.modules.pop("my_net", None)


def test_experiments_are_said_to_be_elsewhere(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="no part of the package; run this inside a clone of the repository"):
        command.main(["experiments", "table1"])


def test_experiments_are_those_of_the_clone(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jacreg"])
    command.main(["experiments", "--help"])
    assert "table1" in capsys.readouterr().out


def test_the_repository_has_one_address():
    """That of pyproject.toml, wherever one stands; Colab badges open notebooks that are there."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    own = urls["Repository"].removeprefix("https://")
    pages = [*ROOT.glob("*.md"), ROOT / "CITATION.cff", ROOT / "mkdocs.yml", *(ROOT / "docs").rglob("*.md")]
    text = "".join(path.read_text() for path in [*pages, *(ROOT / "notebooks").glob("*.py")])
    assert set(re.findall(r"github.com/[\w-]*jacreg[\w-]*/[\w-]+", text)) == {own}
    badges = re.findall(r"colab.research.google.com/github/([^)\s]+)", text)
    assert len(badges) >= 2 * len(list((ROOT / "notebooks").glob("*.py")))
    for badge in badges:
        address, notebook = badge.split("/blob/main/")
        assert address == own.removeprefix("github.com/")
        assert (ROOT / notebook).exists(), notebook


def test_the_readme_on_a_package_index_has_no_relative_link():
    """There images and files lie elsewhere."""
    pytest.importorskip("hatchling")
    shown = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata", "readme"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    links = re.findall(r"\]\(([^)\s]+)\)", shown)
    assert len(links) > 20
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert any(link.startswith("https://raw.githubusercontent.com/") and link.endswith(".png") for link in links)


def test_versions_agree():
    """Of the package, its metadata file, and its citation."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == jacreg_jax.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
