"""certify.py: known radii, coverage, sound boxes, and the sandwich with attacks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import norm

from jacreg_jax import attacks, certify, keys
from jacreg_jax.models import MLP, LeNet, initialize, predictor
from jacreg_jax.pooled_convolution import lax_conv_max_pool


def test_smoothing_of_a_half_space(key):
    """f(x) = sign(w . x + b): the exact radius is the distance to the plane, and no certified one is larger."""
    w = jax.random.normal(key, (6,))
    w = w / jnp.linalg.norm(w)
    x = jax.random.uniform(jax.random.fold_in(key, 1), (40, 6))
    f = lambda x: jnp.stack([x @ w - 0.3, -(x @ w - 0.3)], axis=1)
    exact = np.abs(np.asarray(x @ w - 0.3))
    result = certify.certify_smoothed(f, x, key, sigma=0.5, num_samples=2000, alpha=0.001, batch_size=16)
    sure = result.prediction >= 0
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(result.prediction[sure], np.asarray(jnp.argmax(f(x), 1))[sure])
    assert (result.radius <= exact + 1e-6).all()
    assert (result.radius[~sure] == 0).all()
    near = sure & (exact < 0.5)
    assert np.median(result.radius[near] / exact[near]) > 0.5  # and they are not vacuous
    np.testing.assert_allclose(result.radius[sure], 0.5 * norm.ppf(result.probability[sure]), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "deviations", "num_samples"), [("bfloat16", 3.0, 20_000), ("float16", 3.5, 100_000)])
def test_smoothing_of_half_precision(dtype, deviations, num_samples, key):
    """Draws of these dtypes end before the boundary, so that every one of them hit, and proved a larger radius."""
    x = jnp.full((4, 1), 0.25 * deviations, dtype)
    f = lambda x: jnp.concatenate([x, -x], axis=1)
    radius = certify.certify_smoothed(f, x, key, sigma=0.25, num_samples=num_samples, alpha=1e-6).radius
    assert (radius <= 0.25 * deviations).all(), radius
    assert (radius > 0.22 * deviations).all(), radius


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_in_half_precision_is_rounded_and_not_drawn(dtype, key):
    x = jnp.zeros((3, 5))
    np.testing.assert_array_equal(keys.normal_like(key, x.astype(dtype)), keys.normal_like(key, x).astype(dtype))


def test_smoothing_of_one_class_by_hand(key):
    """All n draws hit: Clopper and Pearson's bound is alpha^(1 / n); 250 draws are three chunks of 100."""
    found = certify.certify_smoothed(
        lambda x: 0 * x + jnp.array([[1.0, 0.0]]), jnp.zeros((3, 2)), key, sigma=0.5, num_samples=250, alpha=0.01
    )
    np.testing.assert_array_equal(found.prediction, 0)
    np.testing.assert_allclose(found.probability, 0.01 ** (1 / 300), rtol=1e-6)
    np.testing.assert_allclose(found.radius, 0.5 * norm.ppf(0.01 ** (1 / 300)), rtol=1e-6)


def test_interval_radius_by_hand():
    """Class 0 above 0.5: the pixel's distance to it, within the rounding of the logits; the box ends at 1."""
    f = lambda x: jnp.concatenate([x, 1 - x], axis=1)
    x = jnp.array([[0.7], [0.95], [0.5], [0.3]])
    found = certify.interval_radius(f, x, jnp.zeros(4, int))
    np.testing.assert_allclose(found, [0.2, 0.45, 0, 0], atol=3e-5)
    np.testing.assert_allclose(
        certify.interval_radius(f, x, jnp.zeros(4, int), largest=0.1), [0.1, 0.1, 0, 0], atol=1e-6
    )
    f = lambda x: jnp.concatenate([x, 0.4 - 3 * jax.nn.relu(x - 1)], axis=1)
    assert certify.interval_radius(f, jnp.array([[0.95]]), jnp.zeros(1, int))[0] == pytest.approx(0.55, abs=3e-5)
    # rounding: 1e-5 of the largest logit must remain, here 0.1 = 2 (0.7 - 0.5) - 2 * 0.15
    f = lambda x: jnp.concatenate([x, 1 - x, 0 * x - 1e4], axis=1)
    assert certify.interval_radius(f, jnp.array([[0.7]]), jnp.zeros(1, int))[0] == pytest.approx(0.15, abs=1e-4)


