"""Fooling distances, found once for weights and an attack with its options, and shared by the experiments.

All are L2 in raw pixels. An attack is data: a name, a function of `jacreg_jax.attacks` and its options.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.lab import disk, record
from experiments.lab.options import Options
from experiments.lab.problems import MNIST_LENET, Problem, held_out
from experiments.lab.zoo import Model
from jacreg_jax import attacks, evaluation

BLOCK = 250  # samples that are attacked at once and kept in one file
PARTS = "distance", "steps"  # of what is found


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack by name, with what of its options is not the library's default."""

    name: str
    function: Callable
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def resolved(self) -> dict:
        """The function and every option that its numbers depend on, defaults too."""
        arguments = inspect.signature(self.function).parameters.values()
        known = {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY and a.default is not a.empty}
        plain = lambda v: v is None or isinstance(v, bool | int | float | str | tuple)
        word = lambda v: v if plain(v) else getattr(v, "__name__", str(v))  # a function, or what counts as a success
        return {"function": self.function.__name__} | {k: word(v) for k, v in (known | self.options).items()}

    def config(self) -> dict:
        """As a result is written; a name alone stands for the options of `paper` and `converged` on MNIST."""
        usual = {attack.name: attack for attack in (*paper(MNIST_LENET), *converged())}
        is_usual = self == usual.get(self.name)
        return {"attack": self.name} | ({} if is_usual else {"options": self.resolved()})


def paper(problem: Problem) -> tuple[Attack, ...]:
    """The four of Figure S5, with sizes in raw pixels."""
    return (
        Attack("white noise", attacks.white_noise_distance, {"step_size": 0.01}),
        Attack("FGSM", attacks.fgsm_distance, {"step_size": 1 / 255}),
        Attack("PGD", attacks.pgd_distance, {"epsilon": problem.pgd_radius, "step_size": 1 / 255}),
        Attack("CW", attacks.carlini_wagner, {"initial_const": 0.01}),
    )


def converged() -> tuple[Attack, ...]:
    """Stronger ones than the paper's."""
    return (
        Attack("CW, 3 times the steps", attacks.carlini_wagner, {"num_steps": 3000, "initial_const": 0.01}),
        Attack("DDN", attacks.ddn, {"num_steps": 1000, "init_epsilon": 1.0}),
        Attack("FAB-T", attacks.fab, {"norm": "l2"}),
    )


def by_name(problem: Problem) -> dict[str, Attack]:
    """All of them."""
    return {attack.name: attack for attack in (*paper(problem), *converged())}


def measure(model: Model, seed: int, *, attack: Attack, num_samples: int, options: Options) -> dict:
    """`find` as a result holds it."""
    found = find(model, seed, attack, num_samples, options)
    return {"distance": record.as_json(found["distance"]), "steps": found["steps"].tolist()}


def find(model: Model, seed: int, attack: Attack, num_samples: int, options: Options) -> dict[str, np.ndarray]:
    """{"distance": L2 [N], "steps": [N]} of an attack on the first N test samples; +inf where it never fooled.

    Every finished block of samples is kept in the runs folder by weights, attack and options, so that a killed attack
    goes on from there, and other weights or options never meet what was found for these.
    """
    config = {"weights": model.weights, "problem": model.problem.name, "seed": seed, "attack": attack.resolved()}
    folder = Path(options.runs) / "attacks" / record.digest(config)
    _tell_of_old(Path(options.runs) / "attacks")
    test = held_out(model.problem, num_samples, options.data_dir, options.workers)
    starts = range(0, min(num_samples, len(test["label"])), BLOCK)
    parts = []
    if record.kept(folder / "config.json", record.read_json) is None:  # the folder's name says all that it does
        (folder / "config.json").unlink(missing_ok=True)
    with record.run_folder(folder, config):
        for start in tqdm(starts, desc=f"{attack.name}, seed {seed}", unit="block", dynamic_ncols=True, disable=None):
            rows = slice(start, min(start + BLOCK, num_samples))
            path = folder / f"{start}-{rows.stop}.npz"
            part = record.kept(path, partial(_read_block, rows=rows))
            if part is None:
                disk.check_room(folder)
                part = _block(model, seed, attack, test, rows)
                record.write_arrays(path, part)
            parts.append(part)
    return {key: np.concatenate([part[key] for part in parts]) for key in PARTS}


def _read_block(path: Path, remedy: str, rows: slice) -> dict[str, np.ndarray]:
    part = record.read_arrays(path, remedy)
    if {name: len(array) for name, array in part.items()} != dict.fromkeys(PARTS, rows.stop - rows.start):
        raise ValueError(f"{path} is damaged (it is no block of {rows.stop - rows.start} samples); {remedy}")
    return part


def _block(model: Model, seed: int, attack: Attack, test: dict, rows: slice) -> dict[str, np.ndarray]:
    x, key = model.problem.attack_space(test["image"][rows]), jax.random.fold_in(jax.random.key(seed), rows.start)
    run = _with_options(attack.function, tuple(attack.options.items()))
    found = evaluation.run_attack(run, model.raw_f, x, test["label"][rows], key, batch_size=BLOCK)
    return {"distance": l2_of(found, x), "steps": found.steps}


def l2_of(found: attacks.AttackResult, x) -> np.ndarray:
    """How far each sample was moved, [N]: 0 where it was wrong already, +inf where it was never fooled."""
    l2 = np.linalg.norm((np.asarray(found.x_adv) - np.asarray(x)).reshape(len(x), -1), axis=1)
    return np.where(found.clean_correct, np.where(found.success, l2, np.inf), 0)


@cache
def _tell_of_old(folder: Path):
    if any(folder.glob("*/seed-*")):
        print(f"{folder}/*/seed-*: distances of an older version, which did not note their weights; not used")


@cache
def _with_options(function: Callable, options: tuple) -> Callable:
    """One function object for one attack: others would be compiled anew."""
    return partial(function, **dict(options)) if options else function


@cache
def ensemble(norm: str, num_queries: int) -> dict[str, Callable]:
    """The standard ensemble, made once for the same reason."""
    return attacks.standard_ensemble(norm=norm, num_queries=num_queries)


def robust_after(model: Model, seed: int, *, norm: str, epsilon: float, num_queries: int, options: Options,
                 left: Sequence[int]) -> dict[str, float]:  # fmt: skip
    """How many of the test samples `left` are still robust after each attack of the standard ensemble, by name.

    Kept in the runs folder by weights and options, as distances are.
    """
    settings = {"ensemble": norm, "epsilon": epsilon, "num_queries": num_queries, "left": list(map(int, left))}
    config = {"weights": model.weights, "problem": model.problem.name, "seed": seed} | settings
    path = Path(options.runs) / "attacks" / f"ensemble-{record.digest(config)}.json"
    found = record.kept(path, record.read_json)
    if found is not None and record.is_done(path, config):
        return found["robust"]
    if not len(left):
        return dict.fromkeys(ensemble(norm, num_queries), 0)
    test = held_out(model.problem, max(left) + 1, options.data_dir, options.workers)
    chain, rows = ensemble(norm, num_queries), np.asarray(left)
    x, y = model.problem.attack_space(test["image"][rows]), test["label"][rows]
    key = jax.random.key(seed)
    _, robust = evaluation.worst_case(chain, model.raw_f, x, y, key, batch_size=BLOCK, epsilon=epsilon)
    counts = {name: round(share * len(rows)) for name, share in robust.items()}
    record.write_json(path, {"config": config, "robust": counts})
    return counts
