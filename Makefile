PYTHON ?= python3
DATASET ?= digits
BIN := .venv/bin

.PHONY: venv peers demo test coverage check-slow check-accelerators mutants bench lint format docs report notebooks lock clean

venv: .venv/.done  ## the environment with all that the tests need, from the lock file

.venv/.done: requirements.lock pyproject.toml
	@echo "making .venv from the lock file: two to three minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

peers: .venv/.peers  ## torch, torchvision, foolbox, pyautoattack, adv-lib: only for cross-checks and benchmarks

.venv/.peers: .venv/.done requirements-peers.txt
	$(BIN)/python -m pip install --quiet --no-compile -r requirements-peers.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps adv-lib==0.2.8
	touch $@

demo: .venv/.done  ## train LeNet' without and with Jacobian regularization, compare, draw: make demo DATASET=mnist
	$(BIN)/python -m experiments demo --dataset $(DATASET)

test: .venv/.done
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

coverage: .venv/.done  ## lines and branches of the library that the fast tests reach; below 95 % it fails
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --cov --cov-report=term-missing:skip-covered

check-slow: .venv/.done
	$(BIN)/python -m pytest -m slow

lint: .venv/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: .venv/.done  ## break the library in 300 places, one at a time: does a test go red? 2 to 3 hours; goes on where it stopped
	$(BIN)/python -m tests.mutants record
	$(BIN)/python -m tests.mutants judge
	$(BIN)/python -m tests.mutants confirm
	$(BIN)/python -m tests.mutants page

bench: .venv/.peers  ## what a step costs beside PyTorch, on all cores and on one, and an attack beside its peers: under 20 minutes
	$(BIN)/python -m experiments.benchmarks
	$(BIN)/python -m experiments.benchmarks --one-core

JAX_VERSIONS ?= oldest newest

.PHONY: matrix
matrix:  ## the wheel in an empty environment, with the oldest and the newest JAX allowed: README's examples and the quick tests
	$(PYTHON) tests/matrix.py $(JAX_VERSIONS)

# each compiler in a folder of its own, in the versions that the installed jax names; the package depends on neither
JAX = $(shell $(BIN)/python -c "import jax; print(jax.__version__)")
LIBTPU = $(shell $(BIN)/python -c "from importlib.metadata import requires; print(next(r.split(';')[0].strip() for r in requires('jax') if r.startswith('libtpu')))")

check-accelerators: .accelerators/h100/.done .accelerators/v5e/.done  ## what the compilers for H100 and TPU v5e make of a step; no device needed, an hour and a half
	PYTHONPATH=.accelerators/h100 JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m experiments.accelerators h100
	TPU_LIBRARY_PATH=.accelerators/v5e/libtpu/libtpu.so TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu \
	  $(BIN)/python -m experiments.accelerators v5e
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.accelerators cpu --share 16

.accelerators/h100/.done: .venv/.done
	$(BIN)/python -m pip install --quiet --no-deps --target .accelerators/h100 jax-cuda12-plugin==$(JAX) jax-cuda12-pjrt==$(JAX)
	touch $@

.accelerators/v5e/.done: .venv/.done
	$(BIN)/python -m pip install --quiet --no-deps --target .accelerators/v5e "$(LIBTPU)"
	touch $@

docs: .venv/.done  ## the site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

report: .venv/.done  ## tables and pages from the committed results; trains nothing
	$(BIN)/python -m experiments.report

.PHONY: paper paper-gpu
paper: .venv/.done  ## all that docs/results.md shows: what is missing is run, in order of value; days on two cores, goes on where it stopped
	$(BIN)/python -m experiments runbook

paper-gpu: .venv/.done  ## the same on a GPU, a piece of at most 9 minutes a call
	$(BIN)/python -m experiments runbook --gpu --hours 0.15 --beside 4

notebooks: .venv/.done  ## the .ipynb for Colab from the .py
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py

lock:  ## needs uv; hashes, and no addresses
	uv pip compile pyproject.toml --extra sweeps --extra notebooks --extra interop --group dev \
	  --universal --generate-hashes --no-strip-extras --no-emit-index-url --no-header -p 3.11 -o requirements.lock

clean:
	rm -rf .venv .jax_cache build dist site
