"""The site: it builds without a warning, no link or anchor is broken, and every public name is in the reference."""

import functools
import html.parser
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import jacreg_jax
from tests.test_house import INNER, promised_functions, submodules

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


def documented() -> list[str]:
    """Dotted paths of what the reference shows."""
    return re.findall(r"^::: (\S+)$", "\n".join(p.read_text() for p in REFERENCE.glob("*.md")), re.MULTILINE)


def public_classes():
    for name in submodules():
        module = getattr(jacreg_jax, name)
        source = inspect.getsource(module)
        for public, value in vars(module).items():
            is_own = inspect.isclass(value) and value.__module__.startswith("jacreg_jax.")
            if not is_own or public.startswith("_") or name in {*INNER, "types", "rows"}:
                continue
            if value.__module__.startswith(f"jacreg_jax.{name}") or f"{public} as {public}" in source:
                yield f"{value.__module__}.{value.__name__}"


def public_values():
    """What is neither function nor class, but called or handed to a call: compiled functions, partials, constants."""
    for name in submodules():
        for public, value in vars(getattr(jacreg_jax, name)).items():
            is_compiled = hasattr(value, "lower") and getattr(value, "__module__", "").startswith("jacreg_jax")
            is_constant = type(value).__module__.startswith("jacreg_jax")
            is_partial = isinstance(value, functools.partial) and value.func.__module__.startswith("jacreg_jax")
            is_own = is_compiled or is_constant or is_partial
            if is_own and not inspect.isclass(value) and name not in INNER and not public.startswith("_"):
                yield public


NOT_SHOWN = {"penalty_and_gradient": "an old name"}
# made by a call or raised, which shows them; those of the rooms inside are not for users
NO_EXAMPLE = {"BoundModel", "DatasetNotFoundError", "DamagedRecordError", "Feed", "Records", "Source", "Batches"}
NO_EXAMPLE |= {"TrainState", "NonFiniteError"}
NO_EXAMPLE |= {"Share", "value_and", "depends_on_argument", "on_random_rows", "check_mesh", "chosen"}


def test_every_public_name_is_in_the_reference():
    """Functions and classes under the module that defines them; nothing twice, and nothing that is not there."""
    found = documented()
    assert len(found) == len(set(found))
    functions = {f"{p.values[0].__module__}.{p.values[0].__name__}": p.id for p in promised_functions()}
    wanted = {path for path, name in functions.items() if name.split(".")[1] not in NOT_SHOWN}
    assert sorted((wanted | set(public_classes())) - set(found)) == []
    assert set(public_values()) - {path.rsplit(".", 1)[1] for path in found} == set()
    for path in found:
        module, name = path.rsplit(".", 1)
        __import__(module)
        assert hasattr(sys.modules[module], name), path


def test_every_name_of_the_reference_shows_an_example():
    inner = set(re.findall(r"^::: (\S+)$", (REFERENCE / "inner.md").read_text(), re.MULTILINE))
    for path in sorted(set(documented()) - inner):
        module, name = path.rsplit(".", 1)
        value = getattr(sys.modules[module], name)
        is_constant = name in set(public_values()) and name != "conv_max_pool"
        assert name in NO_EXAMPLE or is_constant or ">>>" in (inspect.getdoc(value) or ""), f"{path} shows no example"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; strict, so that a warning is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme's makers
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not re.search("WARNING|ERROR", run.stdout + run.stderr), run.stdout + run.stderr
    return folder


class Page(html.parser.HTMLParser):
    """The anchors and the references of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.references = {""}, []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.references += [found[name] for name in ("href", "src") if found.get(name)]


def test_no_link_is_broken(site):
    """Every reference within the site leads to a file, and its anchor to an element; others are https."""
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    broken = []
    for path, page in pages.items():
        for reference in page.references:
            link = urlsplit(reference)
            if link.scheme:
                broken += [] if link.scheme in ("https", "data", "mailto") else [(path.name, reference)]
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (link.fragment and unquote(link.fragment) not in pages[target].anchors):
                broken.append((str(path.relative_to(site)), reference))
    assert not broken


def site_url() -> str:
    return re.search(r"^site_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)[1]


def test_the_site_has_one_address():
    """The pages of the repository's host, and README leads there."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    owner, name = urls["Repository"].split("/")[-2:]
    assert site_url() == f"https://{owner}.github.io/{name}/"
    texts = [path.read_text() for path in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml", ROOT / "pyproject.toml"]]
    assert set(re.findall(r"https://[\w-]+\.github\.io/[\w-]+/?", "".join(texts))) == {site_url()}
    assert f"]({site_url()})" in (ROOT / "README.md").read_text()[:1000]


def test_a_wrong_address_and_a_crawler_find_the_site(site):
    """404.html is shown at any depth, so that its references start at the host; the sitemap lists every page."""
    at_host = lambda reference: urlsplit(reference).path.removeprefix(urlsplit(site_url()).path)
    references = [r for r in Page(site / "404.html").references if not urlsplit(r).scheme]
    assert len(references) > 30
    for reference in references:
        assert reference.startswith(urlsplit(site_url()).path), reference
        target = site / at_host(reference)
        assert target.is_file() or (target / "index.html").is_file(), reference
    places = re.findall(r"<loc>(.*?)</loc>", (site / "sitemap.xml").read_text())
    assert all(place.startswith(site_url()) for place in places)
    pages = {path.parent for path in site.rglob("index.html")}
    assert {site / at_host(place) for place in places} == pages


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_files_that_the_front_page_names(name):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]


def test_every_page_is_in_the_navigation_and_searched(site):
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation
    assert "value_and_penalty" in (site / "search" / "search_index.json").read_text()


NUMBER = r"-?\d+(?:\.\d+)?"


def elements_and_numbers(svg: Path) -> tuple[str, list[float]]:
    """Without names that are digests of what they name."""
    text = re.sub(r'id="[^"]*"|#[\w-]+', "", svg.read_text())
    return re.sub(NUMBER, "", text), list(map(float, re.findall(NUMBER, text)))


@pytest.mark.parametrize("name", ["estimator", pytest.param("target_norm", marks=pytest.mark.slow)])
def test_the_sites_figures_are_what_their_code_draws(name, tmp_path, monkeypatch):
    """Their lines to a point of 1/72 inch, so that a figure of an older library is noticed."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "docs")
    figures = importlib.import_module("figures")
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    getattr(figures, name)()
    drawn, kept = (elements_and_numbers(folder / f"{name}.svg") for folder in (tmp_path, ROOT / "docs" / "figures"))
    assert drawn[0] == kept[0], "the same elements"
    np.testing.assert_allclose(drawn[1], kept[1], atol=1.0)
