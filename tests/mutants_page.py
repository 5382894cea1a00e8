"""docs/mutants.md: how many mutations the tests notice, and why the others stay."""

from collections import defaultdict

from tests.mutations import Mutation

INTRODUCTION = """# Mutation testing

The library is broken in one place at random: an operator, a comparison, a constant, a name or a condition is changed.
The fast tests that reach the place then run. At least one should fail. `make mutants` does it again, and this page is
written by `python -m tests.mutants page`. Mutations that change nothing that can be seen count as survivors, too.
"""


def cell(text: str) -> str:
    """Code in a table: one line, not too long."""
    line = " ".join(text.split()).replace("|", "\\|")
    return f"`{line if len(line) <= 90 else line[:87] + '...'}`"


def page(mutations: list[Mutation], results: dict[str, dict], reasons: dict[str, str], skipped: list[str]) -> str:
    """The page as Markdown; a survivor without a reason says so."""
    judged = [mutation for mutation in mutations if mutation.key in results]
    by_module = defaultdict(list)
    for mutation in judged:
        by_module[mutation.file.split("/")[0]].append(bool(results[mutation.key]["killed_by"]))
    killed = sum(map(sum, by_module.values()))
    survivors = [mutation for mutation in judged if not results[mutation.key]["killed_by"]]
    left = f"Of the {len(mutations)} that were drawn, {len(mutations) - len(judged)} were not tried yet."
    left += f" Nothing was drawn from {', '.join(skipped)}." if skipped else ""
    lines = [
        INTRODUCTION,
        f"**{killed} of {len(judged)} mutations noticed: {100 * killed / max(len(judged), 1):.1f} %.** {left}\n",
        "| module | noticed | of |",
        "|---|---:|---:|",
        *(f"| {name} | {sum(seen)} | {len(seen)} |" for name, seen in sorted(by_module.items())),
        "\n## Survivors\n",
        "| place | before | after | why it stays |",
        "|---|---|---|---|",
    ]
    for m in sorted(survivors, key=lambda m: (m.file, m.lines[-1])):
        reason = reasons.get(m.key, "not looked at yet")
        lines.append(f"| {m.file}:{m.lines[-1]} | {cell(m.before)} | {cell(m.after)} | {reason} |")
    return "\n".join(lines) + "\n"
