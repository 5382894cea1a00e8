"""Fooling distances of the experiments' models, found once for each model and attack, and shared by the figures."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments import record, zoo
from experiments.recipes import Recipe
from jacreg_jax import attacks, evaluation

# the paper's attacks, and those beyond it; all distances are L2 in raw pixels
ATTACKS: dict[str, Callable] = {
    "white noise": attacks.white_noise_distance,
    "FGSM": attacks.fgsm_distance,
    "PGD": partial(attacks.pgd_distance, epsilon=32 / 255),
    "CW": attacks.carlini_wagner,
    "CW, 3 times the steps": partial(attacks.carlini_wagner, num_steps=3000),
    "DDN": partial(attacks.ddn, num_steps=1000),
    "FAB-T": partial(attacks.fab, norm="l2"),
}


def distances(recipe: Recipe, seed: int, params, name: str, test: dict, num_samples: int, options: zoo.Options):
    """{"distance": L2 [N], "steps": [N]} of an attack on the first N test samples; +inf where it never fooled.

    Every finished block of 250 samples is kept in the runs folder, so that a killed attack goes on from there.
    """
    folder = Path(options.runs) / "attacks" / recipe.digest() / f"seed-{seed}" / name.replace(" ", "-").replace(",", "")
    f = zoo.raw_predictor(params)
    blocks = range(0, num_samples, 250)
    for start in tqdm(blocks, desc=f"{name}, {zoo.describe(recipe)}, seed {seed}", unit="block", dynamic_ncols=True):
        stop = min(start + 250, num_samples)
        path = folder / f"{start}-{stop}.npz"
        if not path.exists():
            rows = slice(start, stop)
            key = jax.random.fold_in(jax.random.key(seed), start)
            found = evaluation.run_attack(
                ATTACKS[name], f, test["image"][rows], test["label"][rows], key, batch_size=250
            )
            l2 = np.linalg.norm((found.x_adv - np.asarray(test["image"][rows])).reshape(stop - start, -1), axis=1)
            distance = np.where(found.clean_correct, np.where(found.success, l2, np.inf), 0)
            record.write_arrays(path, {"distance": distance, "steps": found.steps})
    parts = [np.load(folder / f"{start}-{min(start + 250, num_samples)}.npz") for start in blocks]
    return {key: np.concatenate([part[key] for part in parts]) for key in ("distance", "steps")}


def fill(path: Path, recipe: Recipe, name: str, test: dict, num_samples: int, seeds, options: zoo.Options) -> dict:
    """The result of one attack on a recipe's models at path, by seed; what is missing is trained and attacked."""

    def compute(seeds):
        for seed, params in zoo.train(recipe, seeds, options):
            found = distances(recipe, seed, params, name, test, num_samples, options)
            yield seed, {"distance": record.as_json(found["distance"]), "steps": found["steps"].tolist()}

    settings = {"recipe": dataclasses.asdict(recipe), "attack": name, "num_samples": num_samples}
    result = record.fill(path, settings, seeds, compute)
    for seed, model in result["models"].items():
        print(f"{path.stem}, seed {seed}: median distance {np.median(record.from_json(model['distance'])):.3f}")
    return result
