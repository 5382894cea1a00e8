"""Figures 1, S1 and S2: decision cells of LeNet' on MNIST, on random planes and on adversarial ones.

Command:    python -m experiments figure1 --seeds 1
Paper:      pictures only: cells grow from no regularizer to L2 to Jacobian; the defended model is not fooled in S2.
Time:       2 CPU cores: a minute, after the models of table1 and figure3.
Leaves:     experiments/results/figure1/FIGURE.npz: class (uint8) and confidence (uint8, 255 = 1) maps, radii, images.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import disk, options, record, zoo
from experiments.lab.problems import MNIST_LENET, images
from experiments.lab.recipes import Recipe, defences, regularizers
from experiments.page import decision_maps, plots, results
from experiments.page.elements import Element
from jacreg_jax import attacks, decision_cells

# models by panel; S1 repeats Figure 1 for other samples, and for other seeds of the models where there are several
PANELS = {"1": ("none", "L2", "Jacobian"), "S1": ("none", "L2", "Jacobian"), "S2": ("none", "both")}


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """How the planes are drawn and mapped."""

    figures: tuple[Literal["1", "S1", "S2"], ...] = ("1", "S1", "S2")
    rows: int = 3
    """Samples of S1 and S2; sample i is drawn for seed i of the models, where that seed is there."""
    seeds: int = 1
    """Models of each recipe to draw from."""
    extent: float = 10.0
    """Half the side of a panel, L2 distance in raw pixels."""
    resolution: int = 201
    num_rays: int = 360
    """Directions in which the nearest boundary is looked for."""


QUICK = options.QUICK | {"figures": ("S2",), "rows": 1, "resolution": 21, "num_rays": 8}


def recipes(figure: str, config: Config) -> dict[str, Recipe]:
    """Of the panels."""
    known = (defences if figure == "S2" else regularizers)(MNIST_LENET)
    return {name: known[name].shortened(config.num_steps) for name in PANELS[figure]}


def files(config: Config) -> dict[str, dict]:
    """What the maps of each figure depend on."""
    fixed = {name: getattr(config, name) for name in ("rows", "seeds", "extent", "resolution", "num_rays")}
    written = {f: {name: recipe.config() for name, recipe in recipes(f, config).items()} for f in config.figures}
    return {f"figure1/figure{f}": {"recipes": written[f]} | fixed for f in config.figures}


def run(config: Config):
    """Draw random test samples that all models get right, and map each model's cells around them."""
    for figure, (file, written) in zip(config.figures, files(config).items(), strict=True):
        path = config.results / f"{file}.json"
        if record.is_done(path, written):
            print(f"read from {path}, nothing trained; --out FOLDER to run it")
            continue
        disk.check_room(path.parent)
        test = images(MNIST_LENET, "test", config.data_dir)
        every = recipes(figure, config).items()
        models = [
            {name: m.raw_f for name, recipe in every for _, m in zoo.train(recipe, [seed], config)}
            for seed in range(config.seeds)
        ]
        arrays, samples = {}, []
        for row in range(1 if figure == "1" else config.rows):
            number = row + (figure == "S1")  # not the sample of Figure 1 again
            functions = models[number % config.seeds]
            chosen, plane, at = drawn(figure, list(functions.values()), test, number, config)
            samples.append({"sample": chosen, "label": int(test["label"][chosen]), "dots": at})
            arrays[f"{row}/image"] = np.round(255 * np.asarray(test["image"][chosen, ..., 0])).astype(np.uint8)
            for name, f in functions.items():
                arrays |= {f"{row}/{name}/{k}": v for k, v in panel(f, plane, config).items()}
        record.write_arrays(path.with_suffix(".npz"), arrays)
        record.write_json(path, {"config": written, "samples": samples, "environment": record.environment()})
        print(f"figure {figure}: { ({k: round(float(v), 2) for k, v in arrays.items() if 'radius' in k}) }")


def drawn(figure: str, functions: list, test: dict, number: int, config: Config):
    """A random test sample that every function gets right, and a plane in which the first one's cell ends in reach."""
    order = np.random.default_rng(number).permutation(len(test["label"]))[:200]
    right = np.all([np.argmax(f(test["image"][order]), -1) == test["label"][order] for f in functions], axis=0)
    for chosen in order[right] if right.any() else order:
        image, label = test["image"][chosen], test["label"][chosen]
        plane, at = plane_of(figure, functions, image, label, jax.random.key(number))
        nearest = decision_cells.boundary_distance(functions[0], plane, extent=config.extent, num_rays=config.num_rays)
        if np.isfinite(nearest):
            break
    return int(chosen), plane, at


def plane_of(figure: str, functions: list, image, label, key):
    """A random plane, or the one through the FGSM examples of both models, each at its smallest fooling epsilon."""
    if figure != "S2":
        return decision_cells.random_plane(image, key), []
    moved = [attacks.fgsm_distance(f, image[None], label[None]).x_adv[0] for f in functions]
    plane = decision_cells.adversarial_plane(image, *moved)
    return plane, [[float(jnp.sum((x - image) * d)) for d in (plane.first, plane.second)] for x in moved]


def panel(f, plane, config: Config) -> dict:
    """Maps of one model in a plane."""
    cells = decision_cells.decision_cells(f, plane, extent=config.extent, resolution=config.resolution)
    radius = decision_cells.boundary_distance(f, plane, extent=2 * config.extent, num_rays=config.num_rays)
    confidence = np.round(255 * np.asarray(cells.confidence)).astype(np.uint8)
    return {"classes": np.asarray(cells.classes, np.uint8), "confidence": confidence, "radius": np.float32(radius)}


def figure(name: str):
    """Decision cells of Figure 1, S1 or S2; None where they were not run."""
    facts = results.read(f"figure1/figure{name}")
    if facts is None:
        return None
    titles = {"none": "L2 and dropout", "both": "+ Jacobian, adversarial training"} if name == "S2" else results.NAMES
    return plots.planes(results.RESULTS / "figure1" / f"figure{name}.npz", facts, {n: titles[n] for n in PANELS[name]})


FIGURES = {"figure1": partial(figure, "1"), "figure_s1": partial(figure, "S1"), "figure_s2": partial(figure, "S2")}
SAYS = {
    "1": "decision cells on a random plane grow from none to L2 to Jacobian",
    "S1": "the same for other samples and other seeds (here: one seed)",
    "S2": "the undefended model's FGSM example does not fool the defended one",
}
ELEMENTS = [
    Element(f"Figure {n}", says, partial(decision_maps.state, n, PANELS[n]), partial(list, [f"figure1/figure{n}"]))
    for n, says in SAYS.items()
]
