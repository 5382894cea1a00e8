"""The problems of the paper: a data set, a network and the protocol they are trained and attacked by."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jacreg_jax import datasets
from jacreg_jax.datasets import Preprocessing
from jacreg_jax.models import DDNet, LeNet, ResNet18


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a recipe is a recipe for. To add one, write one; its name stands in results and names their models.

    Attributes:
        name: written into configurations.
        dataset: of `jacreg_jax.datasets`.
        shape: [H, W, C] of the network's input; other sizes are resized to it.
        preprocessing: raw pixels in [0, 1] to the network's input.
        network: (dropout_rate, initialization) -> module.
        learning_rate: of the start, for training on all samples.
        batch_size: the same.
        num_steps: the same.
        quench_every: the learning rate falls tenfold after as many steps.
        weight_decay: of the regularizer "L2".
        dropout_rate: of the regularizer "dropout"; None where the network takes none.
        lambda_jr: of the regularizer "Jacobian".
        penalised: what that is the Jacobian of, see `recipes.Recipe`.
        max_epsilon: adversarial training by FGSM with epsilon ~ U[0, max_epsilon], raw pixels.
        initialization: of the parameters.
        pgd_radius: L-infinity, raw pixels.
        num_attacked: test samples that are attacked.
        attack_preprocessing: the paper's own raw space of attacks, where it is another one, see `attack_space`; None:
            that of the data.
        augment: (image, key) -> image in training, raw pixels; None: nothing.
        resident: the data live on the device; False: batches are gathered on the host.
        together: models in one program on a GPU. Kernels of several models make a grouped convolution, which takes
            longer than one model after the other; LeNet' has matrix products in their place.
    """

    name: str
    dataset: str
    shape: tuple[int, int, int]
    preprocessing: Preprocessing
    network: Callable[[float, str], nn.Module]
    learning_rate: float
    batch_size: int = 100
    num_steps: int = 150_000
    quench_every: int = 50_000
    weight_decay: float = 5e-4
    dropout_rate: float | None = 0.5
    lambda_jr: float = 0.01
    penalised: str = "as trained"
    max_epsilon: float = 0.01
    initialization: str = "xavier"
    pgd_radius: float = 32 / 255
    num_attacked: int = 1000
    attack_preprocessing: Preprocessing | None = None
    augment: Callable | None = None
    resident: bool = True
    together: int = 1

    def folder(self, figure: str) -> str:
        """Of the results of a figure that the paper draws for several networks; LeNet' came first."""
        return figure if self.name == "mnist_lenet" else f"{figure}_{self.name}"

    def attack_space(self, raw):
        """Raw pixels of the data as the attacks' raw pixels: the same, but where attack_preprocessing is another map.

        The network's input stays what it is: attack_space(raw), preprocessed by attack_preprocessing, is raw,
        preprocessed by preprocessing. But where it leaves [0, 1] it is cropped, before an attack as after: of a
        photograph's entries a few percent, by 0.046 at most.
        """
        if self.attack_preprocessing is None:
            return raw
        return jnp.clip(self.attack_preprocessing.denormalize(self.preprocessing.normalize(raw)), 0, 1)


def crop_and_flip(image, key):
    """Random resized crop (8 to 100 % of the area, aspect 3/4 to 4/3) to its own size, and a flip; [H, W, C]."""
    height, width, _ = image.shape
    area, aspect, down, right, flip = jax.random.split(key, 5)
    share = jax.random.uniform(area, minval=0.08, maxval=1.0)
    ratio = jnp.exp(jax.random.uniform(aspect, minval=jnp.log(3 / 4), maxval=jnp.log(4 / 3)))
    sides = jnp.minimum(jnp.sqrt(share * jnp.stack([1 / ratio, ratio])), 1.0)  # of the whole, [2]
    corner = jnp.stack([jax.random.uniform(down), jax.random.uniform(right)]) * (1 - sides)
    size = jnp.array([height, width], image.dtype)
    moved = jax.image.scale_and_translate(
        image, image.shape, (0, 1), 1 / sides, -corner * size / sides, method="linear", antialias=False
    )
    return jnp.where(jax.random.bernoulli(flip), moved[:, ::-1], moved)


