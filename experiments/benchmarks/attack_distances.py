"""Every minimum-norm attack on models whose nearest fooling point is known, beside foolbox, pyautoattack and adv-lib.

Command:    python -m experiments.benchmarks.attack_distances
Leaves:     experiments/results/benchmark_attack_distances_cpu.json
Needs:      make peers
Time:       two minutes

The gap is the found distance over the true one, minus 1. Passes are those that each sample met, counted in the model.
"""

import dataclasses
import os
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import attack_peers, page
from experiments.benchmarks.closed_form import MODELS, Model
from experiments.benchmarks.rows import write
from experiments.lab import stopping
from experiments.lab.options import in_paragraphs
from jacreg_jax import attacks
from jacreg_jax.attacks.losses import margin

TOLERANCE = 1e-4  # relative: what lies further below the truth is none of rounding


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; the same steps for all libraries."""

    samples: int = 64
    ddn_steps: int = 1000
    cw_steps: int = 500
    cw_searches: int = 9
    cw_rate: float = 0.003
    cw_constant: float = 0.01
    fab_steps: int = 100
    overshoot: float = 1.005  # 1.05 by default, which leaves FAB up to 5 % too far
    seed: int = 0
    save: bool = True


def ours(config: Config) -> dict[tuple[str, str], Any]:
    """(attack, norm) -> attack."""
    of_cw = {"num_steps": config.cw_steps, "binary_search_steps": config.cw_searches}
    of_cw |= {"learning_rate": config.cw_rate, "initial_const": config.cw_constant}
    fab = partial(attacks.fab, num_steps=config.fab_steps, overshoot=config.overshoot)
    found = {("DDN", "l2"): partial(attacks.ddn, num_steps=config.ddn_steps)}
    found |= {("DDN, loss=margin", "l2"): partial(attacks.ddn, num_steps=config.ddn_steps, loss=margin)}
    found |= {("CW", "l2"): partial(attacks.carlini_wagner, **of_cw)}
    return found | {("FAB", norm): partial(fab, norm=norm) for norm in attack_peers.ORDERS}


def theirs(attack: str, norm: str, targets: int, config: Config) -> dict[str, Any]:
    """Library -> (model, x, y) -> images."""
    if attack == "DDN, loss=margin":
        return {}
    if attack == "DDN":
        return attack_peers.ddn(config.ddn_steps)
    if attack == "CW":
        return attack_peers.carlini_wagner(config.cw_steps, config.cw_searches, config.cw_rate, config.cw_constant)
    return attack_peers.fab(norm, config.fab_steps, targets, config.overshoot)


def of_ours(model: Model, attack: Any, x: jax.Array, y: jax.Array) -> tuple[Any, dict[str, float]]:
    """Images, and what they cost; compilation apart."""
    f, key = lambda x: model.f(x, jnp), jax.random.key(0)
    run = jax.jit(lambda x: attack(f, x, y, key)).lower(x).compile()
    run(x)
    start = time.perf_counter()
    result = jax.block_until_ready(run(x))
    seconds = time.perf_counter() - start
    passes = {name: float(np.mean(getattr(result, name))) for name in ("forward", "backward")}
    return result.x_adv, passes | {"seconds": seconds}


def of_peer(model: Model, run: Any, x: jax.Array, y: jax.Array) -> tuple[Any, dict[str, float]]:
    """The same of a torch attack."""
    import torch

    counted = _counted(model, torch)
    images, labels = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y)).long()
    start = time.perf_counter()
    found = run(counted, images, labels)
    seconds = time.perf_counter() - start
    passes = {name: count / len(x) for name, count in counted.rows.items()}
    return np.asarray(found.detach()), passes | {"seconds": seconds}


def _counted(model: Model, torch: Any) -> Any:
    """The model as a module that counts the rows that went through it, forth and back."""
    rows = {"forward": 0, "backward": 0}

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            rows["forward"] += len(x)
            return x.view_as(x)

        @staticmethod
        def backward(context, slope):
            rows["backward"] += len(slope)
            return slope

    class Counted(torch.nn.Module):
        def forward(self, x):
            return model.f(Count.apply(x), torch)

    module = Counted().eval()
    module.rows = rows
    return module


def row(model: Model, norm: str, images: Any, x: jax.Array, y: jax.Array) -> dict[str, Any]:
    """Gaps of the images that fool f, and how many do not or lie below the truth."""
    z = model.f(jnp.asarray(images), jnp)
    fooled = np.asarray(jnp.argmax(z, 1) != y)
    moved = np.asarray(images, np.float64) - np.asarray(x, np.float64)
    missed = {"missed": int(np.sum(~fooled))}
    if not fooled.any():
        return {"median": None, "max": None, "below": 0} | missed
    gap = np.linalg.norm(moved, attack_peers.ORDERS[norm], axis=1)[fooled] / model.distance[norm][fooled] - 1
    found = {"median": float(np.median(gap)), "max": float(gap.max())}
    return found | {"below": int(np.sum(gap < -TOLERANCE))} | missed


def measure(config: Config) -> list[dict]:
    """Rows of model, attack, norm and library."""
    rows = []
    for name, make in MODELS.items():
        model = make(np.random.default_rng(config.seed), config.samples)
        room = np.minimum(model.x, 1 - model.x).min(1)
        assert (model.distance["l1"] < room).all(), "a bound is met on the way"
        x = jnp.asarray(model.x, jnp.float32)
        y = jnp.argmax(model.f(x, jnp), 1).astype(jnp.int32)
        targets = model.f(x, jnp).shape[1] - 1
        for (attack, norm), run in ours(config).items():
            found = {"jacreg_jax": of_ours(model, run, x, y)}
            found |= {n: of_peer(model, peer, x, y) for n, peer in theirs(attack, norm, targets, config).items()}
            for library, (images, cost) in found.items():
                case = {"model": name, "attack": attack, "norm": norm, "library": library}
                rows.append(case | row(model, norm, images, x, y) | cost)
                print(rows[-1], flush=True)
    return rows


def main(config: Config):
    """Measure, print the table, write results/benchmark_attack_distances_cpu.json."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    attack_peers.adv_lib()
    rows = measure(config)
    if config.save:
        write(f"attack_distances_{jax.default_backend()}", rows, config)
    print(page.distance_table(rows))


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
