# make setup | cuda | demo | test | bench | flux-build | gpu-check | lint | fmt | clean
#
# Everything happens in .venv with the versions of constraints.txt. The packages are used from the source folders:
# build/dev/svdqc is a tree of symbolic links that gives them their installed names (svdqc.compiler, svdqc.runtime, ...),
# and a .pth file puts it on the path. An edited or added file is therefore what the next command uses. scikit-build-core's
# own editable mode does not do: it takes a copy of svdqc/__init__.py (a folder of another name cannot be mapped), and its
# library lies where the package, which is read from the sources, does not look. tests/test_wheel.py builds the real wheel.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
JOBS   ?= 2
EXTRAS := compile diffusers dev
DEV    := build/dev/svdqc
STAMP  := $(VENV)/.svdqc-setup

NATIVE_SOURCES := $(wildcard runtime/CMakeLists.txt runtime/src/* runtime/include/*)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONNOUSERSITE := 1

.PHONY: setup cuda demo test bench flux-build gpu-check lint fmt clean
.DELETE_ON_ERROR:

setup: $(STAMP) build/runtime/.built

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "svdqc needs Python 3.11 or newer; found '$$($(PYTHON) --version 2>&1)'. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "could not create $(VENV): install Python's venv module (Debian: apt install python3-venv)" >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt Makefile | $(PY)
	@mkdir -p build
	@$(PY) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  extras = p["optional-dependencies"]; \
	  print(*p["dependencies"], *(r for e in "$(EXTRAS)".split() for r in extras[e]), sep="\n")' > build/requirements.txt
	$(PY) -m pip install --quiet -c constraints.txt -r build/requirements.txt
	@# Headers alone, for tests/cuda/test_cutlass.py, which is skipped without them.
	@$(PY) -m pip install --quiet --no-deps -c constraints.txt nvidia-cutlass || \
	  echo "nvidia-cutlass could not be installed: its layouts will not be compared with ours" >&2
	@mkdir -p $(DEV)
	@ln -sfn ../../../runtime/python/__init__.py $(DEV)/__init__.py
	@ln -sfn ../../../runtime/python/errors.py $(DEV)/errors.py
	@ln -sfn ../../../runtime/python/runtime $(DEV)/runtime
	@ln -sfn ../../../runtime/include $(DEV)/include
	@for name in compiler frontends templates; do ln -sfn ../../../$$name $(DEV)/$$name; done
	@$(PY) -c 'import pathlib, sysconfig; \
	  site = pathlib.Path(sysconfig.get_path("purelib"), "svdqc-dev.pth"); \
	  site.write_text(str(pathlib.Path("build/dev").resolve()) + "\n"); \
	  tool = pathlib.Path("$(VENV)/bin/svdqc"); \
	  python = pathlib.Path("$(PY)").absolute(); \
	  tool.write_text("#!%s\nfrom svdqc.compiler.cli import main\n\nmain()\n" % python); tool.chmod(0o755)'
	@touch $@

# In a source tree svdqc.runtime finds its library here; in a wheel, beside itself.
build/runtime/.built: $(NATIVE_SOURCES) | $(STAMP)
	@mkdir -p build
	@export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; \
	  { cmake -S runtime -B build/runtime -G Ninja -DCMAKE_BUILD_TYPE=Release \
	    && cmake --build build/runtime --parallel $(JOBS); } > build/runtime.log 2>&1 \
	  || { tail -30 build/runtime.log >&2; echo "building the runtime failed; the whole log: build/runtime.log" >&2; exit 1; }
	@touch $@

# The CUDA toolchain from pip, for machines without one of their own. Of nvidia-cutlass only the headers are used, so
# nothing that these packages ask for is installed.
cuda: setup
	@$(PY) -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cuda"], sep="\n")' > build/requirements-cuda.txt
	$(PY) -m pip install --quiet --no-deps -c constraints.txt -r build/requirements-cuda.txt
	$(PY) -m svdqc.compiler.cli doctor

demo: setup
	$(PY) examples/emoji/demo.py

test: setup
	$(PY) -m pytest -n $(JOBS) --dist loadgroup

bench: setup
	$(PY) tests/bench/run.py

flux-build: setup
	$(PY) tests/bench/flux_build.py --jobs $(JOBS)

gpu-check: setup
	$(PY) tests/gpu/check.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p svdqc
	git ls-files -co --exclude-standard -- '*.c' '*.cpp' '*.h' | xargs -r $(VENV)/bin/clang-format --dry-run --Werror

fmt: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	git ls-files -co --exclude-standard -- '*.c' '*.cpp' '*.h' | xargs -r $(VENV)/bin/clang-format -i

clean:
	rm -rf build out dist .pytest_cache .mypy_cache .ruff_cache
