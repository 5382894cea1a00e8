"""Relatives of the Jacobian penalty, one function each: same f(x), [B, ...] -> [B, C], rows independent; [B] out.

Costs count whole training steps in units of the plain one, as 1 + n does for n projections. Take the mean over the
batch and add (coefficient / 2) times it to the loss, as with `value_and_penalty`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jacreg_jax.jacobian import batch_size, exact_frobenius_sq, projected_frobenius_sq, sample_keys, sample_probes


def input_gradient_penalty(f: Callable, x, y, *, norm: Literal["l2", "l1"] = "l2") -> jax.Array:
    """||d cross-entropy / dx||_2^2 ("l2", double backpropagation) or ||.||_1 ("l1"); cost 2.

    "l1" is the dual of L-infinity attacks and works with smooth activations only (Rodriguez-Munoz et al.).

    Args:
        f: batched function to logits [B, C].
        x: float array [B, ...].
        y: integer labels [B].
        norm: "l2" or "l1".

    Raises:
        ValueError: unknown norm; y not one label for each sample.

    References: Drucker, LeCun (1992); Rodriguez-Munoz, Wang, Torralba (2024), https://arxiv.org/abs/2409.20139.
    """
    if norm not in ("l2", "l1"):
        raise ValueError(f"norm must be 'l2' or 'l1', got {norm!r}")
    if y.shape != (batch_size(x),):
        raise ValueError(f"y must have shape ({batch_size(x)},), one label for each sample, got {y.shape}")
    loss = lambda x: jnp.sum(optax.softmax_cross_entropy_with_integer_labels(f(x), y))
    gradient = jax.grad(loss)(x).reshape(len(x), -1)
    return jnp.sum(gradient**2 if norm == "l2" else jnp.abs(gradient), axis=1)


def noise_consistency(f: Callable, x, key: jax.Array, *, sigma: float) -> jax.Array:
    """||f(x + sigma u) - f(x)||^2 / sigma^2 with u ~ N(0, 1); cost 2.

    Its mean is ||J||_F^2 + O(sigma^2) for smooth f. In ReLU and max-pool networks it also sees the kinks, whose motion
    the gradient of every automatically differentiated Jacobian penalty misses: that of a bias is exactly zero there.

    Args:
        f: batched function.
        x: float array [B, ...].
        key: typed key, or B of them.
        sigma: standard deviation, in the units of x.

    Raises:
        ValueError: sigma not above 0.

    References: Zheng et al. (2016), https://arxiv.org/abs/1604.04326; Bishop (1995).
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    noise = jax.vmap(lambda k, x: jax.random.normal(k, x.shape, x.dtype))(sample_keys(key, batch_size(x)), x)
    difference = f(x + sigma * noise) - f(x)
    return jnp.sum(difference.reshape(len(x), -1) ** 2, axis=1) / sigma**2


def first_order_frobenius_sq(f: Callable, x, key: jax.Array, *, step: float = 0.01) -> jax.Array:
    """<v, f(x + h g) - f(x - h g)> / (2 h), g = stop_gradient(J^T v): ||J^T v||^2 without double backward; cost 2.7.

    For models whose kernels have no second derivative. Value and gradient are those of ||J^T v||^2 up to O(h^2) for
    smooth f; not for ReLU networks.

    Args:
        f: batched function to [B, C].
        x: float array [B, ...].
        key: typed key, or B of them; v = sqrt(C) times a unit vector.
        step: length of h g, in the units of x.

    Returns:
        [B]: value ||J^T v||^2 and the gradient of it.

    Raises:
        ValueError: step not above 0.
    """
    if not step > 0:
        raise ValueError(f"step must be above 0, got {step}")
    z, vjp = jax.vjp(f, jax.lax.stop_gradient(x))
    v = sample_probes(key, len(x), z.shape[1], 1, "sphere")[:, 0].astype(z.dtype)
    g = jax.lax.stop_gradient(vjp(v)[0])
    length = jnp.sqrt(jnp.sum(g.reshape(len(x), -1) ** 2, axis=1))
    h = jnp.where(length > 0, step / jnp.where(length > 0, length, 1), 1.0)
    move = h.reshape(-1, *(1,) * (x.ndim - 1)) * g
    directional = jnp.sum(v * (f(x + move) - f(x - move)), axis=1) / (2 * h)  # <v, J g>: gradient of half the norm
    return 2 * directional - jax.lax.stop_gradient(directional)


