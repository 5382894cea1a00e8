"""Adversarial attacks and noise as compiled loops over a batch: name(f, x, y, key, *, ...) -> AttackResult.

f takes raw pixels [B, ...], or a pytree, and gives logits [B, C], one logit, or whatever a criterion looks at
(`criteria`); the preprocessing belongs inside it, see `datasets.Preprocessing.wrap`. All sizes and distances are in raw
pixels.

Robust accuracy at a given epsilon: `white_noise`, `fgsm`, `pgd`, `apgd`, `square`, `auto_attack`.
Smallest fooling distance: `white_noise_distance`, `fgsm_distance`, `pgd_distance`, `carlini_wagner`, `ddn`, `fab`, and
`best_of` several.
"""

from jacreg_jax.attacks import criteria as criteria
from jacreg_jax.attacks.apgd import apgd as apgd, apgd_targeted as apgd_targeted
from jacreg_jax.attacks.auto_attack import auto_attack as auto_attack, standard_ensemble as standard_ensemble
from jacreg_jax.attacks.carlini_wagner import (
    carlini_wagner as carlini_wagner,
    carlini_wagner_converged as carlini_wagner_converged,
)
from jacreg_jax.attacks.ddn import ddn as ddn
from jacreg_jax.attacks.fab import fab as fab
from jacreg_jax.attacks.fgsm import fgsm as fgsm
from jacreg_jax.attacks.noise import white_noise as white_noise
from jacreg_jax.attacks.pgd import pgd as pgd
from jacreg_jax.attacks.result import AttackResult as AttackResult, best_of as best_of
from jacreg_jax.attacks.scans import (
    fgsm_distance as fgsm_distance,
    pgd_distance as pgd_distance,
    white_noise_distance as white_noise_distance,
)
from jacreg_jax.attacks.square import square as square
