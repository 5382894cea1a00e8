"""Batches of a problem whose data do not fit into memory: what `problems.images` is for those whose do.

    with streams.training(problem, batch_size=256, seed=0, placement=sharding, workers=8) as feed:
        feed.set_state(position)                      # of a checkpoint, saved beside the model as json
        state, metrics = step(state, next(feed))      # {"image": raw [B, H, W, C] in [0, 1], "label": [B]}
        position = feed.get_state()                   # {"next_batch": 1, "seed": 0, ...}
        row |= feed.rates()                           # images_per_second, and the share of time that was spent waiting
    streams.accuracy(model.raw_f, streams.evaluation(problem, batch_size=256, placement=sharding, workers=8))

The images are cropped and flipped in the workers, so a recipe for such a problem needs no `augment` of its own.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from experiments.lab import world
from experiments.lab.problems import Problem
from experiments.lab.programs import Execution, loss_and_optimizer
from experiments.lab.recipes import Recipe
from jacreg_jax import datasets, sharding, training as train
from jacreg_jax.datasets import images, streams
from jacreg_jax.predictions import predicted_class

FOLDERS = {"imagenet": "imagenet2012"}  # data set of a problem -> its folder
TEST_SPLITS = {"imagenet2012": "validation"}  # the labels of its test split are secret
AS_STORED = ("mnist", "usps", "cifar10")


def training(
    problem: Problem,
    *,
    batch_size: int,
    seed: int,
    placement=None,
    workers: int = 0,
    data_dir: str | None = None,
    source: streams.Source | None = None,
) -> streams.Feed:
    """Endless batches for training, a new order every epoch, on the devices before they are asked for.

    Args:
        problem: whose data are wanted.
        batch_size: of all hosts together.
        seed: of the orders, and of the crops.
        placement: sharding of a batch, a device, or None for the default device.
        workers: processes that read, decode and crop; 0: this one.
        data_dir: of prepared data sets.
        source: other records than the problem's own.
    """
    name, size = _folder(problem), problem.shape[0]
    transform = _as_stored(problem) if name in AS_STORED else partial(images.augmented, size=size)
    source = source or streams.open_split(name, "train", data_dir=data_dir)
    batches = streams.train_batches(
        source, transform, batch_size=batch_size, seed=seed, num_workers=workers, shard=_shard()
    )
    return streams.to_devices(batches, placement, convert=as_raw)


def evaluation(
    problem: Problem,
    split: str = "test",
    *,
    batch_size: int,
    placement=None,
    workers: int = 0,
    data_dir: str | None = None,
    source: streams.Source | None = None,
) -> streams.Feed:
    """One pass over a split, every image once; the last batch is filled up with images of "weight" 0."""
    name, size = _folder(problem), problem.shape[0]
    centered = partial(images.centered, size=size, shorter_side=round(size * 256 / 224))
    transform = _as_stored(problem) if name in AS_STORED else centered
    if source is None:
        part = split.replace("test", TEST_SPLITS.get(name, "test"), 1)
        source = streams.open_split(name, part, data_dir=data_dir)
    batches = streams.eval_batches(source, transform, batch_size=batch_size, num_workers=workers, shard=_shard())
    return streams.to_devices(batches, placement, convert=as_raw)


def make_steps(recipe: Recipe, seed: int, how: Execution, *, workers: int, data_dir: str | None = None):
    """(steps, optimizer, feed): as `programs.make_steps`, of batches that come from worker processes.

    Batch t is step t's, whatever happened before.
    """
    own = {"lambda_jr": recipe.lambda_jr, "weight_decay": recipe.weight_decay}
    problem = dataclasses.replace(recipe.problem, augment=None)  # the workers crop and flip
    loss, optimizer = loss_and_optimizer(dataclasses.replace(recipe, problem=problem), **own, how=how)
    step = train.make_train_step(loss, optimizer, mesh=how.mesh, backend=how.backend)
    placement = None if how.mesh is None else NamedSharding(how.mesh, sharding.ON_ROWS)
    options = {"batch_size": recipe.batch_size, "seed": seed, "workers": workers, "data_dir": data_dir}
    feed = training(recipe.problem, placement=placement, **options)

    def steps(state, data, numbers):
        position = feed.get_state()
        if position["next_batch"] != numbers[0]:
            feed.set_state(position | {"next_batch": int(numbers[0])})
        rows = []
        for _ in numbers:
            state, metrics = step(state, next(feed))
            rows.append(metrics)
        metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        return state, metrics | {"waiting": np.full(len(numbers), feed.rates()["waiting"])}

    return steps, optimizer, feed


def first(problem: Problem, split: str, count: int | None, *, batch_size: int = 256, **options) -> dict:
    """{"image": raw [N, H, W, C], "label": [N]} on the host: the first images of a split, as they are evaluated."""
    found, count = [], sys.maxsize if count is None else count
    with evaluation(problem, split, batch_size=min(batch_size, count), **options) as feed:
        for batch in feed:
            real = np.asarray(batch["weight"]) > 0
            found.append({name: np.asarray(batch[name])[real] for name in ("image", "label")})
            if sum(len(part["label"]) for part in found) >= count:
                break
    return {name: np.concatenate([part[name] for part in found])[:count] for name in ("image", "label")}


def accuracy(f: Callable, feed: streams.Feed) -> float:
    """Share of the images of a pass that f, raw pixels -> logits, gets right; of all hosts. Closes the feed."""
    return counted(f, feed)[0]


def counted(f: Callable, feed: streams.Feed) -> tuple[float, int]:
    """The same, and of how many images."""
    f = f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)  # new parameters do not compile anew
    right = total = 0.0
    with feed:
        for batch in feed:
            found = _counts(f, batch)
            right, total = right + float(found[0]), total + float(found[1])
    right, total = world.total([right, total])
    return right / total, round(total)


@jax.jit
def _counts(f, batch):
    right = predicted_class(f(batch["image"])) == batch["label"]
    return jnp.sum(batch["weight"] * right), jnp.sum(batch["weight"])


@jax.jit
def as_raw(batch: dict) -> dict:
    """The images of a batch from bytes to raw pixels in [0, 1]."""
    return batch | {"image": datasets.from_uint8(batch["image"])}


def _folder(problem: Problem) -> str:
    return FOLDERS.get(problem.dataset, problem.dataset)


def _as_stored(problem: Problem):
    return partial(images.stored, channels=problem.shape[-1])


def _shard() -> tuple[int, int]:
    return jax.process_index(), jax.process_count()
