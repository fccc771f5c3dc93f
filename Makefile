# Every target sets up what it needs; `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/ebm-plugin-*))
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: install demo test lint docs bench studies wheels clean

install: $(VENV)/.installed

# The build backend comes first and pinned, so that nothing is built with an unpinned one.
$(VENV)/.installed: pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		-e ".[train,dev,docs]" $(PLUGINS:%=-e %)
	touch $@

demo: install
	rm -rf runs/demo runs/demo-cd runs/demo-0.5 runs/demo-cd-0.5
	$(ONE_THREAD) $(BIN)/python examples/demo.py

# The kernel's tests, among them each plugin's alone in an environment of its own, conformance kit included; then each plugin's
# once more beside all others, in a process of its own, without the kit.
test: install
	$(ONE_THREAD) $(BIN)/python -m pytest
	set -e; for plugin in $(PLUGINS); do echo "$$plugin"; (cd $$plugin && $(ONE_THREAD) ../../$(BIN)/python -m pytest -k "not conformance"); done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(ONE_THREAD) $(BIN)/sphinx-build -b html -W --keep-going -q docs docs/_build/html

bench: install
	$(ONE_THREAD) $(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/listing.py

studies: install
	$(ONE_THREAD) $(BIN)/python studies/run.py $(if $(DATA),--data $(DATA))

wheels: install
	set -e; for source in . $(PLUGINS); do $(BIN)/python -m build --wheel --no-isolation --outdir dist $$source; done

clean:
	rm -rf $(VENV) dist runs docs/_build docs/gallery
