"""What a mutation of the library is: one operator, comparison, constant, name or condition, changed."""

import ast
import copy
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# the modules that are mutated; of `jacobian`, `penalties`, ... also those that they stand on
MODULES = {"jacobian.py", "probes.py", "rows.py", "mean_norm.py", "penalty.py", "penalties.py", "relatives.py"}
MODULES |= {"cyclopropagation.py", "training.py", "supervised.py", "metrics.py", "guard.py", "accumulation.py"}
MODULES |= {"sharding.py", "shares.py", "collectives.py", "attacks", "attack_runs.py", "certify.py", "evaluation.py"}
MODULES |= {"interval_rules.py", "intervals.py", "masking.py", "fooling.py", "batches.py", "decision_cells.py"}
MODULES |= {"pooled_convolution.py", "convolution"}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult}
OPERATORS |= {ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
NAMES = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "any": "all", "all": "any"}
NAMES |= {"argmax": "argmin", "argmin": "argmax", "zeros_like": "ones_like", "ones_like": "zeros_like"}


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One change of one file; `key` names it by the code around it, so it outlives edits elsewhere."""

    file: str
    number: int
    lines: range  # from the start of the statement to the end of what is changed
    function: range  # lines of the definition around it
    before: str
    after: str
    key: str


def digest(text: str) -> str:
    """A short name of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """(node, what is done to it) of every mutation; annotations, messages and docstrings are left alone."""
    skipped = set()
    for node in ast.walk(tree):
        for left_alone in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            skipped |= set(map(id, ast.walk(left_alone))) if left_alone is not None else set()
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.ImportFrom | ast.Import | ast.AnnAssign):
            skipped |= set(map(id, ast.walk(node)))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn":
            skipped |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, "comparison"
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node, "operator"
        elif isinstance(node, ast.BoolOp):
            yield node, "and / or"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield node, "sign or not"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield node, "constant"
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, "name"
        elif isinstance(node, ast.IfExp):
            yield node, "condition"


def change(node: ast.AST, kind: str) -> None:
    """Does it, in place."""
    if kind == "comparison":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "operator":
        node.op = OPERATORS[type(node.op)]()
    elif kind == "and / or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif kind == "sign or not":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
        if not isinstance(node.op, ast.UAdd):
            node.operand = ast.UnaryOp(node.op, node.operand)
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif kind == "name":
        node.attr = NAMES[node.attr]
    else:
        node.body, node.orelse = node.orelse, node.body


def mutated(source: str, number: int) -> str:
    """The source with its mutation of this number done."""
    tree = ast.parse(source)
    change(*list(places(tree))[number])
    return ast.unparse(ast.fix_missing_locations(tree))


def without_docstrings(node: ast.AST) -> str:
    """The code of a definition alone: its docstrings may change."""
    bare = ast.parse(ast.unparse(node))
    for part in ast.walk(bare):
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(part) is not None:
            part.body[0].value.value = ""
    return ast.unparse(bare)


def mutations(file: str, source: str) -> Iterator[Mutation]:
    """Every mutation of a file."""
    tree, counts = ast.parse(source), Counter()
    around = {}  # id of a node: (innermost statement, innermost function, statement of the module)
    for top in tree.body:
        around |= {id(node): (top, top, top) for node in ast.walk(top)}
    for inner in (node for node in ast.walk(tree) if isinstance(node, ast.stmt)):  # outer ones first
        for node in ast.walk(inner):
            function = inner if isinstance(inner, ast.FunctionDef) else around[id(node)][1]
            around[id(node)] = (inner, function, around[id(node)][2])
    code = {id(top): without_docstrings(top) for top in tree.body}
    for number, (node, kind) in enumerate(places(tree)):
        statement, function, top = around[id(node)]
        twin = copy.deepcopy(node)
        change(twin, kind)
        counts[id(top)] += 1
        yield Mutation(
            file=file,
            number=number,
            lines=range(statement.lineno, node.end_lineno + 1),
            function=range(function.lineno, function.end_lineno + 1),
            before=ast.unparse(node),
            after=ast.unparse(ast.fix_missing_locations(twin)),
            key=digest(f"{file} {code[id(top)]} {counts[id(top)]}"),
        )


def sample(library: Path, count: int, seed: int, skip: list[str]) -> list[Mutation]:
    """A random sample over all modules but those skipped; an edit moves only the mutations of what was edited."""
    found = []
    for path in sorted(library.rglob("*.py")):
        name = str(path.relative_to(library))
        part = name.split("/")[0]
        if part in MODULES and part not in skip:
            found += mutations(name, path.read_text())
    return sorted(found, key=lambda m: digest(f"{seed} {m.key}"))[:count]
