"""Corruptions: what each is by definition, and that more severe ones change more."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import corruptions, datasets, evaluation
from jacreg_jax.corruption_filters import jpeg, quantization


@pytest.fixture(scope="module")
def image():
    """Ten digits of scikit-learn, at 32 x 32."""
    pixels, _ = datasets.load("digits", "test")
    return np.asarray(datasets.from_uint8(datasets.resize_bilinear(pixels[:10], 32)))


@pytest.mark.parametrize("name", corruptions.FAMILIES)
def test_five_severities(image, name):
    """In bounds, a row by its own key alone, and on the mean farther from the image with severity."""
    apply = jax.jit(partial(corruptions.corrupted, name))  # one program: rows are turned round, not taken out
    keys, rows = jax.random.split(jax.random.key(0), 10), jnp.ones(10, int)
    found = [np.asarray(apply(image, keys, severity=s * rows)) for s in corruptions.SEVERITIES]
    assert all(f.shape == image.shape and f.min() >= 0 and f.max() <= 1 for f in found)
    far = [np.sqrt(((f - image) ** 2).sum((1, 2, 3))).mean() for f in found]
    assert far[0] > 0
    assert all(b > 0.7 * a for a, b in itertools.pairwise(far))
    assert far[-1] > 1.2 * far[0]
    turned = apply(image[::-1], keys[::-1], severity=jnp.where(jnp.arange(10) < 5, 3, 5))
    np.testing.assert_allclose(turned[:5], found[2][:4:-1], atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian_noise", "fog"])
def test_half_precision_is_rounded_at_the_end(image, name):
    apply = jax.jit(partial(corruptions.corrupted, name, severity=5))
    low = jnp.asarray(image[:4], jnp.bfloat16)
    found, wide = (apply(x, jax.random.key(2)) for x in (low, low.astype(jnp.float32)))
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", corruptions.FAMILIES)
def test_under_strict_promotion(image, name):
    apply = partial(corruptions.corrupted, name, image[:2], jax.random.key(0), severity=3)
    usual = apply()
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_array_equal(apply(), usual)


def test_definitions(image):
    key = jax.random.key(1)
    corrupted = jax.jit(corruptions.corrupted, static_argnums=0, static_argnames="severity")
    noise = corrupted("gaussian_noise", jnp.full((2, 64, 64, 3), 0.5), key, severity=5) - 0.5
    np.testing.assert_allclose(noise.std(), 0.1, rtol=0.03)
    shot = corrupted("shot_noise", jnp.full((2, 64, 64, 3), 0.4), key, severity=5)
    np.testing.assert_allclose(shot.std(), np.sqrt(0.4 / 50), rtol=0.03)
    struck = corrupted("impulse_noise", jnp.full((2, 64, 64, 3), 0.5), key, severity=5)
    np.testing.assert_allclose(jnp.mean(struck != 0.5), 0.07, atol=0.006)
    lighter = corrupted("brightness", jnp.asarray([[[[0.4, 0.2, 0.1]]]]), key, severity=3)
    np.testing.assert_allclose(lighter[0, 0, 0], np.array([0.4, 0.2, 0.1]) * 0.55 / 0.4, rtol=1e-5)
    flatter = corrupted("contrast", image, key, severity=2)
    np.testing.assert_allclose(flatter.std((1, 2)), 0.5 * image.std((1, 2)), rtol=1e-4)
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):  # what is flat stays
        flat = corrupted(name, jnp.full((2, 16, 16, 1), 0.3), key, severity=5)
        np.testing.assert_allclose(flat, 0.3, atol=1e-5, err_msg=name)


def test_jpeg_rounds_as_pillow(image):
    """Against a JPEG of the same quality, written and read by Pillow: as near as two decoders are."""
    import io

    from PIL import Image

    pixels = np.round(255 * image[:, :, :, 0]).astype(np.uint8)
    for picture in pixels[:4]:
        for quality in (40, 80):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG", quality=quality)
            theirs = np.asarray(Image.open(file), np.float32)
            ours = 255 * np.asarray(
                jpeg(jnp.asarray(picture[..., None] / 255, jnp.float32), jnp.asarray(quantization(quality)))
            )
            off = np.abs(
                np.round(np.clip(ours[..., 0], 0, 255)) - theirs
            )  # one rounds up where the other rounds down, seldom
            assert off.mean() < 0.5
            assert np.mean(off > 2) < 0.1


def test_as_an_attack(image):
    f = lambda x: jnp.stack([x.mean((1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)
    y = np.argmax(f(image), axis=1)
    attack = corruptions.corruption("brightness")
    assert attack is corruptions.corruption("brightness")
    found = evaluation.run_attack(attack, f, image, y, jax.random.key(0), severity=5)
    brighter = np.asarray(corruptions.corrupted("brightness", image, jax.random.key(0), severity=5))
    np.testing.assert_array_equal(found.success, np.argmax(f(brighter), axis=1) != y)
    assert found.success.any()
    with pytest.raises(ValueError, match=r"severity must be one of \(1, 2, 3, 4, 5\), got 6"):
        corruptions.corrupted("fog", image, jax.random.key(0), severity=6)


@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur"])
def test_an_image_that_is_not_square_may_lie_on_its_side(name):
    """Lengths are of the shorter side."""
    image = np.random.default_rng(0).uniform(size=(2, 40, 24, 3)).astype(np.float32)
    found, lying = (
        corruptions.corrupted(name, x, jax.random.key(0), severity=5) for x in (image, image.transpose(0, 2, 1, 3))
    )
    np.testing.assert_allclose(np.transpose(lying, (0, 2, 1, 3)), found, atol=1e-5)


def test_a_second_call_compiles_nothing(image):
    compiled, listener = [], lambda name, seconds, **facts: compiled.append(name) if "backend_compile" in name else None
    for again in (False, True):
        if again:
            jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            for name in ("zoom_blur", "elastic_transform", "jpeg_compression"):  # a loop, a gather, blocks
                corruptions.corrupted(name, image[:2], jax.random.key(again), severity=3)
        finally:
            if again:
                jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiled
