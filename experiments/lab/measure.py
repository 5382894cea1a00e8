"""What a trained model is: accuracy, ||J||_F, accuracy under noise, and what a step of its training costs."""

import time
from functools import partial

import jax
import numpy as np

from experiments.lab import world
from experiments.lab.batches import rows_of
from experiments.lab.options import Options
from experiments.lab.problems import held_out, images
from experiments.lab.programs import Execution, initial_state, make_steps
from experiments.lab.recipes import Recipe
from experiments.lab.zoo import Model
from jacreg_jax import attacks, evaluation

SIZES = {"mnist": 10_000, "usps": 2_007, "cifar10": 10_000, "imagenet": 50_000}  # of the test sets


def clean(
    model: Model,
    seed: int,
    *,
    norms: int | None,
    data_dir: str | None,
    dataset: str | None = None,
    workers: int = 0,
    batch_size: int = 256,
) -> dict:
    """Test accuracy, and both means of the exact ||J||_F over the first `norms` samples (None: all; 0: not measured).

    Args:
        model: under study.
        seed: not used; measures are called with it.
        norms: how many samples.
        data_dir: of the data sets.
        dataset: another than the problem's, brought to its shape.
        workers: processes that read data which do not fit into memory.
        batch_size: of the same.
    """
    if model.problem.resident:
        test = images(model.problem, "test", data_dir, dataset)
        result = {"accuracy": evaluation.accuracy(model.image_f, test["image"], test["label"])}
        used = len(test["label"])
    else:
        from experiments.lab import streams  # Grain, an extra

        feed = streams.evaluation(model.problem, batch_size=batch_size, workers=workers, data_dir=data_dir)
        share, used = streams.counted(model.image_f, feed)
        result = {"accuracy": share}
        test = held_out(model.problem, norms, data_dir, workers) if norms != 0 else {}
    whole = SIZES.get(dataset or model.problem.dataset, used)
    if used < whole:
        result |= {"test_images": used, "of_test_images": whole}
    if norms == 0:
        return result
    x = model.problem.preprocessing.normalize(test["image"][:norms])
    return result | {"jacobian_norm": evaluation.norm_summary(evaluation.jacobian_norms(model.f, x))}


def noise_curve(model: Model, seed: int, *, sigmas: tuple[float, ...], data_dir: str | None) -> dict:
    """Accuracy on the whole test set under white noise of each deviation, in raw pixels."""
    test, key = held_out(model.problem, None, data_dir), jax.random.key(seed)
    x = model.problem.attack_space(test["image"])
    under = partial(evaluation.run_attack, attacks.white_noise, model.raw_f, x, test["label"], key)
    return {"accuracy": [float(1 - np.mean(under(sigma=sigma).success)) for sigma in sigmas]}


def milliseconds(recipes: dict[str, Recipe], options: Options, rounds: int = 5) -> dict[str, float]:
    """Median time of a training step by recipe: fresh steps, one recipe after the other in every round."""
    data = images(next(iter(recipes.values())).problem, "train", options.data_dir)
    runs, times = {}, {name: [] for name in recipes}
    for name, recipe in recipes.items():
        mesh = world.mesh_of(options.devices)
        steps, optimizer = make_steps([recipe], Execution(options.part_size, mesh, options.backend))
        rows = rows_of(recipe, 0, np.asarray(data["label"]))(0, options.dispatch)
        runs[name] = [steps, initial_state(recipe, 0, optimizer), rows]
    for _ in range(1 + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run[1], _ = jax.block_until_ready(run[0](run[1], data, run[2]))
            times[name].append(1e3 * (time.perf_counter() - start) / options.dispatch)
    return {name: round(float(np.median(found[1:])), 3) for name, found in times.items()}  # the first one compiles
