"""The paper's data as uint8 arrays, its preprocessing constants, few-shot subsets and epoch orders.

Nothing here imports tensorflow; tensorflow-datasets, scikit-learn and pillow (`pip install "jacreg-jax[datasets]"`)
are imported by the functions that need them, and grain (`"jacreg-jax[streams]"`) by those of `streams`: data that do
not fit into memory. `images` decodes, crops and flips.
"""

from jacreg_jax.datasets import images as images, streams as streams
from jacreg_jax.datasets.loading import (
    DATASETS as DATASETS,
    DatasetNotFoundError as DatasetNotFoundError,
    load as load,
    prepare as prepare,
)
from jacreg_jax.datasets.preprocessing import (
    CIFAR10 as CIFAR10,
    IMAGENET as IMAGENET,
    MNIST as MNIST,
    PREPROCESSING as PREPROCESSING,
    Preprocessing as Preprocessing,
    from_uint8 as from_uint8,
    resize_bilinear as resize_bilinear,
)
from jacreg_jax.datasets.sampling import (
    epoch_permutation as epoch_permutation,
    few_shot as few_shot,
)