def test_counts_do_not_depend_on_the_batch(key):
    x = jax.random.normal(key, (6, 4))
    f = lambda x: x @ jnp.eye(4)
    keys = jax.random.split(key, 6)
    run = lambda x, k: certify.noisy_counts(f, x, k, sigma=1.0, num_samples=250, chunk_size=50)
    whole = run(x, keys)
    np.testing.assert_array_equal(whole, jnp.concatenate([run(x[i : i + 1], keys[i : i + 1]) for i in range(6)]))
    np.testing.assert_array_equal(whole.sum(1), 250)


def network(x):
    """Every kind of operation that has a rule."""
    w = jnp.sin(jnp.arange(30.0)).reshape(5, 6)
    h = jnp.tanh(x @ w) - 0.3
    h = jnp.concatenate([jax.nn.relu(h), jax.nn.sigmoid(-h)], axis=1) * 2 / 3
    h = jax.nn.softplus(h) + jnp.square(h) + jnp.max(h, axis=1, keepdims=True) - jnp.mean(h, axis=1, keepdims=True)
    return jnp.pad(h, ((0, 0), (1, 0)))[:, ::-1].T


bounds_of_network = jax.jit(lambda x, radius: certify.interval_bounds(network, x - radius, x + radius))
each_of_network = jax.jit(jax.vmap(network))


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.3])
def test_interval_bounds_hold(radius, key):
    x = jax.random.normal(key, (7, 5))
    box = bounds_of_network(x, radius)
    inside = x[None] + radius * jax.random.uniform(jax.random.fold_in(key, 1), (200, 7, 5), minval=-1, maxval=1)
    corners = x[None] + radius * jnp.sign(inside - x[None])
    for points in (inside, corners):
        z = each_of_network(points)
        assert (z >= box.low[None] - 1e-5).all()
        assert (z <= box.high[None] + 1e-5).all()
    if radius == 0:
        np.testing.assert_allclose(box.low, each_of_network(x[None])[0], atol=1e-5)


def test_interval_bounds_of_an_affine_function_are_exact(key):
    """z = x A + b: centre +- radius |A|."""
    a = jax.random.normal(key, (5, 3))
    x = jax.random.normal(key, (4, 5))
    box = certify.interval_bounds(lambda x: x @ a + 1, x - 0.2, x + 0.2)
    np.testing.assert_allclose(box.high, x @ a + 1 + 0.2 * jnp.abs(a).sum(0)[None], rtol=1e-5)
    np.testing.assert_allclose(box.low, x @ a + 1 - 0.2 * jnp.abs(a).sum(0)[None], rtol=1e-5, atol=1e-6)


