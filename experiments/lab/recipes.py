"""How models are trained: a recipe is all that decides a model, but for its seed. Pure data."""

import dataclasses
from typing import Literal

from experiments.lab import record
from experiments.lab.problems import MNIST_LENET, PROBLEMS, Problem

# "reshuffled", a new permutation every epoch, is what all models are trained with but those of data_order
Order = Literal["reshuffled", "reshuffled otherwise", "same every epoch", "with replacement"]
Relative = Literal["", "input gradient", "input gradient, L1", "noise consistency", "spectral norm"]
Penalised = Literal["as trained", "eval mode", "batch statistics"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The defaults are the paper's for LeNet' on all of MNIST, without any regularizer; see `plain` for the others."""

    weight_decay: float = 0.0
    dropout_rate: float = 0.0
    lambda_jr: float = 0.0
    num_projections: int | Literal["exact"] = 1
    probe: str = "sphere"
    sample_fraction: float = 1.0
    lazy: int = 1
    max_epsilon: float = 0.0
    """Adversarial training by FGSM with epsilon ~ U[0, max_epsilon], in raw pixels."""
    samples_per_class: int | None = None
    """None: all, in batches; else one full batch."""
    batch_size: int = 100
    learning_rate: float = 0.1
    quench_every: int | None = 50_000
    """The learning rate falls tenfold after as many steps; None: never."""
    num_steps: int = 150_000
    initialization: str = "xavier"
    problem: Problem = MNIST_LENET
    order: Order = "reshuffled"
    penalised: Penalised = "as trained"
    """"eval mode": the network without dropout, where the trained one shares its mask. "batch statistics": so too, and
    with BatchNorm at the statistics of the batch."""
    draw: int = 0
    """Initial parameters are drawn from another key for each; the subset of a seed and the batches stay."""
    relative: Relative = ""
    """What lambda_jr weighs in place of ||J||_F^2, see `jacreg_jax.relatives`; "": nothing else."""
    pgd_steps: int = 0
    """Adversarial training by PGD of as many steps within U[0, max_epsilon] from a random start; 0: by FGSM.
    Within the whole of 0.3 LeNet' learns nothing on MNIST."""

    def few_shot(self, samples_per_class: int) -> "Recipe":
        """The same on a subsample: full batch, constant learning rate 0.01, 10,000 steps (section 3.1)."""
        return dataclasses.replace(
            self, samples_per_class=samples_per_class, learning_rate=0.01, quench_every=None, num_steps=10_000
        )

    def shortened(self, num_steps: int | None) -> "Recipe":
        """The same in num_steps, the learning rate quenched at the same shares of them; itself for None."""
        if num_steps is None:
            return self
        quench = self.quench_every and max(1, self.quench_every * num_steps // self.num_steps)
        return dataclasses.replace(self, num_steps=num_steps, quench_every=quench)

    def program(self) -> "Recipe":
        """Stands for all recipes that differ from this one in the sizes of lambda_jr and weight_decay alone.

        Models of these can be trained in one compiled program. A penalty of size 0 would cost what one costs, and is
        another program; a weight decay of size 0 costs nothing.
        """
        return dataclasses.replace(self, lambda_jr=float(self.lambda_jr != 0), weight_decay=0.0)

    def config(self) -> dict:
        """As it is written: what MNIST's first results held stands always, the rest where it differs from theirs."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"problem": self.problem.name}
        names = [f.name for f in dataclasses.fields(self)]
        new = {name: values.pop(name) for name in names[names.index("problem") :]}
        plain = {f.name: f.default for f in dataclasses.fields(self)} | {"problem": MNIST_LENET.name}
        return values | {"dataset": self.problem.dataset} | {k: v for k, v in new.items() if v != plain[k]}

    def digest(self) -> str:
        """Ten characters that differ between recipes."""
        return record.digest(self.config())

    def describe(self) -> str:
        """What sets it apart, for a progress bar."""
        usual = plain(self.problem).config()
        parts = [f"{k}={v}" for k, v in self.config().items() if v != usual.get(k)]
        return " ".join(parts) or "no regularizer"


def from_config(config: dict) -> Recipe:
    """The recipe that was written.

    Raises:
        ValueError: of a problem that is not in PROBLEMS, or with a field that a recipe has not.
    """
    values = {"problem": MNIST_LENET.name} | {k: v for k, v in config.items() if k != "dataset"}
    name = values.pop("problem")
    unknown = values.keys() - {f.name for f in dataclasses.fields(Recipe)}
    if name not in PROBLEMS or unknown:
        raise ValueError(f"config must be that of a recipe of {', '.join(PROBLEMS)}; got {name!r}, and {unknown or {}}")
    return Recipe(problem=PROBLEMS[name], **values)


def plain(problem: Problem) -> Recipe:
    """Training on all samples by the problem's protocol, without any regularizer."""
    protocol = ("batch_size", "learning_rate", "quench_every", "num_steps", "initialization")
    return Recipe(problem=problem, **{name: getattr(problem, name) for name in protocol})


def jacobian(problem: Problem, lambda_jr: float) -> dict:
    """The fields of a recipe with the Jacobian penalty of some size; 0: without it."""
    return {"lambda_jr": lambda_jr} | ({"penalised": problem.penalised} if lambda_jr else {})


def regularizers(problem: Problem) -> dict[str, Recipe]:
    """The rows of Tables 1 and 3: none, L2, dropout where the network takes it, Jacobian, and all combined."""
    terms = {"L2": {"weight_decay": problem.weight_decay}}
    if problem.dropout_rate is not None:
        terms["dropout"] = {"dropout_rate": problem.dropout_rate}
    terms["Jacobian"] = jacobian(problem, problem.lambda_jr)
    terms["all"] = {name: value for term in list(terms.values()) for name, value in term.items()}
    return {name: dataclasses.replace(plain(problem), **term) for name, term in ({"none": {}} | terms).items()}


def defences(problem: Problem) -> dict[str, Recipe]:
    """The four of Figures 3, S3 and S4; their base has weight decay, and dropout where the network takes it."""
    base = dataclasses.replace(
        plain(problem), weight_decay=problem.weight_decay, dropout_rate=problem.dropout_rate or 0.0
    )
    trained, penalised = {"max_epsilon": problem.max_epsilon}, jacobian(problem, problem.lambda_jr)
    terms = {"none": {}, "adversarial": trained, "Jacobian": penalised, "both": trained | penalised}
    return {name: dataclasses.replace(base, **term) for name, term in terms.items()}


def regularized(problem: Problem) -> dict[str, Recipe]:
    """Regularizers and defences together: "base" is the defences' base, "all" is it with the Jacobian penalty."""
    rows, bases = regularizers(problem), defences(problem)
    return rows | {"base": bases["none"], "adversarial": bases["adversarial"], "both": bases["both"]}
