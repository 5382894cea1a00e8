"""LeNet' twice on real handwritten digits, without and with Jacobian regularization: what did the penalty buy?

Reproduces: the paper's story in small (Figure 1, and one column of Table 1 and Figure 3), not its numbers.
Command:    python -m experiments demo [--dataset mnist]      (or: make demo, make demo DATASET=mnist)
Time:       about two minutes on 2 CPU cores for digits.
Leaves:     runs/demo/demo_DATASET.json and .png; with --commit also in experiments/results.
"""

import dataclasses
import time
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import RESULTS, RUNS
from experiments.lab import disk, record, runner
from experiments.lab.batches import reshuffled
from experiments.page import plots, results
from jacreg_jax import attacks, datasets, decision_cells, evaluation, penalties, training
from jacreg_jax.models import LeNet, initialize, predictor, train_mode


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the demo."""

    dataset: Literal["digits", "mnist"] = "digits"
    """digits: 8x8, inside scikit-learn, upsampled to 28x28. mnist: through tensorflow-datasets."""
    data_dir: str | None = None
    """Prepared tensorflow-datasets folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    num_steps: int = 3000
    """SGD steps for each model; the learning rate falls tenfold after each third of them."""
    batch_size: int = 100
    learning_rate: float = 0.1
    lambda_jr: float = 0.01
    """Coefficient of the Jacobian penalty (the paper's value)."""
    num_projections: int = 1
    seed: int = 0
    sigmas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    """Standard deviations of white noise, in raw pixels."""
    epsilons: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255, 32 / 255)
    """L-infinity radii of PGD, in raw pixels; steps of 1/255."""
    num_attacked: int = 500
    """Test samples that noise and PGD are tried on."""
    num_rays: int = 360
    """Directions in which the nearest boundary is looked for, in the figure."""
    resolution: int = 201
    """Grid points along a side of the figure."""
    commit: bool = False
    """Also write to experiments/results."""


NAMES = {"plain": "without regularization", "Jacobian": "with Jacobian regularization"}
MAX_EXTENT = 20.0  # L2 distance in raw pixels up to which a boundary is looked for

QUICK = {
    "num_steps": 20,
    "num_attacked": 40,
    "sigmas": (0.2,),
    "epsilons": (16 / 255,),
    "num_rays": 8,
    "resolution": 21,
}


def load(config: Config, split: str) -> tuple[jax.Array, jax.Array]:
    """Raw images [N, 28, 28, 1] in [0, 1] and labels, on the device."""
    images, labels = datasets.load(config.dataset, split, data_dir=config.data_dir)
    images = datasets.from_uint8(datasets.resize_bilinear(images, 28))
    return jnp.asarray(images), jnp.asarray(labels)


def train(config: Config, lambda_jr: float, data):
    """A LeNet' module, its trained parameters and the last training metrics."""
    module = LeNet()
    thirds = [config.num_steps // 3, 2 * config.num_steps // 3]
    optimizer = training.sgd(training.quench(config.learning_rate, thirds))
    params, model_state = initialize(module, jax.random.key(config.seed), data["image"][:1])
    state = training.init_state(params, optimizer, jax.random.key(config.seed + 1), model_state)
    loss = training.classification_loss(
        train_mode(module),
        penalty=penalties.projected(config.num_projections),
        lambda_jr=lambda_jr,
        preprocess=datasets.MNIST.normalize,
    )
    steps = training.make_train_steps(loss, optimizer)
    order = partial(reshuffled, config.seed, batch_size=config.batch_size, num_samples=len(data["label"]))
    label = f"lambda_jr = {lambda_jr:g}"
    state, history = runner.train(steps, state, data, order, num_steps=config.num_steps, label=label)
    return module, state.params, history[-1]


# in an L-infinity ball, 40 steps of 1/255 without random start
PGD = partial(attacks.pgd, step_size=1 / 255, num_steps=40)


def evaluate(config: Config, module, params, images, labels) -> dict:
    """Clean accuracy, ||J||_F on the test set (preprocessed space), accuracy under noise and PGD (raw pixels)."""
    key = jax.random.key(config.seed + 2)
    f = predictor(module, params)
    raw_f = predictor(module, params, preprocess=datasets.MNIST.normalize)
    few = images[: config.num_attacked], labels[: config.num_attacked]

    def survivors(attack, **size):
        return 1 - float(evaluation.run_attack(attack, raw_f, *few, key, batch_size=250, **size).success.mean())

    norms = evaluation.jacobian_norms(f, datasets.MNIST.normalize(images))
    return {
        "accuracy": evaluation.accuracy(raw_f, images, labels),
        "jacobian_norm": evaluation.norm_summary(norms),
        "noise": {f"{sigma:g}": survivors(attacks.white_noise, sigma=sigma) for sigma in config.sigmas},
        "pgd": {f"{round(255 * epsilon)}/255": survivors(PGD, epsilon=epsilon) for epsilon in config.epsilons},
    }


def figure(trained: dict, image, label, num_rays: int = 360, resolution: int = 201) -> plt.Figure:
    """The test digit, and each model's decision cells in the plane of the two models' adversarial directions."""
    functions = {
        name: predictor(module, params, preprocess=datasets.MNIST.normalize)
        for name, (module, params) in trained.items()
    }
    attacked = [attack_direction(f, image, label) for f in functions.values()]
    plane = decision_cells.adversarial_plane(image, *attacked)
    radii = {name: boundary(f, plane, num_rays) for name, f in functions.items()}
    extent = float(np.clip(1.5 * max((r for r in radii.values() if np.isfinite(r)), default=6.0), 3, MAX_EXTENT))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.8), width_ratios=(0.5, 1, 1))
    plots.draw_image(axes[0], image, f"test digit, label {int(label)}")
    seen = []
    for axis, (name, f) in zip(axes[1:], functions.items(), strict=True):
        cells = jax.device_get(decision_cells.decision_cells(f, plane, extent=extent, resolution=resolution))
        seen.append(cells.classes)
        plots.draw_cells(axis, cells.classes, cells.confidence, extent, radii[name], NAMES[name])
    plots.class_legend(figure, np.stack(seen))
    figure.suptitle("Decision cells in the plane of the two models' adversarial directions (PGD, L2)")
    figure.subplots_adjust(bottom=0.25, top=0.8)
    return figure


