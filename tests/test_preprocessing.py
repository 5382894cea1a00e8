import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jacreg_jax import datasets
from jacreg_jax.datasets import CIFAR10, IMAGENET, MNIST, PREPROCESSING, Preprocessing, from_uint8, resize_bilinear


def test_the_papers_constants():
    raw = jnp.array([0.0, 0.1307, 0.5, 1.0])
    np.testing.assert_allclose(MNIST.normalize(raw), (raw - 0.1307) / 0.3081, rtol=1e-6)
    np.testing.assert_allclose(CIFAR10.normalize(raw), 2 * raw - 1, atol=1e-6)
    pixel = jnp.array([[0.485 + 0.229, 0.456 - 0.224, 0.406 + 2 * 0.225]])
    np.testing.assert_allclose(IMAGENET.normalize(pixel), [[1, -1, 2]], rtol=1e-5)
    assert set(PREPROCESSING) == set(datasets.DATASETS)
    assert PREPROCESSING["usps"] == PREPROCESSING["digits"] == MNIST


@pytest.mark.parametrize("preprocessing", [MNIST, CIFAR10, IMAGENET])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_denormalize_inverts_normalize(preprocessing, kind):
    raw = kind(np.random.default_rng(0).random((2, 5, 5, 3), dtype=np.float32))
    x = preprocessing.normalize(raw)
    assert isinstance(x, type(raw))
    assert x.dtype == raw.dtype
    np.testing.assert_allclose(preprocessing.denormalize(x), raw, atol=1e-6)


def test_dtype_is_kept_and_jit_works():
    raw = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    assert jax.jit(IMAGENET.normalize)(raw).dtype == jnp.bfloat16
    assert jax.jit(MNIST.normalize)(raw).dtype == jnp.bfloat16


def test_wrapped_jacobian_carries_one_over_std(small_mlp):
    f, x = small_mlp
    raw = 0.1307 + 0.3081 * x
    np.testing.assert_allclose(MNIST.wrap(f)(raw), f(x), rtol=1e-4, atol=1e-5)
    in_raw_pixels = jax.jacrev(lambda r: MNIST.wrap(f)(r).sum(0))(raw)
    in_model_space = jax.jacrev(lambda x: f(x).sum(0))(x)
    np.testing.assert_allclose(in_raw_pixels, in_model_space / 0.3081, rtol=1e-3, atol=1e-4)


def test_a_hashable_static_argument():
    jitted = jax.jit(lambda p, raw: p.normalize(raw), static_argnums=0)
    np.testing.assert_allclose(jitted(Preprocessing(0.5, 2.0), jnp.ones(3)), 0.25)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.0), (0.5, -1.0), (0.5, float("nan")), ((0.5, 0.5), 0.5), ((0.5, 0.5), (0.5,))]
)
def test_impossible_constants_are_refused(mean, std):
    with pytest.raises(ValueError, match="std"):
        Preprocessing(mean, std)


def test_bytes_and_wrong_channels_are_refused():
    with pytest.raises(TypeError, match=r"float array, got uint8.*from_uint8"):
        MNIST.normalize(np.zeros((1, 28, 28, 1), np.uint8))
    with pytest.raises(ValueError, match=r"3 channels.*\(1, 28, 28, 1\)"):
        IMAGENET.normalize(np.zeros((1, 28, 28, 1), np.float32))


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_from_uint8(kind):
    raw = from_uint8(kind(np.arange(256, dtype=np.uint8)))
    assert raw.dtype == np.float32
    assert isinstance(raw, type(kind([0])))
    np.testing.assert_allclose(raw * 255, np.arange(256), rtol=1e-6)
    np.testing.assert_array_equal(np.round(np.asarray(raw) * 255).astype(np.uint8), np.arange(256))


@pytest.mark.parametrize("images", [np.zeros(3, np.float32), np.zeros(3, np.int32), [1, 2]])
def test_from_uint8_refuses_other_types(images):
    with pytest.raises(TypeError, match="uint8"):
        from_uint8(images)


def bilinear_twin(image, height, width):
    """One pixel at a time: centres at half integers, edges clamped. Upsampling only."""
    h, w = image.shape

    def neighbours(i, n_out, n_in):
        position = min(max((i + 0.5) * n_in / n_out - 0.5, 0), n_in - 1)
        low = min(int(position), n_in - 2)
        return low, position - low

    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            (r, a), (c, b) = neighbours(i, height, h), neighbours(j, width, w)
            top = (1 - b) * image[r, c] + b * image[r, c + 1]
            bottom = (1 - b) * image[r + 1, c] + b * image[r + 1, c + 1]
            out[i, j] = (1 - a) * top + a * bottom
    return out


@pytest.mark.parametrize(("native", "size"), [(16, 28), (8, 28), (8, (28, 20)), (28, 28)])
def test_upsampling_is_bilinear(native, size):
    images = np.random.default_rng(0).random((2, native, native, 3), dtype=np.float32)
    resized = resize_bilinear(images, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert resized.shape == (2, height, width, 3)
    assert isinstance(resized, np.ndarray)
    for n in range(2):
        for c in range(3):
            np.testing.assert_allclose(resized[n, :, :, c], bilinear_twin(images[n, :, :, c], height, width), atol=1e-5)


@pytest.mark.parametrize("size", [28, 9])
def test_resizing_agrees_with_pillow(size):
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 1), dtype=np.uint8)
    ours, ours_float = resize_bilinear(images, size), resize_bilinear(images.astype(np.float32), size)
    assert ours.dtype == np.uint8
    for n in range(3):
        image = Image.fromarray(images[n, :, :, 0])
        pillow = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), int)
        assert np.abs(ours[n, :, :, 0].astype(int) - pillow).max() <= 1
        pillow = np.asarray(image.convert("F").resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(ours_float[n, :, :, 0], pillow, atol=1e-3)


def test_resizing_on_the_device():
    images = jnp.zeros((1, 8, 8, 1))
    assert isinstance(resize_bilinear(images, 28), jax.Array)
    assert jax.jit(lambda x: resize_bilinear(x, 28))(images).shape == (1, 28, 28, 1)


def test_resizing_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"\[N, H, W, C\]"):
        resize_bilinear(np.zeros((8, 8), np.uint8), 28)
    with pytest.raises(ValueError, match="size"):
        resize_bilinear(np.zeros((1, 8, 8, 1), np.uint8), 0)
    with pytest.raises(TypeError, match="int32"):
        resize_bilinear(np.zeros((1, 8, 8, 1), np.int32), 28)
