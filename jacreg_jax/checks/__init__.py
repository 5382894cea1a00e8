"""The one place that looks at the values of arguments, so that a wrong call says what is wrong with it.

Shapes and types are always checked. Values are checked where they are concrete, see `concrete`.
"""

from jacreg_jax.checks.arrays import (
    Bounds as Bounds,
    all_finite as all_finite,
    bounds as bounds,
    class_logits as class_logits,
    entries as entries,
    images as images,
    inputs as inputs,
    labels as labels,
    num_classes as num_classes,
    num_samples as num_samples,
    on_host as on_host,
    outputs as outputs,
    sample_values as sample_values,
    trainable as trainable,
)
from jacreg_jax.checks.functions import (
    free_names as free_names,
    function as function,
    items as items,
    of_form as of_form,
    pair as pair,
    pure as pure,
    signature as signature,
    takes as takes,
)
from jacreg_jax.checks.numbers import (
    at_least as at_least,
    count as count,
    finite as finite,
    fraction as fraction,
    generator as generator,
    non_negative as non_negative,
    one_of as one_of,
    optional_count as optional_count,
    positive as positive,
    shares as shares,
)
from jacreg_jax.checks.words import warn as warn, what as what
