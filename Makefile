# Every target sets up what it needs; `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/ebm-plugin-*))
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: install demo test lint docs bench studies gpu wheels clean

install: $(VENV)/.installed

# The build backend comes first and pinned, so that nothing is built with an unpinned one. PyTorch Lightning, which one test uses, is in
# a folder of its own: it needs torchmetrics, and where that is installed Lightning Fabric imports it, with SciPy, in every process.
$(VENV)/.installed: pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		-e ".[train,dev,docs]" $(PLUGINS:%=-e %)
	rm -rf $(VENV)/lightning
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $(VENV)/lightning \
		pytorch-lightning torchmetrics tqdm
	touch $@

demo: install
	rm -rf runs/demo runs/demo-cd
	$(ONE_THREAD) $(BIN)/python examples/demo.py

# The kernel's tests, then each plugin's, conformance kit included, alone in an environment that holds what the plugin declares.
# One part: .venv/bin/python tools/run_tests.py ebm-plugin-pcd.
test: install
	$(ONE_THREAD) $(BIN)/python tools/run_tests.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(ONE_THREAD) $(BIN)/sphinx-build -b html -W --keep-going -q docs docs/_build/html

# Beside other libraries, in an environment of their own; QUICK=1 leaves them out. The C library gives freed pages back to the system
# and takes them again in every step, which costs convolutions 1.2 to 1.9 times the time: it is told not to, for every system alike.
# Compiled code is compiled, not found on disk, so that the first calls cost what they do the first time.
BENCH := $(if $(QUICK),$(VENV),.venv-bench)
STEADY := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 TORCHINDUCTOR_FORCE_DISABLE_CACHES=1

bench: $(BENCH)/.installed
	$(STEADY) $(ONE_THREAD) $(BENCH)/bin/python benchmarks/run.py $(if $(QUICK),--quick)
ifndef QUICK
	$(STEADY) OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 $(BENCH)/bin/python benchmarks/run.py --threads 2
	$(BENCH)/bin/python benchmarks/report.py
endif
	$(BENCH)/bin/python benchmarks/startup.py $(if $(QUICK),--quick)

.venv-bench/.installed: pyproject.toml constraints.txt benchmarks/constraints.txt $(PLUGINS:%=%/pyproject.toml)
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c benchmarks/constraints.txt \
		--no-build-isolation -e ".[train]" $(PLUGINS:%=-e %) torchebm ebmkit rbms learnergy scikit-learn blackjax "jax[cpu]"
	touch $@

studies: install
	$(ONE_THREAD) $(BIN)/python studies/run.py $(if $(DATA),--data $(DATA))

# The check of an accelerator, at most five minutes; without one it runs on the CPU. docs/gpu.md shows its table.
gpu: install
	$(ONE_THREAD) $(BIN)/python -m ebmcore.testing.gpu

wheels: install
	$(BIN)/python tools/wheels.py dist

clean:
	rm -rf $(VENV) .venv-bench .venv-plugins dist runs docs/_build docs/gallery