OPERATIONS = {
    "reciprocal": lambda x: 1 / x,
    "power -1": lambda x: x**-1,
    "power -2": lambda x: x**-2,
    "power -3": lambda x: x**-3,
    "power 3": lambda x: x**3,
    "power 4": lambda x: x**4,
    "product with itself": lambda x: x * x,
    "absolute": abs,
    "falling": lambda x: 2 - 3 * x,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_interval_bounds_of_one_operation_are_exact(name):
    """The smallest and the largest value in the interval; at a pole no less than that."""
    low, high = np.array([-2, -0.5, 0.25, 1, -1, -0.5, 0]), np.array([-0.5, -0.25, 2, 1, 2, 0, 0.5])
    box = certify.interval_bounds(OPERATIONS[name], jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32))
    with np.errstate(divide="ignore"):
        values = OPERATIONS[name](np.linspace(low, high, 1201))  # 0 of [-1, 2] among them
    exact = np.isfinite(values).all(0)
    np.testing.assert_allclose(box.low[exact], values.min(0)[exact], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(box.high[exact], values.max(0)[exact], rtol=1e-6, atol=1e-6)
    assert (box.low <= values.min(0)).all()
    assert (box.high >= values.max(0)).all()


def test_interval_bounds_of_roots():
    """1 / sqrt(x) and x^1.5 are infinite where the box leaves the numbers above 0."""
    low, high = jnp.array([0.25, 1.0, -1.0, 0.0]), jnp.array([4.0, 1.0, 4.0, 0.25])
    root = certify.interval_bounds(jax.lax.rsqrt, low, high)
    np.testing.assert_allclose(root.low, [0.5, 1, -np.inf, 2], rtol=1e-6)  # NaN lies in no box
    np.testing.assert_allclose(root.high, [2, 1, np.inf, np.inf], rtol=1e-6)
    power = certify.interval_bounds(lambda x: x**1.5, low, high)
    np.testing.assert_allclose(power.low[:2], [0.125, 1], rtol=1e-5)
    np.testing.assert_allclose(power.high[:2], [8, 1], rtol=1e-5)
    assert (power.low[2:] <= 0).all()
    assert (power.high[2:] >= np.array([8, 0.125])).all()


@pytest.mark.parametrize("plain", [False, True])
def test_interval_bounds_of_lenet(plain, key):
    """Through both convolutions and both max poolings, ours and XLA's."""
    module = LeNet(conv_max_pool=lax_conv_max_pool) if plain else LeNet()
    x = jax.random.uniform(key, (3, 28, 28, 1))
    params, _ = initialize(module, key, x)
    f = lambda x: module.apply({"params": params}, x)
    box = jax.jit(lambda x: certify.interval_bounds(f, x - 0.01, x + 0.01))(x)
    noise = 0.01 * jax.random.rademacher(key, (20, *x.shape), jnp.float32)
    z = jax.jit(jax.vmap(f))(x[None] + noise)
    assert (z >= box.low[None] - 1e-5).all()
    assert (z <= box.high[None] + 1e-5).all()


def test_the_sandwich(key):
    """Certified radius <= the distance every attack finds, for every sample."""
    x = jax.random.uniform(key, (16, 6, 6, 1))
    module = MLP((12, 4))
    params, state = initialize(module, key, x)
    f = predictor(module, params, state)
    y = jnp.argmax(f(x), 1)
    certified = certify.interval_radius(f, x, y)
    assert (certified > 0).all()
    for result in (
        attacks.ddn(f, x, y, key),
        attacks.carlini_wagner(f, x, y, num_steps=200),
        attacks.fab(f, x, y, num_steps=30),
        attacks.fgsm_distance(f, x, y),
        attacks.white_noise_distance(f, x, y, key),
    ):
        assert (certified <= result.distance).all()
    assert (certified <= attacks.fab(f, x, y, norm="linf", num_steps=30).distance).all()
    wrong = certify.interval_radius(f, x, (y + 1) % 4)
    np.testing.assert_array_equal(wrong, 0)


ACTIVATIONS = {
    name: getattr(jax.nn, name)
    for name in (
        *("relu", "relu6", "softplus", "sigmoid", "elu", "selu", "celu", "leaky_relu", "gelu", "silu", "mish"),
        *("hard_tanh", "hard_sigmoid", "hard_swish", "softmax", "log_softmax", "log_sigmoid", "soft_sign"),
        *("squareplus", "sparse_plus", "standardize"),
    )
} | {
    "tanh": jnp.tanh,
    "leaky_relu(-1)": partial(jax.nn.leaky_relu, negative_slope=-1.0),
    "elu(-1)": partial(jax.nn.elu, alpha=-1.0),
    "an elu of one's own": jax.jit(lambda x: jnp.where(x > 0.5, -x, x**2)),
    "gelu of erf": partial(jax.nn.gelu, approximate=False),
    "abs": jnp.abs,
    "cube": lambda x: x**3,
    "x^4": lambda x: x**4,
    "1 / (1 + x^2)": lambda x: 1 / (1 + x**2),
    "(1 + x^2)^0.3": lambda x: (1 + x**2) ** 0.3,
    "layer norm": lambda h: (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 0.1),
    "unit length": lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True),
    "sort": lambda h: jnp.sort(h, -1),
    "clip": lambda h: jnp.clip(h, -0.3, 0.4),
    "average pool": lambda h: nn.avg_pool(h[..., None], (2,), (1,), "SAME")[..., 0],
    "max pool": lambda h: nn.max_pool(h[..., None], (2,), (1,), "SAME")[..., 0],
    "attention": lambda h: (jax.nn.softmax(h[:, :, None] * h[:, None, :] / 4, -1) @ h[:, :, None])[..., 0],
    "log sum exp": lambda h: h - jax.nn.logsumexp(h, -1, keepdims=True),
}
WIDTH = 8
FEW = ("relu", "softplus", "gelu", "silu", "leaky_relu(-1)", "elu(-1)", "an elu of one's own", "layer norm", "softmax")


