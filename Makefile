PYTHON ?= python3
DATASET ?= digits
BIN := .venv/bin

.PHONY: venv peers demo test check-slow mutants bench lint format report notebooks lock clean

venv: .venv/.done  ## the environment with all that the tests need, from the lock file

.venv/.done: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

peers: .venv/.peers  ## torch, torchvision, foolbox, pyautoattack: only for cross-checks and benchmarks

.venv/.peers: .venv/.done requirements-peers.txt
	$(BIN)/python -m pip install --quiet -r requirements-peers.txt
	touch $@

demo: .venv/.done  ## train LeNet' without and with Jacobian regularization, compare, draw: make demo DATASET=mnist
	$(BIN)/python -m experiments demo --dataset $(DATASET)

test: .venv/.done
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

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

report: .venv/.done  ## tables and pages from the committed results; trains nothing
	$(BIN)/python -m experiments.report

notebooks: .venv/.done  ## the .ipynb for Colab from the .py
	$(BIN)/jupytext --quiet --to ipynb notebooks/*.py

lock:  ## needs uv; hashes, and no addresses
	uv pip compile pyproject.toml --extra sweeps --extra notebooks --extra interop --group dev \
	  --universal --generate-hashes --no-emit-index-url --no-header -p 3.11 -o requirements.lock

clean:
	rm -rf .venv .jax_cache build dist site
