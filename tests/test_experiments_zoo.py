"""Models are trained once, alone or together, kept with all that they are, and read again."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.lab import record, zoo
from experiments.lab.options import Options
from experiments.lab.problems import CIFAR10_DDNET, MNIST_LENET
from experiments.lab.recipes import Recipe, plain, regularizers

ROWS = {name: dataclasses.replace(r.few_shot(1), num_steps=20) for name, r in regularizers(MNIST_LENET).items()}


@pytest.fixture
def options(tfds_dir):
    return Options(data_dir=str(tfds_dir), dispatch=10, checkpoint_every=10)


def test_models_train_together_where_that_is_faster(monkeypatch):
    """Not on CPU; on a GPU not where kernels of several models would make grouped convolutions."""
    sizes = lambda **o: [zoo.group_size(Options(**o), problem) for problem in (MNIST_LENET, CIFAR10_DDNET)]
    assert sizes() == [1, 1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert sizes() == [25, 1]
    assert sizes(together=4) == [4, 4]


def distance(a, b):
    return max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_models_trained_together_equal_those_trained_alone(options, tmp_path):
    """Seeds and regularizers in one program, dropout among them, each as alone; who is in the group is written down."""
    first = ROWS["all"]
    second = dataclasses.replace(first, lambda_jr=0.3, weight_decay=0.1)
    other = ROWS["L2"]
    together = dataclasses.replace(options, runs=tmp_path / "together", together=6)
    models = {first: dict(zoo.train(first, range(2), together, [first, second, other]))}
    elsewhere = dataclasses.replace(together, data_dir="/nowhere")
    models[second] = dict(zoo.train(second, range(2), elsewhere))  # trained beside the first
    with pytest.raises(FileNotFoundError):
        next(zoo.train(other, [0], elsewhere))
    assert len({model.weights for found in models.values() for model in found.values()}) == 4
    assert distance(models[first][0].params, models[first][1].params) > 0.01
    alone = dataclasses.replace(options, runs=tmp_path / "alone")
    for recipe, found in models.items():
        for seed, model in zoo.train(recipe, range(2), alone):
            chex.assert_trees_all_close(model.params, found[seed].params, atol=2e-5)
    again = next(zoo.train(first, [1], dataclasses.replace(alone, data_dir="/nowhere")))[1]
    assert distance(again.params, models[first][1].params) < 2e-5, "a trained model is read, not trained"
    (run,) = (tmp_path / "together" / "models").glob("together-*")
    zoo.model_path(second, 1, together).unlink()
    again = next(zoo.train(second, [1], dataclasses.replace(together, together=2)))[1]
    assert again.weights == models[second][1].weights  # from the group's last checkpoint, not trained anew
    assert [path.name for path in run.parent.glob("together-*")] == [run.name]


def test_a_model_over_two_devices_is_the_same_and_goes_on(options, tmp_path):
    recipe = dataclasses.replace(ROWS["Jacobian"], num_steps=20)
    one = next(zoo.train(recipe, [0], dataclasses.replace(options, runs=tmp_path / "one")))[1]
    two = dataclasses.replace(options, runs=tmp_path / "two", devices=2)
    whole = next(zoo.train(recipe, [0], two))[1]
    chex.assert_trees_all_close(whole.params, one.params, atol=2e-5)
    path = zoo.model_path(recipe, 0, two)
    path.unlink()
    shutil.rmtree(path.with_suffix("") / "checkpoints" / "20")
    again = next(zoo.train(recipe, [0], two))[1]  # from step 10
    chex.assert_trees_all_equal(again.params, whole.params)


def test_a_lazy_recipe_trains_alone(tmp_path, monkeypatch):
    groups = []
    monkeypatch.setattr(zoo, "_train_group", lambda members, *_: groups.append(members))
    monkeypatch.setattr(zoo, "load", lambda *_: None)
    options = Options(runs=tmp_path, together=4)
    for recipe in (Recipe(lambda_jr=0.1), Recipe(lambda_jr=0.1, lazy=4)):
        next(zoo.train(recipe, range(3), options))
    next(zoo.train(Recipe(), range(3), dataclasses.replace(options, devices=2)))
    assert [len(members) for members in groups] == [3, 1, 3]  # the last are spread over the devices


def test_watched_models_are_kept_apart(options, tmp_path):
    """A model that was trained unwatched has no curve; one that is watched otherwise has another."""
    recipe = dataclasses.replace(Recipe(), num_steps=20, quench_every=None)
    options = dataclasses.replace(options, runs=tmp_path)
    next(zoo.train(recipe, [0], options))
    watch = zoo.Watch(lambda model: {"test": float(jnp.sum(model.params["Dense_2"]["bias"]))}, 10, "-watched")
    _, model = next(zoo.train(recipe, [0], options, watch=watch))
    rows = zoo.history(zoo.model_path(recipe, 0, options, watch))
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[-1]["test"] == pytest.approx(float(jnp.sum(model.params["Dense_2"]["bias"])))


class Normalised(nn.Module):
    """A network with running statistics."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1)[:, ::8])
        return nn.Dense(10)(x)


def test_statistics_of_batch_norm_are_kept(options, tmp_path):
    problem = dataclasses.replace(MNIST_LENET, name="normalised", network=lambda *_: Normalised())
    recipe = dataclasses.replace(plain(problem).few_shot(1), num_steps=20)
    options = dataclasses.replace(options, runs=tmp_path)
    _, model = next(zoo.train(recipe, [0], options))
    _, again = next(zoo.train(recipe, [0], dataclasses.replace(options, data_dir="/nowhere")))
    chex.assert_trees_all_equal((again.params, again.model_state), (model.params, model.model_state))
    (statistics,) = again.model_state["batch_stats"].values()
    assert float(jnp.abs(statistics["mean"]).max()) > 0.1
    fresh = dataclasses.replace(model, model_state=jax.tree.map(jnp.zeros_like, model.model_state))
    x = jax.random.uniform(jax.random.key(0), (4, 28, 28, 1))
    assert float(jnp.abs(model.f(x) - fresh.f(x)).max()) > 0.01, "the model is evaluated with its statistics"
    assert model.weights == again.weights != fresh.weights, "weights are all that a model is"


def test_an_old_model_file_without_them_is_read(tmp_path):
    record.write_arrays(tmp_path / "seed-0.npz", {"Dense_0/kernel": np.ones((2, 3), np.float32)})
    model = zoo.load(tmp_path / "seed-0.npz", MNIST_LENET)
    assert model.params["Dense_0"]["kernel"].shape == (2, 3)
    assert model.model_state == {}


def test_what_is_beside_a_model(options, tmp_path):
    options = dataclasses.replace(options, runs=tmp_path)
    _, model = next(zoo.train(ROWS["none"], [0], options))
    facts = json.loads(zoo.model_path(ROWS["none"], 0, options).with_suffix(".json").read_text())
    assert facts["weights"] == model.weights
    assert facts["config"] == {"recipe": ROWS["none"].config(), "seed": 0}
    assert facts["last"]["step"] == 20
    assert facts["run"] == "seed-0"


def test_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="mnist"):
        next(zoo.train(Recipe(num_steps=1), [0], Options(data_dir=str(tmp_path), runs=tmp_path)))