def random_network(key, activation):
    """5 -> 8 -> 4 with the activation between."""
    w, b, v = (
        jax.random.normal(jax.random.fold_in(key, i), s) for i, s in enumerate([(5, WIDTH), (1, WIDTH), (WIDTH, 4)])
    )
    return lambda x: activation(x @ w + b) @ v


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_interval_bounds_of_every_activation(name, key):
    """Corners and insides of boxes of four sizes; exact where the box is a point."""
    f = random_network(key, ACTIVATIONS[name])
    x = jax.random.normal(key, (6, 5))
    inside = jax.random.uniform(jax.random.fold_in(key, 1), (300, 6, 5), minval=-1, maxval=1)
    ways = jnp.concatenate([inside, jnp.sign(inside)])
    bounds = jax.jit(lambda radius: certify.interval_bounds(f, x - radius, x + radius))
    within = jax.jit(lambda radius: jax.vmap(f)(x[None] + radius * ways))
    for radius in (0.0, 1e-3, 0.1, 1.0):
        box, z = bounds(radius), within(radius)
        slack = 1e-5 * (1 + jnp.abs(z).max())
        assert (z >= box.low[None] - slack).all()
        assert (z <= box.high[None] + slack).all()
        if radius == 0:
            np.testing.assert_allclose(box.low, f(x), atol=1e-4, rtol=1e-4)
            np.testing.assert_allclose(box.high, f(x), atol=1e-4, rtol=1e-4)


def sandwich(activation, networks):
    """(certified, nearest found in L-infinity) of 8 samples of each random network."""

    def one(key):
        f = random_network(key, activation)
        x = jax.random.uniform(key, (8, 5))
        y = jnp.argmax(f(x), 1)
        found = [
            attacks.fab(f, x, y, norm="linf", num_steps=8).distance,
            attacks.ddn(f, x, y, key, num_steps=15).distance,
            attacks.fgsm_distance(f, x, y, step_size=1 / 50, num_steps=50).distance,
        ]
        return certify.interval_radius(f, x, y), jnp.min(jnp.stack(found), axis=0)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), networks))


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ACTIVATIONS])
def test_no_certificate_is_above_what_an_attack_finds(name):
    """30 random networks of every activation, 1,100 in all."""
    certified, found = sandwich(ACTIVATIONS[name], 30)
    assert (certified <= found + 1e-6).all()
    assert np.isfinite(found).mean() > 0.2
    assert (certified > 0).mean() > 0.2


@pytest.mark.parametrize("f", [jax.nn.silu, jax.jit(lambda x: jax.nn.gelu(2 * x) / 2)])
def test_interval_bounds_of_a_function_of_each_entry_are_close(f):
    """x sigmoid(x) as one function, not as a product of two boxes: that would say 0.73 below 0 for [-1, 1]."""
    low, high = jnp.array([-1.0, -3.0, 0.5, -4.0]), jnp.array([1.0, -0.5, 2.0, 4.0])
    box, values = certify.interval_bounds(f, low, high), f(jnp.linspace(low, high, 1001))
    slack = 0.12 * (high - low)
    assert (box.low <= values.min(0) + 1e-6).all()
    assert (box.low >= values.min(0) - slack).all()
    assert (box.high >= values.max(0) - 1e-6).all()
    assert (box.high <= values.max(0) + slack).all()


