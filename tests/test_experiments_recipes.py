"""Problems and recipes: pure data, and the committed results and old run folders are found again."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import ddnet_attacks, rows
from experiments.beyond import sceptic
from experiments.lab import batches, problems, programs, recipes, record, zoo
from experiments.lab.options import Options
from experiments.lab.problems import CIFAR10_DDNET, CIFAR10_RESNET18, IMAGENET_RESNET18, MNIST_LENET
from experiments.lab.recipes import Recipe, defences, from_config, plain, regularizers
from experiments.page import results
from experiments.studies import methods

ROWS, BASES = regularizers(MNIST_LENET), defences(MNIST_LENET)
JACOBIAN = ROWS["Jacobian"].shortened(15_000)

# what the digests of runs/models were before experiments/ was rebuilt
OLD_DIGESTS = {
    "dd52c4c905": ROWS["none"],
    "d6e526b49d": ROWS["L2"],
    "a016683eb6": ROWS["dropout"],
    "cc790753dd": ROWS["Jacobian"],
    "3461647804": ROWS["all"],
    "f18a35dcef": ROWS["none"].few_shot(1),
    "795ed54bec": ROWS["L2"].few_shot(1),
    "f5aaf5ff2d": ROWS["dropout"].few_shot(1),
    "3f5b28290f": ROWS["Jacobian"].few_shot(1),
    "b4fe14181e": ROWS["all"].few_shot(1),
    "df8c6fe571": ROWS["none"].few_shot(30).shortened(20),
    "0286c7eb3d": ROWS["all"].few_shot(30).shortened(20),
    "0986a8532b": ROWS["none"].shortened(15_000),
    "ae9fefdc04": JACOBIAN,
    "dea3eae4e7": BASES["none"],
    "3b1a7cc500": BASES["adversarial"],
    "eec3234989": BASES["both"],
    "290a80e9c8": dataclasses.replace(ROWS["none"].shortened(15_000), order="reshuffled otherwise"),
    "ec2532b99e": dataclasses.replace(ROWS["none"].shortened(15_000), order="same every epoch"),
    "2f1a3279ca": dataclasses.replace(ROWS["none"].shortened(15_000), order="with replacement"),
    "bd75cf06e7": dataclasses.replace(JACOBIAN, order="reshuffled otherwise"),
    "5636416490": dataclasses.replace(ROWS["all"].few_shot(1), penalised="eval mode"),
    "f97080e665": BASES["none"].shortened(15_000),
    "67d671ab79": dataclasses.replace(BASES["none"].shortened(15_000), lambda_jr=0.03),
    "65a7a9bdf1": dataclasses.replace(BASES["none"].shortened(15_000), lambda_jr=0.1),
    "9f91dc7852": dataclasses.replace(JACOBIAN, probe="rademacher"),
    "173e620347": dataclasses.replace(JACOBIAN, num_projections=3),
    "90c33323ac": dataclasses.replace(JACOBIAN, num_projections=3, probe="orthonormal"),
    "51a0650ddf": dataclasses.replace(JACOBIAN, sample_fraction=0.25),
    "7029b07665": dataclasses.replace(JACOBIAN, lazy=4),
    "c2bd359fea": dataclasses.replace(JACOBIAN, num_projections="exact"),
    "49bc3bdb5e": dataclasses.replace(ROWS["none"].few_shot(1), initialization="xavier_normal"),
    "28144b4873": dataclasses.replace(ROWS["none"].few_shot(1), initialization="torch"),
}


@pytest.mark.parametrize("digest", OLD_DIGESTS)
def test_old_models_are_found_again(digest):
    recipe = OLD_DIGESTS[digest]
    assert recipe.digest() == digest
    assert from_config(recipe.config()) == recipe


def test_old_groups_are_found_again():
    one = [(ROWS["none"].few_shot(1), 0), (ROWS["L2"].few_shot(1), 0)]
    assert record.digest(zoo._config(one, Options())) == "b5e9494053"


def test_a_run_that_was_begun_with_other_draws_is_not_gone_on_with(tmp_path):
    """Dropout once shared a key with the first probe: a run half of one and half of the other would be neither."""
    members = [(ROWS["dropout"].few_shot(1), 0)]
    now = zoo._config(members, Options())
    before = {name: value for name, value in now.items() if name != "draws"}
    record.write_json(tmp_path / "config.json", {"config": before})
    with (
        pytest.raises(ValueError, match=r"'draws': \(None, 2\)}. Choose another folder with --runs"),
        record.run_folder(tmp_path, now),
    ):
        pass
    penalised = [(ROWS["Jacobian"].few_shot(1), 0)]
    assert "draws" not in zoo._config(penalised, Options()), "probes draw as before"


def test_a_recipe_is_written_without_what_stands_where_mnist_has_it():
    assert plain(MNIST_LENET) == Recipe()
    assert not {"problem", "order", "penalised", "draw"} & Recipe().config().keys()
    assert plain(CIFAR10_DDNET).config()["problem"] == "cifar10_ddnet"
    assert dataclasses.replace(Recipe(), draw=2).config()["draw"] == 2


def test_the_protocols_of_the_problems():
    assert len({r.digest() for r in (*ROWS.values(), *BASES.values())}) == 8  # "all" is a defence too
    few = ROWS["L2"].few_shot(3)
    assert (few.num_steps, few.learning_rate, few.quench_every, few.weight_decay) == (10_000, 0.01, None, 5e-4)
    short = Recipe().shortened(15_000)
    assert (short.num_steps, short.quench_every) == (15_000, 5_000)
    assert Recipe().shortened(None) == Recipe()
    assert plain(CIFAR10_DDNET).learning_rate == 0.01
    assert plain(IMAGENET_RESNET18).batch_size == 256
    assert list(regularizers(CIFAR10_RESNET18)) == ["none", "L2", "Jacobian", "all"]
    assert all(r.dropout_rate == 0 for r in defences(CIFAR10_RESNET18).values())
    everything = [{**regularizers(p), **defences(p)} for p in problems.PROBLEMS.values()]
    assert all(from_config(r.config()) == r for found in everything for r in found.values())


def test_a_config_of_something_else_is_refused():
    with pytest.raises(ValueError, match="must be that of a recipe of mnist_lenet, .*; got 'mnist_mlp'"):
        from_config({"problem": "mnist_mlp"})
    with pytest.raises(ValueError, match="depth"):
        from_config(Recipe().config() | {"depth": 3})


@pytest.mark.parametrize("problem", [MNIST_LENET, CIFAR10_DDNET, CIFAR10_RESNET18], ids=lambda p: p.name)
def test_networks_fit_their_problems(problem):
    module = programs.module_of(plain(problem))
    x = jax.ShapeDtypeStruct((2, *problem.shape), jnp.float32)
    logits, _ = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x), x)
    assert logits.shape == (2, 10)


def test_attacks_of_imagenet_move_other_pixels():
    raw = jnp.asarray(np.random.default_rng(0).uniform(0.05, 0.95, size=(2, 4, 4, 3)), jnp.float32)
    moved = IMAGENET_RESNET18.attack_space(raw)
    assert not np.allclose(moved, raw, atol=1e-3)
    seen = IMAGENET_RESNET18.attack_preprocessing.normalize(moved)
    np.testing.assert_allclose(seen, IMAGENET_RESNET18.preprocessing.normalize(raw), atol=1e-5)
    assert MNIST_LENET.attack_space(raw) is raw


def test_crop_and_flip():
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 8, 3)), jnp.float32)
    many = jax.vmap(problems.crop_and_flip, (None, 0))
    made = many(image, jax.random.split(jax.random.key(0), 50))
    assert made.shape == (50, 8, 8, 3)
    assert float(made.min()) >= 0
    assert float(made.max()) <= 1
    assert len(np.unique(np.round(made[:, 0, 0, 0], 5))) > 40
    constant = many(jnp.full((8, 8, 3), 0.5), jax.random.split(jax.random.key(1), 50))
    np.testing.assert_allclose(constant, 0.5, atol=1e-5)  # nothing of the outside comes in


def test_batches_go_on_where_they_stopped():
    whole = batches.reshuffled(3, 0, 25, 4, 18)
    parts = [batches.reshuffled(3, start, count, 4, 18) for start, count in ((0, 7), (7, 18))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    epoch = whole[:4].ravel()
    assert len(set(epoch)) == 16
    assert not np.array_equal(whole[:4], whole[4:8])
    with pytest.raises(ValueError, match="batch_size must be at most the 18 training samples, got 19"):
        batches.reshuffled(0, 0, 1, 19, 18)


@pytest.mark.parametrize("order", ["reshuffled otherwise", "same every epoch", "with replacement"])
def test_other_orders_of_the_data(order):
    labels = np.zeros(16, int)
    rows = batches.rows_of(Recipe(batch_size=4, order=order), 3, labels)
    whole = rows(0, 25)
    np.testing.assert_array_equal(whole[7:], rows(7, 18))
    assert not np.array_equal(whole, batches.rows_of(Recipe(batch_size=4), 3, labels)(0, 25))
    assert np.array_equal(whole[:4], whole[4:8]) == (order == "same every epoch")
    assert (len(set(whole[:4].ravel())) == 16) == (order != "with replacement")


def test_another_draw_gives_other_numbers_and_the_same_batches():
    first, rescaled, anew = (
        dataclasses.replace(ROWS["none"].few_shot(1), initialization=i, draw=d)
        for i, d in (("xavier", 0), ("xavier_normal", 0), ("xavier", 1))
    )
    kernels, keys = [], []
    for recipe in (first, rescaled, anew):
        _, optimizer = programs.loss_and_optimizer(recipe, lambda_jr=0.0, weight_decay=0.0)
        state = programs.initial_state(recipe, 0, optimizer)
        kernels.append(max(jax.tree.leaves(state.params), key=np.size).ravel())
        keys.append(jax.random.key_data(state.key))
    correlation = lambda a, b: float(np.corrcoef(a, b)[0, 1])
    assert correlation(kernels[0], kernels[1]) > 0.9
    assert abs(correlation(kernels[0], kernels[2])) < 0.05
    np.testing.assert_array_equal(keys[0], keys[2])


def test_regularized_names_the_defences_apart():
    found = recipes.regularized(MNIST_LENET)
    assert found["base"] == BASES["none"]
    assert found["all"] == BASES["Jacobian"]
    assert len(set(found.values())) == len(found)


def test_methods_of_the_sceptic_differ_from_the_base_in_what_they_say():
    base, known = defences(CIFAR10_DDNET)["none"], methods.methods(CIFAR10_DDNET)
    assert known["base"].recipe == base
    assert known["Jacobian, 0.01"].recipe == defences(CIFAR10_DDNET)["Jacobian"]
    assert known["FGSM, the paper's epsilon"].recipe == defences(CIFAR10_DDNET)["adversarial"]
    smooth = known["input gradient, L1, 0.1"].recipe
    assert (smooth.relative, smooth.lambda_jr, smooth.problem.name) == ("input gradient, L1", 0.1, "cifar10_ddnet_gelu")
    assert dataclasses.replace(smooth, lambda_jr=0.0, relative="") == known["base, smooth"].recipe
    assert (known["PGD, 7 steps"].cost, known["PGD, 7 steps"].recipe.pgd_steps) == (8, 7)
    assert known["PGD, 7 steps"].recipe.max_epsilon == 8 / 255
    assert "base, smooth" not in methods.methods(MNIST_LENET), "LeNet' is smooth: tanh"
    assert len({m.recipe.digest() for m in known.values()}) == len(known)


def test_the_sceptic_measures_what_is_asked_for():
    config = sceptic.Config(methods=("base", "Jacobian, 0.1"), kinds=("smoothed", "clean"), seeds=2)
    found = sceptic.cells(config)
    names = [f"{kind}-{method}" for method in ("base", "Jacobian-0.1") for kind in ("smoothed", "clean")]
    assert [cell.name for cell in found] == [f"sceptic/{name}" for name in names]
    every = {cell.name: cell.config() for cell in sceptic.cells(dataclasses.replace(config, kinds=sceptic.KINDS))}
    assert len(every) == 8
    assert all(every[cell.name] == cell.config() for cell in found)


def test_gelu_of_a_network_is_gelu():
    """Its logits move with the input where all units of a ReLU network rest."""
    networks = [programs.module_of(plain(p)) for p in (CIFAR10_DDNET, problems.CIFAR10_DDNET_GELU)]
    x = jnp.ones((1, 32, 32, 3))
    params = networks[0].init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf - 1.0 * (leaf.ndim == 1), params)  # biases of -1
    relu, gelu = ([network.apply(params, scale * x) for scale in (0, 1e-2)] for network in networks)
    np.testing.assert_array_equal(*relu)
    assert jnp.any(gelu[0] != gelu[1])


def test_equal_clean_accuracy_takes_the_strongest_that_is_near():
    known = methods.methods(MNIST_LENET)
    clean = {"base": [99.0, 98.8], "Jacobian, 0.01": [98.9], "Jacobian, 0.1": [98.0], "spectral norm, 0.01": [97.0]}
    found = methods.at_equal_accuracy(known, clean)
    assert found == {"base": "base", "Jacobian": "Jacobian, 0.1", "spectral norm": None}
    found = methods.at_equal_accuracy(known, clean | {"Jacobian, 0.1": [97.8]})
    assert found["Jacobian"] == "Jacobian, 0.01"
    assert methods.at_equal_accuracy(known, {"Jacobian, 0.1": [99.0]}) == {}, "no base, no comparison"


def test_a_benchmark_of_attacks_keeps_what_it_measured(tmp_path, monkeypatch):
    """Rows of these settings and this machine stand, the rest is made; the file names all that it holds."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    config = ddnet_attacks.Config(defences=("none",), attacks=("PGD", "ensemble"), num_attacked=3)
    made = [{"defence": "none", "attack": name} for name in ("PGD", "the ensemble, L2 0.25")]
    rows.write("ddnet_attacks_3_cpu", made, ddnet_attacks.of_rows(made, config))
    path = tmp_path / "benchmark_ddnet_attacks_3_cpu.json"
    other = dataclasses.replace(config, attacks=("FAB-T",))
    assert ddnet_attacks.measured(path, other) == made
    assert ddnet_attacks.of_rows([*made, {"defence": "none", "attack": "FAB-T"}], other).attacks == (
        *("PGD", "FAB-T"),
        "ensemble",
    )
    assert ddnet_attacks.measured(path, dataclasses.replace(config, epsilon=0.5)) == []
    monkeypatch.setattr(ddnet_attacks, "machine", lambda: "another")
    assert ddnet_attacks.measured(path, config) == []


