"""Problems whose data do not fit: their streams give what the resident data give, and evaluate as those do."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks import imagenet_step
from experiments.lab import batches, problems, small_imagenet, streams
from experiments.lab.problems import IMAGENET_RESNET18, MNIST_LENET
from jacreg_jax import evaluation, sharding

SMALL = dataclasses.replace(IMAGENET_RESNET18, shape=(32, 32, 3))


@pytest.fixture(scope="module")
def mesh():
    return sharding.data_mesh(jax.devices()[:4])


def test_a_resident_problem_streams_the_same_batches(tfds_dir, mesh):
    """MNIST, the same rows at the same steps, sharded over devices; to one rounding of the division by 255."""
    train = problems.images(MNIST_LENET, "train", str(tfds_dir))
    rows = batches.reshuffled(2, 599, 2, 100, 60_000)  # the last batch of an epoch, and the first of the next
    placement = NamedSharding(mesh, PartitionSpec("data"))
    with streams.training(MNIST_LENET, batch_size=100, seed=2, placement=placement, data_dir=str(tfds_dir)) as feed:
        feed.set_state(feed.get_state() | {"next_batch": 599})
        for row in rows:
            batch = next(feed)
            np.testing.assert_array_equal(batch["label"], train["label"][row])
            np.testing.assert_allclose(batch["image"], train["image"][row], rtol=2e-7)
            assert batch["image"].sharding.is_equivalent_to(placement, 4)


def test_a_stream_is_evaluated_as_an_array(tfds_dir, mesh):
    """Every image once, whatever is left over in the last batch; logits that are not finite are wrong."""
    test = {k: v[:70] for k, v in problems.images(MNIST_LENET, "test", str(tfds_dir)).items()}
    weights = jax.random.normal(jax.random.key(0), (784, 10))
    f = lambda raw: (raw.reshape(len(raw), -1) @ weights) / (raw[:, 10, 10] < 0.9)
    placement = NamedSharding(mesh, PartitionSpec("data"))
    feed = streams.evaluation(MNIST_LENET, "test[:70]", batch_size=16, placement=placement, data_dir=str(tfds_dir))
    assert streams.accuracy(f, feed) == pytest.approx(evaluation.accuracy(f, test["image"], test["label"]), abs=1e-6)


def test_imagenet_is_cropped_and_flipped_in_training_alone(tmp_path):
    small_imagenet.prepare(tmp_path)
    with streams.training(SMALL, batch_size=20, seed=0, data_dir=tmp_path) as feed:
        first, second = next(feed), next(feed)
    with streams.evaluation(SMALL, batch_size=10, data_dir=tmp_path) as feed:
        test = next(feed)
        assert list(feed) == []
    assert first["image"].shape == (20, 32, 32, 3)
    assert test["image"].shape == (10, 32, 32, 3)
    by_label = lambda batch: dict(zip(batch["label"].tolist(), np.asarray(batch["image"]), strict=True))
    once, again = by_label(first), by_label(second)
    assert once.keys() == again.keys()
    assert all(np.abs(once[label] - again[label]).max() > 0.1 for label in once)
    assert test["weight"].tolist() == [1.0] * 10


@pytest.mark.slow
@pytest.mark.parametrize(("part", "gibibytes"), [("step", 3), ("norm", 2.5)])
def test_imagenet_fits_here(part, gibibytes):
    """One step of ResNet-18 at 224 x 224, C = 1000, n = 1, B = 8, and an exact norm in chunks, in a stated memory."""
    found = imagenet_step.measured(part, imagenet_step.Config())
    assert found["peak_bytes"] < gibibytes * 2**30
    assert all(np.isfinite(value) for value in found.values() if not isinstance(value, str))
    if part == "step":
        assert 6 < found["cross_entropy"] < 10  # log 1000 is 6.9
        assert found["penalty"] > 0
    else:
        assert found["norm"] > 0
        assert found["temporary_bytes"] < found["temporary_bytes_at_once"] / 50
