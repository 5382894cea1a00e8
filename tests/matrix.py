"""The wheel in an empty environment, with the oldest and the newest JAX that it allows: does a first hour work?

    python tests/matrix.py [oldest] [newest]        by the Python that runs it; needs pip alone

Builds the wheel, installs it with the extra "datasets" and pytest, runs `jacreg demo`, README's first blocks and the
tests of the estimators, penalties and simple attacks against the installed package. Prints the seconds of each step.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("test_jacobian.py", "test_penalty.py", "test_relatives.py", "test_schedules.py", "test_attacks_formulas.py")


def oldest(requirements: list[str]) -> list[str]:
    """The least version of everything that JAX moves with."""
    names = ("jax", "jaxlib", "flax", "optax")
    split = (re.match(r"([\w-]+)>=(\S+)", requirement) for requirement in requirements)
    return [f"{found[1]}=={found[2]}" for found in split if found and found[1] in names]


def readme_blocks(count: int) -> str:
    """README's first Python blocks, as a program."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(blocks[:count])


def run(*command: object, cwd: Path | None = None) -> float:
    """Seconds of a command; what it says is shown only if it fails."""
    start = time.perf_counter()
    found = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{found.stdout[-4000:]}{found.stderr[-4000:]}")
    return time.perf_counter() - start


def try_one(version: str, wheel: Path, folder: Path) -> dict[str, float]:
    """Seconds of each step in an environment of its own."""
    python = folder / version / "bin" / "python"
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = oldest(requirements) if version == "oldest" else []
    tests = folder / "tests"
    if not tests.exists():
        shutil.copytree(ROOT / "tests", tests)
        shutil.copy(ROOT / "pyproject.toml", folder)
    seconds = {"environment": run(sys.executable, "-m", "venv", folder / version)}
    packages = ["pytest", "chex", "beartype", "hypothesis", "scipy", "equinox", "dm-haiku"]
    seconds["install"] = run(python, "-m", "pip", "install", "--quiet", f"{wheel}[datasets]", *packages, *pins)
    seconds["demo"] = run(python.with_name("jacreg"), "demo", "--steps", 300, cwd=folder)
    seconds["README"] = run(python, "-c", readme_blocks(3), cwd=folder)
    every = [tests / name for name in QUICK if (tests / name).exists()]
    seconds["tests"] = run(python, "-m", "pytest", "-q", "-x", "-m", "not slow", *every, cwd=folder)
    return seconds


def main(versions: list[str]) -> None:
    """A line for each environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        print(f"Python {sys.version.split()[0]}, {wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB", flush=True)
        for version in versions:
            seconds = try_one(version, wheel, folder)
            code = "import jax, flax; print(jax.__version__, flax.__version__)"
            found = subprocess.run([folder / version / "bin" / "python", "-c", code], capture_output=True, text=True)
            steps = ", ".join(f"{step} {took:.0f} s" for step, took in seconds.items())
            print(f"{version}: jax {found.stdout.strip().replace(' ', ', flax ')}; {steps}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["oldest", "newest"])
