"""Beyond the paper: does the gain hold under converged attacks and under the standard ensemble (AutoAttack)?

Command:    python -m experiments beyond_attacks
Asks:       (a) the ratio of median L2 distances, Jacobian over plain, under CW at the paper's setting, CW with 3 times
            the steps, and the smallest of CW, DDN and FAB-T for each sample; (b) robust accuracy at several epsilon.
Time:       2 CPU cores, 1,000 samples: about an hour a model for (a), half an hour for (b).
Leaves:     experiments/results/beyond_attacks/: clean-MODEL, ATTACK-MODEL and ensemble-NORM-MODEL.json, by seed.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Literal

import jax
from tqdm import tqdm

from experiments import attacked, record, zoo
from experiments.recipes import REGULARIZERS, Recipe
from jacreg_jax import attacks, evaluation


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of beyond_attacks."""

    models: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = ("none", "Jacobian")
    attacks: tuple[Literal["CW", "DDN", "FAB-T", "CW, 3 times the steps"], ...] = (
        "CW",
        "DDN",
        "FAB-T",
        "CW, 3 times the steps",
    )
    ensembles: tuple[Literal["linf", "l2"], ...] = ("linf", "l2")
    epsilons_linf: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15)
    """Raw pixels."""
    epsilons_l2: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    seeds: int = 1
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    num_attacked: int = 1000
    num_queries: int = 5000
    """Of Square."""
    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""

    @property
    def recipes(self) -> dict[str, Recipe]:
        """How the models are trained."""
        return {name: REGULARIZERS[name].shortened(self.num_steps) for name in self.models}


QUICK = zoo.QUICK | {
    "models": ("none",),
    "attacks": ("DDN",),
    "ensembles": ("linf",),
    "epsilons_linf": (0.1,),
    "num_queries": 20,
    "norms": 50,
    "num_steps": 20,
    "num_attacked": 10,
}


def ensemble(recipe: Recipe, params, seed: int, norm: str, test: dict, config: Config) -> dict:
    """Share of samples still robust after each attack, by epsilon; what is done of it is kept in the runs folder."""
    f, key = zoo.raw_predictor(params), jax.random.key(seed)
    few = test["image"][: config.num_attacked], test["label"][: config.num_attacked]
    folder = Path(config.runs) / "attacks" / recipe.digest() / f"seed-{seed}"
    robust = {}
    for epsilon in tqdm(getattr(config, f"epsilons_{norm}"), desc=f"{norm}, {zoo.describe(recipe)}, seed {seed}"):
        path = folder / f"ensemble-{norm}-{epsilon:g}-{config.num_attacked}-{config.num_queries}.json"
        if not path.exists():
            attacked = evaluation.worst_case(chain(norm, config.num_queries), f, *few, key, epsilon, batch_size=250)
            record.write_json(path, attacked[1])
        robust[f"{epsilon:g}"] = json.loads(path.read_text())
    return robust


@functools.cache
def chain(norm: str, num_queries: int) -> dict:
    """The standard ensemble, made once: other function objects would be compiled anew."""
    return attacks.standard_ensemble(norm=norm, num_queries=num_queries)


def run(config: Config):
    """What the models are without an attack, distances by every attack, then robust accuracy."""
    test = zoo.images("mnist", "test", config.data_dir)
    folder = config.out / "beyond_attacks"
    for name, recipe in config.recipes.items():
        zoo.fill_clean(folder / f"clean-{name}.json", recipe, test, range(config.seeds), config, config.norms)
    for attack in config.attacks:
        for name, recipe in config.recipes.items():
            path = folder / f"{record.slug(attack)}-{name}.json"
            attacked.fill(path, recipe, attack, test, config.num_attacked, range(config.seeds), config)
    for norm in config.ensembles:
        for name, recipe in config.recipes.items():

            def compute(seeds, recipe=recipe, norm=norm):
                for seed, params in zoo.train(recipe, seeds, config):
                    yield seed, ensemble(recipe, params, seed, norm, test, config)

            settings = {"recipe": dataclasses.asdict(recipe), "norm": norm}
            settings |= {k: getattr(config, k) for k in ("num_attacked", "num_queries", f"epsilons_{norm}")}
            record.fill(folder / f"ensemble-{norm}-{name}.json", settings, range(config.seeds), compute)
