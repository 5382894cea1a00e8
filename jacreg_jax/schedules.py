"""The coefficient lambda_jr: what it means as noise, a first guess, and a ramp."""

from collections.abc import Callable

import optax


def equivalent_noise(lambda_jr: float, *, std: float = 1.0) -> float:
    """Standard deviation of input noise, in raw pixels, that a least-squares loss would see as this penalty.

    For small white noise of deviation s in the network's input, E loss(x + s u) = loss(x) + (s^2 / 2) ||J||_F^2 + ...
    for a loss of unit curvature in the logits: lambda_jr = s^2. Raw pixels are `std` times preprocessed ones.

    Args:
        lambda_jr: coefficient of (lambda_jr / 2) mean ||J||_F^2.
        std: by which the preprocessing divides; 0.3081 for MNIST.

    Raises:
        ValueError: lambda_jr negative, std not above 0.
    """
    if lambda_jr < 0 or not std > 0:
        raise ValueError(f"lambda_jr must be at least 0 and std above 0, got {lambda_jr} and {std}")
    return std * lambda_jr**0.5


def suggest_lambda(noise: float, *, std: float = 1.0) -> float:
    """lambda_jr = (noise / std)^2 for noise, in raw pixels, that the network should not mind; inverse of the above.

    It assumes white noise, small against the distance over which f bends, and logits whose loss has a curvature of
    about 1. Cross-entropy's is p (1 - p), at most 1/4 and less for sure predictions: the guess is on the strong side;
    correlated noise and adversaries need more. Try a tenth and ten times of it.

    Raises:
        ValueError: noise negative, std not above 0.
    """
    if noise < 0 or not std > 0:
        raise ValueError(f"noise must be at least 0 and std above 0, got {noise} and {std}")
    return (noise / std) ** 2


def lambda_ramp(final: float, *, num_steps: int, start: int = 0) -> optax.Schedule:
    """0 until `start`, then linearly up to `final` over num_steps: lets the network learn before it is held still.

    A schedule of the step, as `training.classification_loss(lambda_jr=...)` takes it.

    Raises:
        ValueError: num_steps below 1, final or start negative.
    """
    if num_steps < 1 or final < 0 or start < 0:
        raise ValueError(f"num_steps must be at least 1, final and start at least 0; got {num_steps}, {final}, {start}")
    ramp: Callable = optax.linear_schedule(0.0, final, num_steps, transition_begin=start)
    return ramp
