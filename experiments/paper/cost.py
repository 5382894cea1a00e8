"""Section 2's cost: a step with the penalty over a plain one, by arithmetic and by clock; LeNet', DDNet and ResNet-18.

Command:    python -m experiments cost
Paper:      about 1.3 for LeNet' on MNIST with one projection, on one GPU, in PyTorch; about 2 for ResNet-18.
Arithmetic: XLA's own count of a compiled step with plain convolutions. The clock: fresh steps, all in turn.
Time:       2 CPU cores and nothing beside it: 10 minutes.
Leaves:     experiments/results/cost/PROBLEM.json.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.lab import measure, options, record
from experiments.lab.problems import PROBLEMS
from experiments.lab.programs import initial_state, module_of, penalty_of
from experiments.lab.recipes import Recipe, jacobian, plain
from experiments.page import results
from experiments.page.elements import Element, State
from experiments.paper.numbers import COST
from jacreg_jax import training
from jacreg_jax.models import train_mode
from jacreg_jax.pooled_convolution import lax_conv_max_pool

NETWORKS = {
    "mnist_lenet": "LeNet', MNIST",
    "cifar10_ddnet": "DDNet, CIFAR-10",
    "cifar10_resnet18": "ResNet-18, CIFAR-10",
}
VARIANTS = {
    "n = 1": {},
    "n = 3": {"num_projections": 3},
    "exact": {"num_projections": "exact"},
    "n = 1, a quarter of the batch": {"sample_fraction": 0.25},
}
STEPS = {"mnist_lenet": 50, "cifar10_ddnet": 5, "cifar10_resnet18": 1}  # of a round
LAX = {
    "conv_general_dilated": jax.lax.conv_general_dilated,
    "max_pool": nn.max_pool,
    "conv_max_pool": lax_conv_max_pool,
}
PAPER = {"mnist_lenet": f"about {COST}", "cifar10_resnet18": "about 2"}


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """What is timed."""

    problems: tuple[Literal["mnist_lenet", "cifar10_ddnet", "cifar10_resnet18"], ...] = tuple(NETWORKS)
    variants: tuple[Literal["n = 1", "n = 3", "exact", "n = 1, a quarter of the batch"], ...] = tuple(VARIANTS)
    rounds: int = 10
    """Of the clock; the median is taken."""


QUICK = options.QUICK | {"problems": ("mnist_lenet",), "variants": ("n = 1",), "rounds": 1}


def recipes(name: str, config: Config) -> dict[str, Recipe]:
    """The plain recipe of a problem, and the penalised ones."""
    base, problem = plain(PROBLEMS[name]), PROBLEMS[name]
    penalised = dataclasses.replace(base, **jacobian(problem, problem.lambda_jr))
    return {"plain": base} | {v: dataclasses.replace(penalised, **VARIANTS[v]) for v in config.variants}


def files(config: Config) -> dict[str, dict]:
    """What each file depends on."""
    return {f"cost/{name}": {"variants": config.variants, "rounds": config.rounds} for name in config.problems}


def run(config: Config):
    """Count and time what is missing."""
    for name, (file, settings) in zip(config.problems, files(config).items(), strict=True):
        path = config.results / f"{file}.json"
        if record.is_done(path, settings):
            print(f"read from {path}, nothing run; --out FOLDER to run it")
            continue
        of = recipes(name, config)
        counted = {variant: operations(recipe) for variant, recipe in of.items()}
        timed = dataclasses.replace(config, dispatch=min(config.dispatch, STEPS[name]))
        milliseconds = measure.milliseconds(of, timed, config.rounds)
        found = {"operations": counted, "milliseconds": milliseconds, "environment": record.environment()}
        record.write_json(path, {"config": settings} | found)
        print(f"{NETWORKS[name]}: {milliseconds} ms a step")


def operations(recipe: Recipe) -> float:
    """Floating-point operations of one compiled step, as XLA counts them, with plain convolutions."""
    network = recipe.problem.network
    own = lambda module: module.clone(**{k: v for k, v in LAX.items() if hasattr(module, k)})
    problem = dataclasses.replace(recipe.problem, network=lambda *settings: own(network(*settings)))
    recipe, optimizer = dataclasses.replace(recipe, problem=problem), training.sgd(recipe.learning_rate)
    loss = training.classification_loss(
        train_mode(module_of(recipe)),
        penalty=penalty_of(recipe, chunk_size=10),  # XLA counts the body of a loop once
        lambda_jr=recipe.lambda_jr,
        preprocess=problem.preprocessing.normalize,
    )
    shapes = {"image": (recipe.batch_size, *problem.shape), "label": (recipe.batch_size,)}
    batch = {k: jax.ShapeDtypeStruct(s, jnp.float32 if k == "image" else jnp.int32) for k, s in shapes.items()}
    state = jax.eval_shape(lambda: initial_state(recipe, 0, optimizer))
    step = training.make_train_step(loss, optimizer)
    return float(step.lower(state, batch).compile().cost_analysis()["flops"])


def ratios(name: str, what: str) -> dict[str, float]:
    """Of a file: by variant, over the plain step; empty where it was not run."""
    found = (results.read(f"cost/{name}") or {what: {}})[what]
    return {variant: value / found["plain"] for variant, value in found.items() if variant != "plain"}


def table() -> str:
    """By network and variant."""
    rows = []
    for name, label in NETWORKS.items():
        counted, timed = ratios(name, "operations"), ratios(name, "milliseconds")
        for variant in VARIANTS:
            show = lambda found, variant=variant: f"{found[variant]:.2f}" if variant in found else "not run"
            rows.append([label, variant, PAPER.get(name, "") * (variant == "n = 1"), show(counted), show(timed)])
    header = ["a step over a plain one", "penalty", "paper, on a GPU", "by arithmetic", "by clock, on CPU"]
    return results.table(header, rows)


def state(name: str) -> tuple[State, str]:
    """The claim is about a GPU."""
    timed, counted = ratios(name, "milliseconds"), ratios(name, "operations")
    return "not run", f"on a GPU; {timed['n = 1']:.2f} on CPU, {counted['n = 1']:.2f} by arithmetic" if timed else ""


TABLES = {"cost": table}
ELEMENTS = [
    Element(
        "Section 2, cost",
        f"a step with n = 1 costs about {COST} plain ones; LeNet', MNIST, one GPU",
        lambda: state("mnist_lenet"),
    ),
    Element("Section 2, footnote 4", "about 2 for ResNet-18 on CIFAR-10", lambda: state("cifar10_resnet18")),
]
