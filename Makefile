# Two commands do everything on a fresh machine with Python 3.10 or newer:
#   make demo    installs what the demo needs and runs it
#   make test    installs everything and runs every check
# The others work inside the environment that `make test` made.

PYTHON ?= python3
TEST_ENV := .venv-test
# Has the files of onnxruntime under the same names, so it lies beside the environment.
ORT_GPU := $(TEST_ENV)/onnxruntime-gpu
DEMO_ENV := .venv-demo
TRITON_ENV := .venv-triton
OUT ?= out/demo
WORKERS ?= 2
SEED ?= 1
# A file's tests share what they export, so they stay in one process. One thread each for
# PyTorch: the processes share the cores. A process that dies ends the run: with
# --dist loadfile, pytest-xdist otherwise waits forever for the tests that it had left.
PYTEST = OMP_NUM_THREADS=1 SIGCAM_TEST_ORT_GPU=$(ORT_GPU) $(TEST_ENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --max-worker-restart=0 --durations=25 --durations-min=5
PARTS := core images kernels hub runtime serve repositories classifier data train export convert evaluate api demo

.PHONY: demo test quick check lint types unit fuzz triton budget docs docs-check format bench clean

demo: $(DEMO_ENV)/.installed
	@echo "== demo: images through EfficientNet-Lite0 with its sigmoid branch"
	$(DEMO_ENV)/bin/sigcam demo --out $(OUT)

test: $(TEST_ENV)/.installed check
	@echo "== all checks passed"

# One word for everything that must hold before a commit.
check: lint types unit budget

# What answers in minutes: without the tests that export or trace a whole network.
quick: $(TEST_ENV)/.installed lint types
	@echo "== tests: those that export no whole network"
	$(PYTEST) -m "not slow"

lint:
	@echo "== lint: ruff"
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .

types:
	@echo "== types: mypy, strict, across all parts"
	$(TEST_ENV)/bin/mypy -p sigcam

unit:
	@echo "== tests: pytest"
	$(PYTEST)

# Damaged files, killed commands, full disks, many threads; `make unit` has a short part of it.
# ONLY="images kills" takes some of the parts, COUNT another number of items for each of them,
# RECORD=1 writes the counts and the table in docs/reliability.md. docs/reliability.md has more.
fuzz: $(TEST_ENV)/.installed
	OMP_NUM_THREADS=1 $(TEST_ENV)/bin/python -m tests.robustness $(ONLY) --seed $(SEED) \
	    --workers $(WORKERS) $(if $(COUNT),--count $(COUNT)) $(if $(RECORD),--record)

# The same requests to `sigcam serve` and to Triton, which the package nvidia-pytriton brings. Its
# Python backend knows NumPy 1 only, below which our requirements end, so they aren't looked at.
triton: $(TEST_ENV)/.installed $(TRITON_ENV)/.installed
	SIGCAM_TEST_TRITON=$(CURDIR)/$(TRITON_ENV)/bin/python OMP_NUM_THREADS=1 \
	    $(TEST_ENV)/bin/python -m pytest -q tests/serve/test_against_triton.py

budget:
	@echo "== budget guard: what a map may cost"
	$(TEST_ENV)/bin/python benchmarks/budget.py

# The commands on the pages: what they print is written there, or compared with it. The second
# page needs the images of ../shared/data.
docs:
	$(TEST_ENV)/bin/python docs/console.py --write

docs-check:
	$(TEST_ENV)/bin/python docs/console.py --check

format:
	$(TEST_ENV)/bin/ruff check --fix .
	$(TEST_ENV)/bin/ruff format .

bench:
	$(TEST_ENV)/bin/python -m benchmarks.run

# The demo environment holds a plain install; it is made anew when the sources change.
SOURCES := pyproject.toml $(shell find $(PARTS) -name '*.py' -o -name '*.html' -o -name '*.css' -o -name '*.js' -o -name '*.safetensors' 2>/dev/null)

$(DEMO_ENV)/.installed: $(SOURCES)
	@echo "== making $(DEMO_ENV) (downloads PyTorch on the first run)"
	test -x $(DEMO_ENV)/bin/python || $(PYTHON) -m venv $(DEMO_ENV)
	rm -rf build/lib build/bdist.*  # a module that was removed would come along
	$(DEMO_ENV)/bin/python -m pip install --quiet --upgrade ".[demo]"
	@touch $@

$(TRITON_ENV)/.installed: $(SOURCES)
	@echo "== making $(TRITON_ENV)"
	test -x $(TRITON_ENV)/bin/python || $(PYTHON) -m venv $(TRITON_ENV)
	$(TRITON_ENV)/bin/python -m pip install --quiet nvidia-pytriton "numpy<2" click tqdm
	$(TRITON_ENV)/bin/python -m pip install --quiet --no-deps --force-reinstall \
	    opencv-python-headless onnxruntime simplejpeg flatbuffers .
	@touch $@

# Editable, strict: the installed package is a tree of links into the folders, which
# lets mypy and pytest see the parts under their import names. New files need a new tree.
FOLDERS := $(sort $(dir $(shell find $(PARTS) -name '*.py' 2>/dev/null)))

$(TEST_ENV)/.installed: pyproject.toml $(FOLDERS)
	@echo "== making $(TEST_ENV) (downloads PyTorch on the first run)"
	test -x $(TEST_ENV)/bin/python || $(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python -m pip install --quiet --upgrade --editable ".[dev]" --config-settings editable_mode=strict
	$(TEST_ENV)/bin/python -c "import pathlib, site; pathlib.Path(site.getsitepackages()[0], 'checkout.pth').write_text('$(CURDIR)\n')"  # for benchmarks and tests.support
	rm -rf $(ORT_GPU)  # pip leaves what is in a folder
	$(TEST_ENV)/bin/python -m pip install --quiet --no-deps --target $(ORT_GPU) "onnxruntime-gpu>=1.31"
	@touch $@

clean:
	rm -rf $(TEST_ENV) $(DEMO_ENV) $(TRITON_ENV) .venv-serving build out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
