# `make bench`: the environment, then the main job on the data that needs no download.
# `make test`:  the environment, then all checks.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
THREADS := OMP_NUM_THREADS=1

.PHONY: bench test benchmark format clean

bench: $(READY)
	$(BIN)/python -m flexseq.bench digits

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(THREADS) $(BIN)/python -m pytest -n 2

# Time and memory against benchmarks/plain.py and torch: half an hour, on a machine that does nothing else.
benchmark: $(READY)
	$(BIN)/python benchmarks/run.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Made anew when what it depends on changed.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build