MNIST_LENET = Problem(
    name="mnist_lenet",
    dataset="mnist",
    shape=(28, 28, 1),
    preprocessing=datasets.MNIST,
    network=lambda dropout_rate, initialization: LeNet(dropout_rate=dropout_rate, initialization=initialization),
    learning_rate=0.1,
    together=25,
)
CIFAR10_DDNET = Problem(
    name="cifar10_ddnet",
    dataset="cifar10",
    shape=(32, 32, 3),
    preprocessing=datasets.CIFAR10,
    network=lambda dropout_rate, initialization: DDNet(dropout_rate=dropout_rate, initialization=initialization),
    learning_rate=0.01,
    pgd_radius=16 / 255,
)
CIFAR10_DDNET_GELU = dataclasses.replace(  # a smooth network, for penalties that ask for one
    CIFAR10_DDNET,
    name="cifar10_ddnet_gelu",
    network=lambda *settings: CIFAR10_DDNET.network(*settings).clone(activation=nn.gelu),
)
CIFAR10_RESNET18 = Problem(
    name="cifar10_resnet18",
    dataset="cifar10",
    shape=(32, 32, 3),
    preprocessing=datasets.CIFAR10,
    network=lambda dropout_rate, initialization: ResNet18(),
    learning_rate=0.1,
    dropout_rate=None,
    penalised="batch statistics",
    initialization="torch",
    pgd_radius=16 / 255,
)
IMAGENET_RESNET18 = Problem(
    name="imagenet_resnet18",
    dataset="imagenet",
    shape=(224, 224, 3),
    preprocessing=datasets.IMAGENET,
    network=lambda dropout_rate, initialization: ResNet18(num_classes=1000, variant="imagenet"),
    learning_rate=0.1,
    batch_size=256,
    num_steps=100 * 5004,  # epochs of 1,281,167 samples
    quench_every=30 * 5004,
    weight_decay=1e-4,
    dropout_rate=None,
    penalised="batch statistics",
    initialization="torch",
    pgd_radius=16 / 255,
    num_attacked=10_000,
    # Figure S7 clips to [0, 1] "as if preprocessing were performed with RGB-uniform" mean and deviation
    attack_preprocessing=Preprocessing(mean=0.4490, std=0.2260),
    augment=crop_and_flip,
    resident=False,
)
IMAGENET_SMALL = dataclasses.replace(  # twenty photographs, an epoch a step; see `small_imagenet`
    IMAGENET_RESNET18, name="imagenet_small_resnet18", batch_size=20, num_steps=100, quench_every=30, num_attacked=10
)
OF_IMAGENET = IMAGENET_RESNET18, IMAGENET_SMALL
PROBLEMS = {p.name: p for p in (MNIST_LENET, CIFAR10_DDNET, CIFAR10_DDNET_GELU, CIFAR10_RESNET18, *OF_IMAGENET)}


@functools.lru_cache(maxsize=4)
def images(problem: Problem, split: str, data_dir: str | None = None, dataset: str | None = None) -> dict:
    """{"image": raw [N, H, W, C] in [0, 1], "label": [N]} of a problem, or of another data set in its shape.

    On the device, or on the host for a problem that is not resident.
    """
    pixels, labels = datasets.load(dataset or problem.dataset, split, data_dir=data_dir)
    if pixels.shape[1:3] != problem.shape[:2]:
        pixels = datasets.resize_bilinear(pixels, problem.shape[0])
    place = jnp.asarray if problem.resident else (lambda array: array)
    return {"image": place(datasets.from_uint8(pixels)), "label": place(labels)}


@functools.lru_cache(maxsize=4)
def held_out(problem: Problem, count: int | None = None, data_dir: str | None = None, workers: int = 0) -> dict:
    """The first images of the test set, as `images` has them; None: all.

    Those of a problem that is not resident are read by so many worker processes, and stay on the host.
    """
    if problem.resident:
        return {name: array[:count] for name, array in images(problem, "test", data_dir).items()}
    from experiments.lab import streams  # Grain, an extra

    return streams.first(problem, "test", count, workers=workers, data_dir=data_dir)
