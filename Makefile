# make demo: the whole pipeline on phantoms.  make test: the tests.  make faults: the tests that kill processes and
# break storage.  make clusters: the tests that start clusters.  make commands: those that run all commands as users do.  make lint: what checks the code without running it.
# make docs: the pages, into build/site.  Each makes the virtual environment if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# What is ours to compile: links in medfocus/ lead to the same folders.
FOLDERS := stages pipeline cluster starter benchmarks tests docs

.PHONY: demo test faults clusters commands install lint docs constraints clean

demo: $(READY)
	$(BIN)/medfocus demo --work work

test: $(READY)
	$(BIN)/python -m pytest -m "not faults and not clusters and not commands"

faults: $(READY)
	$(BIN)/python -m pytest -m faults

clusters: $(READY)
	$(BIN)/python -m pytest -m clusters

commands: $(READY)
	$(BIN)/python -m pytest -m commands

install: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m compileall -q $(FOLDERS) medfocus/__init__.py medfocus/__main__.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(READY): pyproject.toml constraints.txt cluster/install.sh
	PYTHON=$(PYTHON) cluster/install.sh $(VENV) -e '.[dev]'
	touch $@

# Every package pinned, for any platform, from pyproject.toml.
constraints: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --no-annotate --no-emit-index-url \
		--no-emit-find-links --python-version 3.11 --custom-compile-command 'make constraints' -o constraints.txt

clean:
	rm -rf $(VENV) work build *.egg-info
