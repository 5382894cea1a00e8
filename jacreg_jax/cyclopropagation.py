"""Cyclopropagation: the gradient of the Jacobian penalty of a multilayer perceptron in closed form (Appendix C).

z^(0) = x, zh^(l) = W^(l) z^(l-1) + b^(l), z^(l) = sigma(zh^(l)); the last layer is the identity or activated. The
printed Eqs. 25 and 29 divide by sigma' and give 0/0 where it vanishes: for ReLU units that are off and for saturated
tanh. This is the division-free form, one probe v at a time: backward sweep d, forward sweep t, return q.


    d^(L) = v,            d^(l-1) = W^(l)^T (s'_l * d^(l))
    t^(0) = d^(0) = J^T v, u^(l) = W^(l) t^(l-1),  t^(l) = s'_l * u^(l)
    q^(l) = s'_l * (W^(l+1)^T q^(l+1)) + s''_l * u^(l) * d^(l),   the first term absent at l = L
    d/dW^(l) (1/2) ||J^T v||^2 = q^(l) z^(l-1)^T + (s'_l * d^(l)) t^(l-1)^T,   d/db^(l) = q^(l)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jacreg_jax.jacobian import Probe, sample_probes


class Activation(NamedTuple):
    """sigma with its first two derivatives, element-wise."""

    value: Callable
    first: Callable
    second: Callable


def activation_from(sigma: Callable) -> Activation:
    """The activation and its derivatives by automatic differentiation; sigma maps scalars to scalars.

    Raises:
        ValueError: sigma does not give a scalar for a scalar.
    """
    shape = jax.eval_shape(sigma, jnp.zeros(())).shape
    if shape != ():
        raise ValueError(f"activation must map a scalar to a scalar, got shape {shape}")
    first, second = jax.grad(sigma), jax.grad(jax.grad(sigma))
    everywhere = lambda f: lambda x: jax.vmap(f)(x.ravel()).reshape(x.shape)
    return Activation(sigma, everywhere(first), everywhere(second))


_ZERO = jnp.zeros_like
IDENTITY = Activation(lambda x: x, jnp.ones_like, _ZERO)
TANH = Activation(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2, lambda x: -2 * jnp.tanh(x) * (1 - jnp.tanh(x) ** 2))
RELU = Activation(jax.nn.relu, lambda x: (x > 0).astype(x.dtype), _ZERO)
SOFTPLUS = Activation(jax.nn.softplus, jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))


def perceptron(params: Sequence, x, activation: Activation = TANH, *, last: Activation = IDENTITY) -> jax.Array:
    """z^(L), [B, C], of weights and biases [(W [n_out, n_in], b [n_out]), ...] and x [B, n_0]."""
    for (weight, bias), sigma in zip(params, _activations(params, activation, last), strict=True):
        x = sigma.value(x @ weight.T + bias[None])
    return x


def penalty_and_gradient(
    params: Sequence,
    x,
    key: jax.Array | None = None,
    *,
    activation: Activation = TANH,
    last: Activation = IDENTITY,
    num_projections: int | None = None,
    probe: Probe = "sphere",
):
    """Batch mean of ||J||_F^2 and its gradient in the parameters, without automatic differentiation.

    Args:
        params: [(W [n_out, n_in], b [n_out]), ...], first layer first.
        x: [B, n_0].
        key: typed key, or B of them; needed for projections.
        activation: of the hidden layers, such as `TANH`, or `activation_from(sigma)`.
        last: of the last layer; `IDENTITY` for logits.
        num_projections: n; None for the exact sum over the C basis vectors.
        probe: as in `jacobian.projected_frobenius_sq`.

    Returns:
        (penalty, gradient): a scalar and a list like params. The loss takes (lambda_jr / 2) of both.

    Raises:
        ValueError: layers that do not fit together, x that does not fit the first, or an activation of another kind.

    Reference: Hoffman, Roberts, Yaida (2019), Eqs. 17-30, in the form above.
    """
    _check(params, x, activation=activation, last=last)
    layers = _activations(params, activation, last)
    inputs, firsts, seconds = [], [], []
    z = x
    for (weight, bias), sigma in zip(params, layers, strict=True):
        inputs.append(z)
        before = z @ weight.T + bias[None]
        firsts.append(sigma.first(before))
        seconds.append(sigma.second(before))
        z = sigma.value(before)
    batch, classes = z.shape
    if num_projections is None:
        probes, scale = jnp.broadcast_to(jnp.eye(classes, dtype=z.dtype)[:, None], (classes, batch, classes)), 1.0
    else:
        probes = jnp.moveaxis(sample_probes(key, batch, classes, num_projections, probe), 1, 0).astype(z.dtype)
        scale = 1.0 / num_projections

    def add(carry, v):
        penalty, gradient = _one_probe([w for w, _ in params], inputs, firsts, seconds, v)
        return jax.tree.map(jnp.add, carry, (penalty, gradient)), None

    start = jnp.zeros((), z.dtype), [(jnp.zeros_like(w), jnp.zeros_like(b)) for w, b in params]
    (penalty, gradient), _ = jax.lax.scan(add, start, probes)
    # the sweeps give the gradient of half the penalty
    return scale * penalty / batch, jax.tree.map(lambda g: 2 * scale * g / batch, gradient)


def cyclopropagated_penalty(
    params: Sequence,
    x,
    key: jax.Array | None = None,
    *,
    activation: Activation = TANH,
    last: Activation = IDENTITY,
    num_projections: int | None = None,
    probe: Probe = "sphere",
) -> jax.Array:
    """Batch mean of ||J||_F^2 whose `jax.grad` in params is the closed form, by `custom_vjp`.

    Arguments and errors as for `penalty_and_gradient`. It is differentiable in params alone, once.
    """
    options = {"activation": activation, "last": last, "num_projections": num_projections, "probe": probe}

    @jax.custom_vjp
    def penalty(params, x, key):
        return penalty_and_gradient(params, x, key, **options)[0]

    penalty.defvjp(
        lambda params, x, key: penalty_and_gradient(params, x, key, **options),
        lambda gradient, ct: (jax.tree.map(lambda g: ct * g, gradient), None, None),
    )
    return penalty(list(map(tuple, params)), x, key)


def _one_probe(weights, inputs, firsts, seconds, v):
    """Sum over the batch of ||J^T v||^2 and of the gradient of its half."""
    depth = len(weights)
    d = [None] * (depth + 1)
    d[depth] = v
    for i in reversed(range(depth)):
        d[i] = (firsts[i] * d[i + 1]) @ weights[i]
    t, u = [d[0]], []
    for weight, first in zip(weights, firsts, strict=True):
        u.append(t[-1] @ weight.T)
        t.append(first * u[-1])
    gradient, back = [], 0.0
    for i in reversed(range(depth)):
        q = firsts[i] * back + seconds[i] * u[i] * d[i + 1]
        gradient.append((q.T @ inputs[i] + (firsts[i] * d[i + 1]).T @ t[i], q.sum(0)))
        back = q @ weights[i]
    return jnp.sum(d[0] ** 2), gradient[::-1]


def _activations(params, activation, last):
    return [activation] * (len(params) - 1) + [last]


def _check(params, x, **activations):
    for name, sigma in activations.items():
        if not isinstance(sigma, Activation):
            raise ValueError(f"{name} must be an Activation, such as TANH or activation_from(sigma), got {sigma!r}")
    if x.ndim != 2:
        raise ValueError(f"x must have shape [B, n_0], got {x.shape}")
    if not params:
        raise ValueError("params must hold at least one layer, got none")
    width = x.shape[1]
    for i, (weight, bias) in enumerate(params, 1):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"layer {i} must have a weight [n_out, {width}] and a bias [n_out], got {weight.shape} and {bias.shape}"
            )
        width = weight.shape[0]