def test_a_box_says_everything_where_nothing_is_known():
    x = jnp.array([[1.0]])
    box = certify.interval_bounds(lambda x: 1 / x, x - 2, x + 2)
    np.testing.assert_array_equal([box.low[0, 0], box.high[0, 0]], [-np.inf, np.inf])
    box = certify.interval_bounds(lambda x: jnp.log(x), x - 2, x + 2)
    assert box.low[0, 0] == -np.inf
    box = certify.interval_bounds(lambda x: jnp.where(jnp.exp(1000 * x) > 1, 1.0, -1.0) * x, x - 2, x + 2)
    assert box.low[0, 0] <= -1
    assert box.high[0, 0] >= 3


def test_certify_in_double_precision(key, x64):
    x = jax.random.uniform(key, (4, 5))
    f = random_network(key, jnp.tanh)
    found = certify.certify_smoothed(f, x, key, sigma=0.1, num_samples=200)
    assert (found.prediction == np.argmax(f(x), 1))[found.prediction >= 0].all()
    assert certify.interval_radius(f, x, jnp.argmax(f(x), 1)).dtype == jnp.float64


def test_errors(key):
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="no rule for 'sin'"):
        certify.interval_bounds(jnp.sin, x, x)
    with pytest.raises(ValueError, match="low must not lie above high"):
        certify.interval_bounds(jnp.tanh, x, x - 1)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        certify.certify_smoothed(lambda x: x, x, key, sigma=0.0)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        certify.certify_smoothed(lambda x: x, x, key, sigma=1.0, num_samples=0)


NOT_A_NUMBER = {
    "asked of a root": lambda x: jnp.where(jnp.isnan(jnp.sqrt(x)), 7.0, jnp.sqrt(x)),
    "asked of a logarithm": lambda x: jnp.where(jnp.isnan(jnp.log(x)), -9.0, jnp.log(x + 3)),
    "equal to itself": lambda x: (lambda y: jnp.where(y == y, y, -5.0))(jnp.sqrt(x)),
    "unequal to itself": lambda x: (lambda y: jnp.where(y != y, -5.0, y))(jnp.arcsin(1.5 * x)),
    "after tanh": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, y))(jnp.tanh(jnp.sqrt(x))),
    "after relu": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, y))(jax.nn.relu(jnp.sqrt(x))),
    "after clip": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, y))(jnp.clip(jnp.log1p(x - 0.5), -1, 1)),
    "compared": lambda x: jnp.where(jnp.sqrt(x) < 2, 1.0, 5.0),
    "compared the other way": lambda x: jnp.where(jnp.sqrt(x) > -2, 1.0, 5.0),
    "times 0": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, y))(0 * jax.lax.rsqrt(x)),
    "in a sum": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, jnp.tanh(y)))(jnp.sqrt(x).sum() + 0 * x),
    "in a maximum": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, jnp.tanh(y)))(jnp.log(x).max() + 0 * x),
    "sorted": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, jnp.tanh(y)))(jnp.sort(jnp.sqrt(x))),
    "in a product": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, jnp.tanh(y)))(jnp.sqrt(x) @ jnp.eye(3)),
    "a power": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, jnp.tanh(y)))(x**1.5),
    "infinity less infinity": lambda x: (lambda y: jnp.where(jnp.isnan(y), 3.0, jnp.tanh(y)))(
        (lambda r: r - r[::-1])(1 / jnp.maximum(x, 0))
    ),
    "finite or not": lambda x: jnp.where(jnp.isfinite(jnp.sqrt(x)), 0.0, 4.0),
}


