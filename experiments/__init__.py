"""Experiments that reproduce the paper, and go beyond it: `python -m experiments NAME [options]`.

Rooms, each importing only from those after it: paper and beyond (an experiment a file), studies (shapes that the paper
repeats on several problems), lab (the backbone: problems, recipes, training, measuring, records). page is the reading
side, without jax; report rebuilds the pages.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"  # small json and figures, committed
RUNS = Path("runs")  # raw runs, checkpoints and models, ignored by git
