"""Figures 1, S1 and S2: decision cells of LeNet' on MNIST, on random planes and on adversarial ones.

Command:    python -m experiments figure1
Paper:      pictures only: cells grow and smooth from no regularizer to L2 to Jacobian; the defended model is not fooled
            by the adversarial examples of the other.
Time:       2 CPU cores: a minute, after the models of table1 and figure3.
Leaves:     experiments/results/figure1/FIGURE.npz: class (uint8) and confidence (uint8, 255 = 1) maps, radii, images.
"""

import dataclasses
import json
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import record, zoo
from experiments.recipes import DEFENCES, REGULARIZERS
from jacreg_jax import attacks, decision_cells

# model by panel; S1 repeats Figure 1 for other seeds and samples
RANDOM = {"none": REGULARIZERS["none"], "L2": REGULARIZERS["L2"], "Jacobian": REGULARIZERS["Jacobian"]}
ADVERSARIAL = {"none": DEFENCES["none"], "both": DEFENCES["both"]}


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of figure1."""

    figures: tuple[Literal["1", "S1", "S2"], ...] = ("1", "S1", "S2")
    rows: int = 3
    """Samples of S1 and S2; sample i is drawn for seed i of the models, where that seed is there."""
    seeds: int = 1
    """Models of each recipe to draw from."""
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    extent: float = 10.0
    """Half the side of a panel, L2 distance in raw pixels."""
    resolution: int = 201
    num_rays: int = 360
    """Directions in which the nearest boundary is looked for."""


QUICK = zoo.QUICK | {
    "figures": ("1", "S2"),
    "rows": 1,
    "num_steps": 20,
    "resolution": 21,
    "num_rays": 8,
}


def plane_of(figure: str, functions: list, image, label, key):
    """A random plane, or the one through the FGSM examples of both models, each at its smallest fooling epsilon."""
    if figure != "S2":
        return decision_cells.random_plane(image, key), []
    found = [attacks.fgsm_distance(f, image[None], label[None]) for f in functions]
    moved = [r.x_adv[0] for r in found]
    plane = decision_cells.adversarial_plane(image, *moved)
    dots = [[float(jnp.sum((x - image) * d)) for d in (plane.first, plane.second)] for x in moved]
    return plane, dots


def panel(f, plane, config: Config) -> dict:
    """Maps of one model in a plane."""
    cells = decision_cells.decision_cells(f, plane, extent=config.extent, resolution=config.resolution)
    return {
        "classes": np.asarray(cells.classes, np.uint8),
        "confidence": np.round(255 * np.asarray(cells.confidence)).astype(np.uint8),
        "radius": np.float32(
            decision_cells.boundary_distance(f, plane, extent=2 * config.extent, num_rays=config.num_rays)
        ),
    }


def run(config: Config):
    """Draw random test samples that all models get right, and map each model's cells around them."""
    test = zoo.images("mnist", "test", config.data_dir)
    for figure in config.figures:
        recipes = {k: r.shortened(config.num_steps) for k, r in (ADVERSARIAL if figure == "S2" else RANDOM).items()}
        path = config.out / "figure1" / f"figure{figure}.npz"
        settings = {"recipes": {name: dataclasses.asdict(r) for name, r in recipes.items()}}
        settings |= {k: getattr(config, k) for k in ("rows", "seeds", "extent", "resolution", "num_rays")}
        if record.is_done(path.with_suffix(".json"), settings):
            continue
        models = [
            {name: zoo.raw_predictor(params) for name, r in recipes.items() for _, params in zoo.train(r, [s], config)}
            for s in range(config.seeds)
        ]
        arrays, dots = {}, []
        for row in range(1 if figure == "1" else config.rows):
            number = row + (figure == "S1")  # not the sample of Figure 1 again
            functions = models[number % config.seeds]
            chosen, plane, at = drawn(figure, list(functions.values()), test, number, config)
            dots.append({"sample": chosen, "label": int(test["label"][chosen]), "dots": at})
            arrays[f"{row}/image"] = np.round(255 * np.asarray(test["image"][chosen, ..., 0])).astype(np.uint8)
            for name, f in functions.items():
                arrays |= {f"{row}/{name}/{k}": v for k, v in panel(f, plane, config).items()}
        record.write_arrays(path, arrays)
        record.write_json(
            path.with_suffix(".json"), {"config": settings, "samples": dots, "environment": record.environment()}
        )
        print(f"figure {figure}: " + json.dumps({k: round(float(v), 2) for k, v in arrays.items() if "radius" in k}))


def drawn(figure: str, functions: list, test: dict, number: int, config: Config):
    """A random test sample that every function gets right, and a plane around it with something to see.

    That is one in which the cell of the first function, the undefended, ends inside the panel.
    """
    order = np.random.default_rng(number).permutation(len(test["label"]))[:200]
    right = np.all([np.argmax(f(test["image"][order]), -1) == test["label"][order] for f in functions], axis=0)
    for chosen in order[right] if right.any() else order:
        image, label = test["image"][chosen], test["label"][chosen]
        plane, at = plane_of(figure, functions, image, label, jax.random.key(number))
        nearest = decision_cells.boundary_distance(functions[0], plane, extent=config.extent, num_rays=config.num_rays)
        if np.isfinite(nearest):
            break
    return int(chosen), plane, at
