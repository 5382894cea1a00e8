"""The coefficient lambda_jr: what it means as noise, a first guess, and a ramp."""

import optax

from jacreg_jax import checks


def equivalent_noise(lambda_jr: float, *, std: float = 1.0) -> float:
    """Standard deviation of input noise, in raw pixels, that a least-squares loss would see as this penalty.

    For small white noise of deviation s in the network's input, E loss(x + s u) = loss(x) + (s^2 / 2) ||J||_F^2 + ...
    for a loss of unit curvature in the logits: lambda_jr = s^2. Raw pixels are `std` times preprocessed ones.

    Args:
        lambda_jr: coefficient of (lambda_jr / 2) mean ||J||_F^2.
        std: by which the preprocessing divides; 0.3081 for MNIST.

    Returns:
        Standard deviation in raw pixels.

    Raises:
        ValueError: lambda_jr negative, std not above 0, or not finite.

    Example:
        >>> round(equivalent_noise(0.01, std=0.3081), 3)
        0.031
    """
    checks.non_negative("lambda_jr", lambda_jr)
    checks.positive("std", std)
    return std * lambda_jr**0.5


def suggest_lambda(noise: float, *, std: float = 1.0) -> float:
    """lambda_jr = (noise / std)^2 for noise, in raw pixels, that the network should not mind; inverse of the above.

    It assumes white noise, small against the distance over which f bends, and logits whose loss has a curvature of
    about 1. Cross-entropy's is p (1 - p), at most 1/4 and less for sure predictions: the guess is on the strong side;
    correlated noise and adversaries need more. Try a tenth and ten times of it.

    Args:
        noise: standard deviation in raw pixels.
        std: by which the preprocessing divides.

    Returns:
        lambda_jr.

    Raises:
        ValueError: noise negative, std not above 0, or not finite.

    Example:
        >>> round(suggest_lambda(0.1, std=0.3081), 3)
        0.105
    """
    checks.non_negative("noise", noise)
    checks.positive("std", std)
    return (noise / std) ** 2


def lambda_ramp(final: float, *, num_steps: int, start: int = 0) -> optax.Schedule:
    """0 until `start`, then linearly up to `final` over num_steps: lets the network learn before it is held still.

    A schedule of the step, as `training.classification_loss(lambda_jr=...)` takes it.

    Args:
        final: lambda_jr at the end.
        num_steps: length of the ramp.
        start: step at which it begins.

    Returns:
        Schedule of the step.

    Raises:
        ValueError: num_steps below 1, final or start negative, or not finite.

    Example:
        >>> ramp = lambda_ramp(0.1, num_steps=4, start=2)
        >>> [round(float(ramp(step)), 3) for step in (0, 2, 4, 6, 9)]
        [0.0, 0.0, 0.05, 0.1, 0.1]
    """
    checks.non_negative("final", final)
    checks.count("num_steps", num_steps)
    checks.count("start", start, least=0)
    ramp: optax.Schedule = optax.linear_schedule(0.0, final, num_steps, transition_begin=start)
    return ramp