def attack_direction(f, image, label):
    """The image after L2 PGD, fooled or not."""
    options = {"epsilon": 4.0, "step_size": 0.1, "num_steps": 100, "norm": "l2"}
    return attacks.pgd(f, image[None], label[None], **options).x_adv[0]


def boundary(f, plane, num_rays: int) -> float:
    """Distance to the nearest decision boundary in the plane."""
    return float(decision_cells.boundary_distance(f, plane, extent=MAX_EXTENT, num_rays=num_rays))


def run(config: Config) -> dict:
    """Train both models, print the table, save the figure."""
    start = time.perf_counter()
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data_dir", "commit")}
    if config.commit:
        record.is_done(RESULTS / f"demo_{config.dataset}.json", settings)  # raises for another configuration's
    folders = [RUNS / "demo", *([RESULTS] if config.commit else [])]
    for folder in folders:
        disk.check_room(folder)
    images, labels = load(config, "train")
    test_images, test_labels = load(config, "test")
    data = {"image": images, "label": labels}
    trained, models = {}, {}
    for name, lambda_jr in (("plain", 0.0), ("Jacobian", config.lambda_jr)):
        module, params, last = train(config, lambda_jr, data)
        trained[name] = module, params
        models[name] = {"training": last, **evaluate(config, module, params, test_images, test_labels)}
    seconds = round(time.perf_counter() - start, 1)
    result = {"config": settings, "models": models, "environment": record.environment(), "seconds": seconds}
    print("\n" + comparison(result))

    both_right = correct_by_all(trained, test_images[:100], test_labels[:100])
    chosen = int(np.argmax(both_right))
    drawing = figure(trained, test_images[chosen], test_labels[chosen], config.num_rays, config.resolution)
    for folder in folders:
        record.write_json(folder / f"demo_{config.dataset}.json", result)
        plots.save(drawing, folder / f"demo_{config.dataset}.png")
        print(f"wrote {folder / f'demo_{config.dataset}.json'} and .png")
        print("\nNext, your own model: docs/howto/libraries.md has the lines for nnx, linen, equinox, haiku and Keras;")
        print("`jacreg report my_module:f --data test.npz --epsilon linf=0.03` says how robust a model is.")
    plt.close(drawing)
    return result


def correct_by_all(trained: dict, images, labels) -> np.ndarray:
    """Which samples every model gets right."""
    guesses = [
        jnp.argmax(predictor(module, params, preprocess=datasets.MNIST.normalize)(images), -1)
        for module, params in trained.values()
    ]
    return np.all([np.asarray(g == labels) for g in guesses], axis=0)


def comparison(result: dict) -> str:
    """The two models side by side, as a markdown table."""
    models = result["models"]
    percent = lambda values: [f"{100 * v:.1f} %" for v in values]
    rows = [
        ["clean accuracy", *percent(m["accuracy"] for m in models.values())],
        ["norm of the Jacobian, ‖J‖_F", *(f"{results.norm(m):.2f}" for m in models.values())],
    ]
    for kind, label in (("noise", "accuracy, white noise sigma = "), ("pgd", "accuracy, PGD epsilon = ")):
        for size in models["plain"][kind]:
            rows.append([label + size, *percent(m[kind][size] for m in models.values())])
    return results.table([f"LeNet', {result['config']['dataset']}", *models], rows)


def both_datasets() -> str:
    """Both data sets of the demo, each with the command that made it."""
    parts = []
    for name in ("digits", "mnist"):
        result = results.read(f"demo_{name}")
        if result is None:
            parts.append(f"{name}: not run")
            continue
        config = result["config"]
        parts.append(
            f"`make demo DATASET={name}`: {config['num_steps']:,} steps of {config['batch_size']}, "
            f"lambda_jr = {config['lambda_jr']:g}, one seed; noise and PGD on {config['num_attacked']} test images.\n\n"
            + comparison(result)
            + f"\n\n![Decision cells of both models around a test digit](experiments/results/demo_{name}.png)"
        )
    return "\n\n".join(parts)


TABLES = {"demo": both_datasets}
