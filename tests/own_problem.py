"""A user's own problems, found by their dotted names."""

import dataclasses

from experiments.lab.problems import MNIST_LENET
from jacreg_jax.models import MLP

SMALL = dataclasses.replace(
    MNIST_LENET,
    name="mnist_mlp",
    network=lambda dropout_rate, initialization: MLP((16, 10), dropout_rate=dropout_rate),
    learning_rate=0.02,
)
# read in workers, as data that do not fit into memory are
STREAMED = dataclasses.replace(SMALL, name="mnist_streamed", resident=False)
