"""Slow, obvious twins of the fast functions."""

import jax
import jax.numpy as jnp


def jacobian_matrix(f, x, jac=jax.jacrev):
    """J of every sample, [B, C, I], one row of the batch at a time; pytrees in and out are laid side by side."""

    def one(sample):
        single = lambda s: jax.tree.map(lambda z: z[0], f(jax.tree.map(lambda leaf: leaf[None], s)))
        jacobian = jac(single)(sample)
        inputs = jax.tree.structure(sample)
        rows = []
        for z, per_input in zip(
            jax.tree.leaves(single(sample)),
            jax.tree.leaves(jacobian, is_leaf=lambda t: jax.tree.structure(t) == inputs),
            strict=True,
        ):
            rows.append(jnp.concatenate([j.reshape(z.size, -1) for j in jax.tree.leaves(per_input)], axis=1))
        return jnp.concatenate(rows)

    return jax.lax.map(one, x)


def frobenius_sq(f, x, jac=jax.jacrev):
    """||J||_F^2 of every sample from the whole matrix."""
    return jax.jit(lambda x: jnp.sum(jacobian_matrix(f, x, jac) ** 2, axis=(1, 2)))(x)


def vjp_penalty(convolve, x, w):
    """Norm of a vector-Jacobian product through a curved function: every one of the three forms, twice."""
    y, vjp = jax.vjp(lambda x: jnp.sin(convolve(jnp.tanh(x), w)), x)
    return jnp.sum(vjp(jnp.cos(y))[0] ** 2)
