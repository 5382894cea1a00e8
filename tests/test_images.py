"""The ImageNet protocol against torchvision's own transforms, on photographs: the same boxes, the same pixels."""

import importlib
import importlib.util
import io
import math
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from experiments.lab import small_imagenet
from jacreg_jax import datasets
from jacreg_jax.datasets import images
from tests.conftest import skip_or_fail


@pytest.fixture(scope="module")
def torchvision(torch):
    """Its transforms alone: the package's __init__ wants operators compiled for the very build of torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        skip_or_fail("peers", "torchvision is not installed; run `make peers`")
    before = set(sys.modules)
    package = types.ModuleType("torchvision")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torchvision"] = package
    yield importlib.import_module("torchvision.transforms")
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "torchvision":
            del sys.modules[name]


def file_of(image, form="JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def photographs(torch):
    """The 20 JPEGs, and those of other kinds that ImageNet holds: upright, odd, small, grey, CMYK, and a PNG."""
    if importlib.util.find_spec("foolbox") is None:
        skip_or_fail("peers", "foolbox is not installed; run `make peers`")
    found = [data for _, data in small_imagenet.photographs()]
    first, second, third = (Image.open(io.BytesIO(data)) for data in found[:3])
    others = [first.crop((0, 0, 375, 500)), second.crop((7, 3, 506, 340)), third.resize((121, 97)), third.convert("L")]
    return [*found, *map(file_of, (*others, first.convert("CMYK"))), file_of(second, "PNG")]


class TorchDraws(np.random.Generator):
    """As far as the crops use it, drawing from torch's generator."""

    def __init__(self, torch, seed):
        super().__init__(np.random.PCG64(0))
        self.torch = torch
        torch.manual_seed(seed)

    def uniform(self, low, high):
        return self.torch.empty(1).uniform_(low, high).item()

    def integers(self, n):
        return self.torch.randint(0, n, (1,)).item()

    def random(self):
        return self.torch.rand(1).item()


def test_evaluation_is_torchvisions_bit_by_bit(torchvision, photographs):
    theirs = torchvision.Compose([torchvision.Resize(256), torchvision.CenterCrop(224)])
    for data in photographs:
        expected = np.asarray(theirs(Image.open(io.BytesIO(data)).convert("RGB")))
        np.testing.assert_array_equal(images.centered(data), expected)


def test_training_is_torchvisions_bit_by_bit(torch, torchvision, photographs):
    theirs = torchvision.Compose([torchvision.RandomResizedCrop(224), torchvision.RandomHorizontalFlip()])
    for seed, data in enumerate(photographs):
        ours = images.augmented(data, TorchDraws(torch, seed))
        torch.manual_seed(seed)
        np.testing.assert_array_equal(ours, np.asarray(theirs(Image.open(io.BytesIO(data)).convert("RGB"))))


@pytest.mark.parametrize("size", [(512, 512), (375, 500), (683, 1024), (20, 2000), (900, 15), (1, 1)])
def test_boxes_are_torchvisions(torch, torchvision, size):
    """Square, common and extreme images; those go the way of ten tries that all fail."""
    image, own = Image.new("L", size[::-1]), torchvision.RandomResizedCrop(224)
    for seed in range(100):
        ours = images.crop_box(*size, TorchDraws(torch, seed))
        torch.manual_seed(seed)
        assert ours == own.get_params(image, own.scale, own.ratio)


def test_numpys_draws_give_the_same_distribution(torch, torchvision):
    image, own, rng = Image.new("L", (500, 375)), torchvision.RandomResizedCrop(224), np.random.default_rng(0)
    torch.manual_seed(0)
    ours = np.asarray([images.crop_box(375, 500, rng) for _ in range(2000)])
    theirs = np.asarray([own.get_params(image, own.scale, own.ratio) for _ in range(2000)])
    for i in range(4):
        assert stats.ks_2samp(ours[:, i], theirs[:, i]).pvalue > 1e-3
    area, aspect = ours[:, 2] * ours[:, 3] / (375 * 500), ours[:, 3] / ours[:, 2]
    assert 0.07 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    assert 0.73 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.36


def test_half_of_the_images_are_mirrored(photographs):
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "size": 512}
    plain = images.stored(photographs[0])
    found = [images.augmented(photographs[0], np.random.default_rng(seed), **whole) for seed in range(40)]
    mirrored = [not np.array_equal(image, plain) for image in found]
    assert all(np.array_equal(image, plain[:, ::-1]) for image, is_so in zip(found, mirrored, strict=True) if is_so)
    assert 10 < sum(mirrored) < 30


def test_bytes_to_the_networks_input_is_torchvisions(torchvision, photographs):
    """ToTensor and Normalize: to the bit in numpy, to one rounding where XLA compiles it."""
    constants = datasets.IMAGENET
    theirs = torchvision.Compose([torchvision.ToTensor(), torchvision.Normalize(constants.mean, constants.std)])
    pixels = images.centered(photographs[0])
    expected = theirs(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
    normalize = lambda image: constants.normalize(datasets.from_uint8(image))
    np.testing.assert_array_equal(normalize(pixels), expected)
    np.testing.assert_allclose(jax.jit(normalize)(pixels), expected, rtol=3e-7, atol=3e-7)


def test_other_sizes_and_grey_images():
    data = images.encoded(np.arange(28 * 28).reshape(28, 28, 1).astype(np.uint8))
    np.testing.assert_array_equal(images.stored(data, channels=1)[..., 0].ravel(), np.arange(28 * 28) % 256)
    assert images.stored(data).shape == (28, 28, 3)
    assert images.centered(data, size=10, shorter_side=12).shape == (10, 10, 3)
    assert images.augmented(data, np.random.default_rng(0), size=9).shape == (9, 9, 3)


def test_what_is_no_image_raises(photographs):
    cut = photographs[0][: len(photographs[0]) // 2]
    for data in (cut, b"", b"no image", photographs[0][:100]):
        with pytest.raises(OSError, match="image|Truncated"):
            images.decode(data)


@pytest.mark.parametrize(
    "scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.5), (math.nan, 1.0), [0.1, 1.0], (0.5,), 0.5, ("a", 1)]
)
def test_wrong_shares_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be a tuple"):
        images.crop_box(10, 10, np.random.default_rng(0), scale=scale)