def test_a_benchmark_of_attacks_goes_on_behind_its_last_part(tmp_path, monkeypatch, capsys):
    """A stop in the second part leaves the first; the rest is attacked once, and the median is that of all images."""
    for module in (rows, ddnet_attacks, results):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(ddnet_attacks.zoo, "train", lambda *_: iter([(0, SimpleNamespace(raw_f=None, weights="w"))]))
    held = {"image": np.zeros((5, 1)), "label": np.zeros(5, int)}
    monkeypatch.setattr(ddnet_attacks, "held_out", lambda *_: held)
    seen = []

    def attacked(f, x, y, attack, start, config):
        seen.append((attack, start, len(x)))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return np.arange(start, start + len(x)) if attack == "PGD" else np.arange(start, start + len(x)) > 0

    monkeypatch.setattr(ddnet_attacks, "attacked", attacked)
    config = ddnet_attacks.Config(defences=("none",), attacks=("PGD", "ensemble"), num_attacked=5, part=2)
    with pytest.raises(KeyboardInterrupt):
        ddnet_attacks.main(config)
    assert "PGD, the first 2 " in ddnet_attacks.table()
    ddnet_attacks.main(config)
    parts = [(0, 2), (2, 2), (4, 1)]
    assert seen[:2] == [("PGD", 0, 2), ("PGD", 2, 2)]
    assert seen[2:] == [*(("PGD", *part) for part in parts[1:]), *(("ensemble", *part) for part in parts)]
    made = results.read("benchmark_ddnet_attacks_5_cpu")["rows"]
    assert [(r["attack"], r.get("median"), r.get("robust")) for r in made] == [
        *(("PGD", 2.0, None), ("the ensemble, L2 0.25", None, 0.8)),
    ]
    assert "not run" not in capsys.readouterr().out
