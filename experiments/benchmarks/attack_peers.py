"""The same attacks of foolbox, pyautoattack and adv-lib, in torch: (attack, norm) -> function of (model, x, y)."""

import importlib
import math
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}


def adv_lib() -> Any:
    """Its attacks; they import what draws curves and perceptual distances, which no attack here needs."""
    for name in ("visdom", "torchvision"):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):  # torchvision of another build than torch
            for partial in [n for n in sys.modules if n.split(".")[0] == name]:
                del sys.modules[partial]
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].models = None
    import adv_lib.attacks

    return adv_lib.attacks


def foolbox() -> Any:
    """The module, without its warnings on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

    return foolbox


def in_foolbox(attack: Any) -> Callable:
    """(model, x, y) -> images of a foolbox attack."""

    def run(model, x, y):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = foolbox().PyTorchModel(model, bounds=(0, 1), device="cpu")
            return attack.run(wrapped, x, foolbox().criteria.Misclassification(y))

    return run


def ddn(steps: int) -> dict[str, Callable]:
    """Library -> run."""
    return {
        "foolbox": in_foolbox(foolbox().attacks.DDNAttack(init_epsilon=1.0, steps=steps, gamma=0.05)),
        "adv-lib": lambda model, x, y: adv_lib().ddn(model, x, y, steps=steps, levels=None),
    }


def carlini_wagner(steps: int, searches: int, rate: float, constant: float) -> dict[str, Callable]:
    """Library -> run."""
    options = {"binary_search_steps": searches, "initial_const": constant, "abort_early": False}
    from adv_lib.attacks.carlini_wagner import carlini_wagner_l2

    return {
        "foolbox": in_foolbox(foolbox().attacks.L2CarliniWagnerAttack(steps=steps, stepsize=rate, **options)),
        "adv-lib": lambda model, x, y: carlini_wagner_l2(
            model, x, y, max_iterations=steps, learning_rate=rate, **options
        ),
    }


def fab(norm: str, steps: int, targets: int, overshoot: float) -> dict[str, Callable]:
    """Library -> run; pyautoattack's towards each of the likeliest classes, adv-lib's towards the nearest plane."""
    from adv_lib.attacks.fast_adaptive_boundary import fab as adv_lib_fab
    from pyautoattack.fab_pt import FABAttack_PT

    def towards_classes(model, x, y):
        options = {"norm": NORMS[norm], "n_iter": steps, "eps": 1e3, "eta": overshoot, "n_target_classes": targets}
        attack = FABAttack_PT(model, n_restarts=1, seed=0, targeted=True, device="cpu", **options)
        return _nearest(attack, x, y, targets, norm)

    order = ORDERS[norm]
    return {
        "pyautoattack": towards_classes,
        "adv-lib": lambda model, x, y: adv_lib_fab(model, x, y, norm=order, n_iter=steps, η=overshoot),
    }


def _nearest(attack: Any, x, y, targets: int, norm: str):
    """Over the targets: `perturb` itself stops at the first that succeeds within eps."""
    import torch

    best, distance = x.clone(), torch.full((len(x),), torch.inf)
    for target in range(2, targets + 2):
        attack.target_class = target
        found = attack.attack_single_run(x, y, use_rand_start=False, is_targeted=True)
        length = (found - x).flatten(1).norm(ORDERS[norm], dim=1)
        with torch.no_grad():
            nearer = (attack.predict(found).argmax(1) != y) & (length < distance)
        best[nearer], distance[nearer] = found[nearer], length[nearer]
    return best


def apgd(steps: int, epsilon: float) -> dict[str, Callable]:
    """Library -> run, cross-entropy in L-infinity."""
    from adv_lib.attacks.auto_pgd import apgd as adv_lib_apgd
    from pyautoattack.autopgd_base import APGDAttack

    def theirs(model, x, y):
        return APGDAttack(model, n_iter=steps, norm="Linf", eps=epsilon, seed=0, device="cpu").perturb(x, y)

    options = {"eps": epsilon, "norm": float("inf"), "n_iter": steps, "loss_function": "ce"}
    return {"pyautoattack": theirs, "adv-lib": lambda model, x, y: adv_lib_apgd(model, x, y, **options)}


def square(queries: int, epsilon: float) -> dict[str, Callable]:
    """Library -> run, in L-infinity."""
    from pyautoattack.square import SquareAttack

    def theirs(model, x, y):
        options = {"n_queries": queries, "eps": epsilon, "seed": 0, "device": "cpu"}
        return SquareAttack(model, norm="Linf", **options).perturb(x, y)

    return {"pyautoattack": theirs}


def timed(name: str, library: str, steps: int, epsilon: float = 1e-6) -> Callable:
    """One attack of one library as `attack_cost` times it."""
    adv_lib()
    runs = {
        "CW": lambda: carlini_wagner(steps, 1, 0.005, 0.01),
        "DDN": lambda: ddn(steps),
        "FAB, one class": lambda: fab("l2", steps, 1, 1.05),
        "APGD": lambda: apgd(steps, epsilon),
        "Square": lambda: square(steps, epsilon),
    }
    return runs[name]()[library]
