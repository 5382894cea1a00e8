"""How long attacks on a trained DDNet take, and what they find: the paper's four, DDN, FAB-T and the standard ensemble.

Command:    python -m experiments.benchmarks.ddnet_attacks
Models:     the base of Figure S3, L2 and dropout, without and with the penalty, at a tenth of the length, seed 0; they
            are trained where they are not in the runs folder.
Time:       2 CPU cores and nothing beside it: a quarter of an hour for 40 images with trained models, most of it CW;
            an hour for 1,000 images of one model without CW, three more with it.
Leaves:     experiments/results/benchmark_ddnet_attacks_IMAGES_BACKEND.json. An attack that it holds, of this machine
            and these settings, is not run again, and one that was stopped goes on behind its last part, where the
            weights are the same.
"""

import experiments.benchmarks.kept_memory  # noqa: F401, I001  first of all

import dataclasses
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from tqdm import tqdm

from experiments import RESULTS
from experiments.benchmarks.rows import machine, write
from experiments.lab import distances, record, stopping, zoo
from experiments.lab.options import Options, in_paragraphs
from experiments.lab.problems import CIFAR10_DDNET, held_out
from experiments.lab.recipes import defences
from experiments.page import results
from jacreg_jax import evaluation

NOTHING = {"seconds": 0.0, "found": []}  # of an attack that is not begun
ATTACKS = ("white noise", "FGSM", "PGD", "CW", "DDN", "FAB-T", "ensemble")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is attacked."""

    defences: tuple[str, ...] = ("none", "Jacobian")
    num_steps: int = 15_000
    num_attacked: int = 40
    part: int = 500
    """Images attacked and written at once."""
    attacks: tuple[Literal[ATTACKS], ...] = ATTACKS
    epsilon: float = 0.25
    """L2 radius of the ensemble, in raw pixels."""
    num_queries: int = 5000
    """Of Square, in the ensemble."""
    data_dir: str | None = None


def rows_of(name: str, config: Config, kept: dict[tuple, dict]) -> Iterator[dict]:
    """Of each attack a row after every part of the images, with what it found in all of them so far."""
    recipe = defences(CIFAR10_DDNET)[name].shortened(config.num_steps)
    ((_, model),) = zoo.train(recipe, [0], Options(data_dir=config.data_dir))
    test = held_out(CIFAR10_DDNET, config.num_attacked, config.data_dir)
    for attack in tqdm(config.attacks, desc=results.DEFENCE_NAMES[name], unit="attack", disable=None):
        row = {"defence": name, "attack": label(attack, config), "weights": model.weights, "commit": record.commit()}
        begun = kept.get((name, row["attack"]), {})
        row |= {k: begun[k] for k in ("seconds", "found")} if begun.get("weights") == model.weights else NOTHING
        for start in range(len(row["found"]), config.num_attacked, config.part):
            rows, begin = slice(start, min(start + config.part, config.num_attacked)), time.perf_counter()
            found = attacked(model.raw_f, test["image"][rows], test["label"][rows], attack, start, config)
            row |= {"seconds": row["seconds"] + time.perf_counter() - begin, "found": [*row["found"], *found.tolist()]}
            yield row


def attacked(f, x, y, attack: str, start: int, config: Config) -> np.ndarray:
    """Of each image its distance, or for the ensemble whether it is still robust."""
    key = jax.random.fold_in(jax.random.key(0), start)
    if attack == "ensemble":
        found, _ = evaluation.worst_case(
            distances.ensemble("l2", config.num_queries), f, x, y, key, epsilon=config.epsilon
        )
        return ~found.success
    known = distances.by_name(CIFAR10_DDNET)[attack]
    found = evaluation.run_attack(partial(known.function, **known.options), f, x, y, key, batch_size=config.part)
    return distances.l2_of(found, x)


def ended(row: dict) -> dict:
    """The row without its images: their median distance, or the share that is robust."""
    found = row["found"]
    what = {"robust": float(np.mean(found))} if "ensemble" in row["attack"] else {"median": float(np.median(found))}
    return {name: value for name, value in row.items() if name != "found"} | what


def label(attack: str, config: Config) -> str:
    """As the table names it."""
    return f"the ensemble, L2 {config.epsilon:g}" if attack == "ensemble" else attack


def measured(path: Path, config: Config) -> list[dict]:
    """The rows that path holds of this machine and of these settings, whatever attacks and defences were asked for."""
    found = record.kept(path, record.read_json)
    settings = lambda c: {k: v for k, v in c.items() if k not in ("attacks", "defences", "part")}
    if found is None or found["machine"] != machine() or settings(found["config"]) != settings(vars(config)):
        return []
    return found["rows"]


def of_rows(rows: list[dict], config: Config) -> Config:
    """The settings, with all the defences and attacks that the rows hold."""
    held = {row["attack"] for row in rows}
    attacks = tuple(attack for attack in ATTACKS if label(attack, config) in held)
    return dataclasses.replace(config, defences=tuple(dict.fromkeys(r["defence"] for r in rows)), attacks=attacks)


def table() -> str:
    """Of each number of images a block: a row for each attack, a pair of columns for each model."""
    found = [results.read(path.stem) for path in RESULTS.glob("benchmark_ddnet_attacks_*_cpu.json")]
    return "\n\n".join(map(block, sorted(found, key=lambda r: r["config"]["num_attacked"]))) or "not run"


def block(result: dict) -> str:
    """The machine and the number of images, and its table."""
    by_attack: dict[str, list[str]] = {}
    for row in result["rows"]:
        if "found" in row:  # stopped
            row = ended(row) | {"attack": f"{row['attack']}, the first {len(row['found'])}"}
        robust = f"{100 * row['robust']:.0f} % robust" if "robust" in row else ""
        found = robust or (f"{row['median']:.3f}" if np.isfinite(row["median"]) else "not reached")
        by_attack.setdefault(row["attack"], []).extend([f"{row['seconds']:.0f}", found])
    names = [results.DEFENCE_NAMES[name] for name in result["config"]["defences"]]
    header = ["attack", *(f"{name}, {what}" for name in names for what in ("s", "median L2"))]
    count = result["config"]["num_attacked"]
    return f"{result['machine']}; {count} images.\n\n" + results.table(header, [[k, *v] for k, v in by_attack.items()])


TABLES = {"ddnet_attacks": table}


def main(config: Config):
    """Make every attack that is missing on every model, write the result after each part, print the table."""
    file = f"ddnet_attacks_{config.num_attacked}_{jax.default_backend()}"
    kept = {(row["defence"], row["attack"]): row for row in measured(RESULTS / f"benchmark_{file}.json", config)}
    for name in config.defences:
        missing = tuple(a for a in config.attacks if "found" in kept.get((name, label(a, config)), NOTHING))
        for row in rows_of(name, dataclasses.replace(config, attacks=missing), kept) if missing else ():
            kept[name, row["attack"]] = ended(row) if len(row["found"]) == config.num_attacked else row
            write(file, list(kept.values()), of_rows(list(kept.values()), config))
    print(table())


if __name__ == "__main__":
    with stopping.in_one_line("stopped; the attacks that ended are written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
