# make demo: the main job, start to end.  make test: everything that must pass.  Both make their own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
DEMO_OUT ?= runs/demo

.PHONY: demo test fast lint types contracts smoke bench env clean

demo: $(STAMP)
	$(BIN)/tutelage compare --out $(DEMO_OUT)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not browser"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

smoke: $(STAMP)
	$(BIN)/tutelage replicate --all --smoke --out $(VENV)/smoke

bench: $(STAMP)
	$(BIN)/python benchmarks/pool_and_curricula.py
	$(BIN)/python benchmarks/angle_concentration.py
	$(BIN)/python benchmarks/compare_throughput.py
	$(BIN)/python benchmarks/sasr_decision.py
	$(BIN)/python benchmarks/tpaw_throughput.py
	$(BIN)/python benchmarks/edit_pack.py
	$(BIN)/python benchmarks/edit_io.py
	$(BIN)/python benchmarks/space_teachers.py
	$(BIN)/python benchmarks/stump_track_steps.py
	$(BIN)/python benchmarks/sb3_overhead.py
	$(BIN)/python benchmarks/audit_stream.py
	$(BIN)/python benchmarks/audit_live.py

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[lm,rl,dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
