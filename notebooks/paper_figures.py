# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper in figures
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jacreg-jax/jacreg-jax/blob/main/notebooks/paper_figures.ipynb)
#
# Every table and figure below is drawn from the results that lie in the repository: nothing is trained here. The commands
# that made them stand on the results page. On Colab the repository is cloned first; half a minute.

# %%
import os
import shutil
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    extras = "notebooks,experiments,cuda12" if shutil.which("nvidia-smi") else "notebooks,experiments"
    # %pip install -q "jacreg-jax[{extras}] @ git+https://github.com/jacreg-jax/jacreg-jax"
    # !git clone -q --depth 1 https://github.com/jacreg-jax/jacreg-jax
    os.chdir("jacreg-jax")
elif not Path("experiments").exists():
    os.chdir("..")
sys.path.insert(0, os.getcwd())

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

from experiments import catalogue
from experiments.page import elements

tables, figures = catalogue.owned("TABLES"), catalogue.owned("FIGURES")

# %% [markdown]
# ## What the paper shows, and what became of it

# %%
display(Markdown(elements.render(catalogue.owned("ELEMENTS"))))

# %% [markdown]
# ## Tables 1, 2 and 3
# In brackets: how many models; **!** marks a cell that differs from the paper's at the 5 % level.

# %%
for name in ("table1", "table2", "table3"):
    display(Markdown(tables[name]()))

# %% [markdown]
# ## The figures that were run

# %%
for name, draw in sorted(figures.items()):
    drawing = draw()
    if drawing is not None:
        display(Markdown(f"### {name}"))
        display(drawing)
        plt.close(drawing)