def spectral_norm_sq(f: Callable, x, key: jax.Array, *, num_iterations: int = 5) -> jax.Array:
    """sigma_max(J)^2 by power iteration on J J^T, the vector held fixed in the gradient; cost 2 + 2 k / 3.

    A lower bound that rises with num_iterations.

    Args:
        f: batched function to [B, C].
        x: float array [B, ...].
        key: typed key, or B of them, for the first vector.
        num_iterations: k.

    Raises:
        ValueError: num_iterations below 1.

    Reference: Johansson et al. (2022), https://arxiv.org/abs/2206.13581.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    fixed = jax.lax.stop_gradient(x)
    z, vjp = jax.vjp(f, x)
    unit = lambda u: u / jnp.maximum(jnp.linalg.norm(u, axis=1, keepdims=True), 1e-30)

    def iterate(_, u):
        return unit(jax.jvp(f, (fixed,), (vjp(u)[0],))[1])

    start = unit(sample_probes(key, len(x), z.shape[1], 1, "sphere")[:, 0].astype(z.dtype))
    u = jax.lax.stop_gradient(jax.lax.fori_loop(0, num_iterations, iterate, start))
    return jnp.sum(vjp(u)[0].reshape(len(x), -1) ** 2, axis=1)


def target_jacobian_sq(f: Callable, x, target: jax.Array, key: jax.Array | None = None, *, num_projections=None):
    """||J - J*||_F^2 for a given J*, [B, C, ...] or [C, ...] with the input's shape behind; exact, or projected; 1 + n.

    It is the Jacobian norm of f(x) - J* x, with J* x linear in x.

    Args:
        f: batched function to [B, C].
        x: float array [B, ...].
        target: J*.
        key: typed key, or B of them; needed for projections.
        num_projections: n; None for exact.

    Raises:
        ValueError: target of another shape.
    """
    z = jax.eval_shape(f, x)
    shape = (*z.shape, *x.shape[1:])
    if target.shape not in (shape, shape[1:]):
        raise ValueError(f"target must have shape {shape} or {shape[1:]}, got {target.shape}")
    rows = jnp.broadcast_to(target, shape).reshape(*z.shape, -1)
    difference = lambda x: f(x) - jnp.einsum("bci,bi->bc", rows, x.reshape(len(x), -1))
    if num_projections is None:
        return exact_frobenius_sq(difference, x)
    return projected_frobenius_sq(difference, x, key, num_projections=num_projections)


def centred(f: Callable) -> Callable:
    """f with the mean over classes taken off: its Jacobian norm is (1/C) sum_{c<c'} ||J_c - J_c'||^2.

    Only differences of logits decide the class; what moves all of them together is not penalised. Free.
    """

    def centred_f(x):
        z = f(x)
        return z - jnp.mean(z, axis=-1, keepdims=True)

    return centred_f


def layerwise_frobenius_sq(layers: Sequence[Callable], x, key: jax.Array, *, num_projections: int = 1) -> jax.Array:
    """Sum over the layers of ||J^(l)||_F^2, each with respect to its own input; cost 1 + n.

    Args:
        layers: functions [B, ...] -> [B, ...] that follow each other.
        x: float array [B, ...], input of the first.
        key: typed key.
        num_projections: n, for each layer.

    Raises:
        ValueError: no layers.

    Reference: Gu, Rigazio (2014), https://arxiv.org/abs/1412.5068.
    """
    if not layers:
        raise ValueError("layers must hold at least one function, got none")
    total = 0.0
    for i, layer in enumerate(layers):
        keys = jax.vmap(jax.random.fold_in, (0, None))(sample_keys(key, batch_size(x)), i)
        total = total + projected_frobenius_sq(layer, x, keys, num_projections=num_projections)
        x = layer(x)
    return total