@pytest.mark.parametrize("f", NOT_A_NUMBER.values(), ids=NOT_A_NUMBER)
def test_what_is_not_a_number_lies_in_the_bounds_too(f):
    """A box held no NaN, so that the branch for NaN counted as never taken."""
    low, high = -jnp.ones(3), jnp.ones(3)
    box = certify.interval_bounds(f, low, high)
    points = jax.random.uniform(jax.random.key(0), (400, 3), minval=-1, maxval=1)
    points = jnp.concatenate([points, jnp.asarray(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))])
    values = jax.vmap(f)(points)
    assert jnp.isfinite(values).any()
    inside = (values >= box.low[None] - 1e-5) & (values <= box.high[None] + 1e-5) | jnp.isnan(values)
    assert inside.all()


def test_where_numbers_are_numbers_the_branch_for_others_is_left_out():
    """Masked attention has -infinity among its scores, and softmax and layer norms keep their bounds."""
    positive = certify.interval_bounds(NOT_A_NUMBER["asked of a root"], jnp.full(3, 0.25), jnp.ones(3))
    np.testing.assert_allclose([*positive.low, *positive.high], [0.5] * 3 + [1] * 3, rtol=1e-6)
    masked = lambda x: jax.nn.softmax(jnp.where(jnp.arange(3) < 2, x, -jnp.inf))
    box = certify.interval_bounds(masked, -jnp.ones(3), jnp.ones(3))
    assert (box.low >= 0).all()
    assert jnp.isfinite(box.high).all()
    assert box.high[2] == 0


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.real((x[:1] * (1 + 1j) + x[1:] * (1 - 1j)) * 1j),
        lambda x: jnp.abs(x * (1 + 1j)),
        lambda x: jnp.imag(jax.lax.complex(x, x)),
        lambda x: jnp.real(jnp.fft.fft(x)),
    ],
    ids=["turned", "its length", "made of two", "Fourier"],
)
def test_complex_numbers_have_no_bounds(f):
    """They were compared by their real parts, and a radius of 1 was certified where the true one is 0.25."""
    with pytest.raises(TypeError, match="no rule for"):
        certify.interval_bounds(f, -jnp.ones(2), jnp.ones(2))


@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", 1 / 8), ("bfloat16", 1.0), ("float16", 1.0)])
def test_radii_of_half_precision_hold(dtype, scale):
    """Their slack was that of float32, and rounding within f turned a sample over inside of its radius."""
    draws = jax.random.split(jax.random.key(5), 4)
    first, last = jax.random.normal(draws[0], (32, 64)) / 6, scale * jax.random.normal(draws[1], (64, 4))
    low = lambda a: a.astype(dtype)
    f = lambda x: (jax.nn.relu(low(x) @ low(first)) @ low(last)).astype(jnp.float32)
    x = jax.random.uniform(draws[2], (256, 32))
    y = jnp.argmax(f(x), 1)
    radius = certify.interval_radius(f, x, y)
    side = jnp.sign(jax.random.uniform(draws[3], (300, *x.shape), minval=-1, maxval=1))
    moved = jnp.clip(x[None] + side * radius[None, :, None], 0, 1)
    assert (jnp.argmax(jax.vmap(f)(moved), -1) == y[None]).all()
    assert (radius > 0).sum() > (50 if scale == 1 else -1)


def test_bounds_of_whole_numbers_are_whole_and_exact():
    """Beyond 2^24 too, where float32 is not."""
    box = certify.interval_bounds(lambda x: x.astype(jnp.int32) + (2**24 + 1), jnp.zeros(1), jnp.ones(1))
    assert box.low.dtype == jnp.int32
    assert (int(box.low[0]), int(box.high[0])) == (2**24 + 1, 2**24 + 2)


def test_quotients_of_integers_are_refused():
    """41 / 41 by a reciprocal is 0.99999994, which would be cut off to 0."""
    whole = lambda x: jax.lax.div((41 * x[:, 0]).astype(jnp.int32), jnp.int32(41)).astype(jnp.float32)
    f = lambda x: jnp.stack([0.5 - whole(x), 0 * x[:, 0]], 1)
    with pytest.raises(TypeError, match="no rule for 'div'"):
        certify.interval_radius(f, jnp.array([[0.9]]), jnp.array([0]))
