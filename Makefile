# Everything starts here: `make` lists the targets. GNU make 4.2 or newer and Python 3.9 or newer
# are all that `make run` and `make test` need; the rest is installed into .venv.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
# Tests beside each other, for many of them wait; those of one file stay together. WORKERS=0: none.
# In the order of the files: by number of tests, xdist's own, those that take longest come last.
WORKERS ?= 4
beside   = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
EXTRAS ?= dev
# More for pip to install than pyproject.toml asks for; test-lowest pins the dependencies with it.
PINS   ?=

PY      := $(VENV)/bin/python
RUNTIME := $(VENV)/.installed-runtime
DEV     := $(VENV)/.installed-dev
QUIETLY  = --quiet --disable-pip-version-check --no-input
PIP      = $(PY) -m pip $(QUIETLY)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

.PHONY: help
help: ## list the targets
	@echo 'usage: make TARGET [ARGS="..."] [PYTHON=python3.13]'
	@echo
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	    | awk -F'|' '{ printf "  %-13s %s\n", $$1, $$2 }'

# --- the virtual environment -------------------------------------------------------------------
#
# Each make asks the interpreter in there (20 ms) whether it works and has its packages: not so
# when the making was interrupted, or when the system's Python was replaced by another.
whole := $(shell $(PY) -c 'import pip' 2>/dev/null && echo yes)

define no_venv_message
$(PYTHON) cannot make virtual environments: apt install python3-venv \
(Debian, Ubuntu) or dnf install python3 python3-pip (Rocky, RHEL, Fedora)
endef

define old_python_message
ollama-metrics needs Python 3.9 or newer and $(PYTHON) is %s: \
make PYTHON=python3.11, after dnf install python3.11 (Rocky 8) or the like
endef

define make_venv
	@command -v $(PYTHON) >/dev/null \
	    || { echo 'error: $(PYTHON) is not there: install it, or make PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 9) and sys.exit( \
	    "error: $(strip $(old_python_message))" % ".".join(map(str, v[:3])))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	    || { echo 'error: $(strip $(no_venv_message))' >&2; exit 1; }
	@echo 'making $(VENV) with $(PYTHON)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
endef

# Uncompiled, the package costs a megabyte for as long as it runs and pynvml many.
define compile
	@$(PY) -m compileall -q ollama_metrics
endef

.PHONY: new-venv
new-venv:
	$(make_venv)

# Debian 11 has a pip that is too old to install a project without setup.py in place (before 21.3).
define mend_pip
	@$(PY) -c 'import pip, sys; sys.exit(int(pip.__version__.split(".")[0]) < 22)' \
	    || $(PIP) install --upgrade pip
endef

$(RUNTIME): pyproject.toml $(if $(whole),,new-venv)
	$(mend_pip)
	@echo 'installing ollama-metrics and what it needs to run into $(VENV)'
	@$(PIP) install --editable . $(PINS)
	$(compile)
	@touch $@

$(DEV): pyproject.toml $(if $(whole),,new-venv)
	$(mend_pip)
	@echo 'installing ollama-metrics and its development tools into $(VENV)'
	@$(PIP) install --editable '.[$(EXTRAS)]' $(PINS)
	$(compile)
	@touch $(RUNTIME) $@

# --- use ---------------------------------------------------------------------------------------

.PHONY: run
run: $(RUNTIME) ## serve this host's metrics; ARGS="--listen 127.0.0.1:9000" goes to `serve`
	@listen=$${OLLAMA_METRICS_LISTEN:-0.0.0.0:11435}; \
	set -- $(ARGS); \
	while [ $$# -gt 0 ]; do \
	    case $$1 in --listen) listen=$${2:-} ;; --listen=*) listen=$${1#*=} ;; esac; shift; \
	done; \
	listen=$${listen%%[, ]*}; host=$${listen%:*}; port=$${listen##*:}; \
	case $$host in 0.0.0.0 | '[::]' | '') host=localhost ;; esac; \
	case $$port in 0) echo 'port 0: the log names the port' ;; *) \
	    echo "metrics at http://$$host:$$port/metrics (Ctrl-C ends); from another terminal:"; \
	    echo "    curl -s http://$$host:$$port/metrics" ;; \
	esac
	@exec $(PY) -m ollama_metrics serve $(ARGS)

.PHONY: demo
demo: $(DEV) ## a fleet on this machine, without a GPU, to look at and to break; ARGS="--hosts 5"
	@exec $(PY) -m benchmarks.demo $(ARGS)

URL   ?= http://127.0.0.1:11434
USERS ?= 174

.PHONY: load
load: $(DEV) ## users on an Ollama or its front: URL=http://balancer:11434 USERS=174 ARGS="--duration 60"
	@$(PY) -m benchmarks.load $(URL) --users $(USERS) $(ARGS)

# --- checks ------------------------------------------------------------------------------------

.PHONY: test
test: $(DEV) ## run the tests; those whose components are not here are skipped; ARGS="-k host"
	@$(PY) -m pytest -m "not booted and not deploy" $(beside) $(ARGS)

.PHONY: test-deploy
test-deploy: $(DEV) ## test the live page, the demo, the load tester and deploy/ with real programs
	@$(PY) -m pytest -m deploy $(beside) $(ARGS)

.PHONY: test-booted
test-booted: $(DEV) ## install this checkout under a real systemd and test the service (root)
	@$(PY) -m pytest -m booted $(ARGS)

.PHONY: test-lowest
test-lowest: ## run the tests with the oldest psutil and nvidia-ml-py that pyproject.toml allows
	@$(MAKE) test VENV=.venv-lowest PINS="$(lowest)"

lowest = $(shell sed -n '/^dependencies = \[/,/^]/ s/^ *"\(.*\)>=\(.*\)",.*/\1==\2/p' pyproject.toml)

.PHONY: test-all
test-all: ## run the tests on the oldest and newest Python (root), or PYTHONS="python3.9 python3.13"
ifdef PYTHONS
	@for python in $(PYTHONS); do \
	    version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1; \
	    echo "== Python $$version =="; \
	    $(MAKE) test PYTHON="$$python" VENV=".venv-$$version" || exit 1; \
	done
else
	@tests/roots/run
endif

.PHONY: lint
lint: $(DEV) ## ruff, mypy --strict and shellcheck
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy --strict ollama_metrics
	@$(if $(also_typed),$(PY) -m mypy $(also_typed))
	@$(VENV)/bin/shellcheck install.sh deploy/compose/ollama-serve.sh

# Not the package, but relied upon like it: the measurements and the stand-in for NVML.
also_typed = $(wildcard benchmarks tests/standin deploy/grafana/generator)

.PHONY: format
format: $(DEV) ## put the code into shape
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

# --- what is written by programs ---------------------------------------------------------------

# What is measured is the package as it is installed for good: compiled, in an environment of its own.
.PHONY: bench
bench: $(DEV) ## measure against the peers and write docs/PERFORMANCE.md (minutes)
	@mkdir -p docs
	@[ -x .venv-bench/bin/python ] || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip $(QUIETLY) install --force-reinstall --no-deps .
	@.venv-bench/bin/python -m pip $(QUIETLY) install . prometheus_client
	@.venv-bench/bin/python -m benchmarks --write docs/PERFORMANCE.md $(ARGS)

.PHONY: simulate
simulate: $(DEV) ## simulate balancers before Ollama hosts and write docs/ROUTING.md (minutes)
	@$(PY) -m benchmarks.routing --write docs/ROUTING.md $(ARGS)

.PHONY: docs
docs: $(DEV) ## write docs/METRICS.md and docs/CONFIGURATION.md anew from the code
	@mkdir -p docs
	@for page in metrics configuration; do \
	    file=docs/$$(echo $$page | tr a-z A-Z).md; \
	    $(PY) -m ollama_metrics.reference $$page > $$file.new && mv $$file.new $$file || exit 1; \
	done

.PHONY: dashboards
dashboards: $(DEV) ## write the dashboards and what deploy/kubernetes has of them and of the rules anew
	@$(PY) deploy/grafana/generator/generate.py
	@$(PY) deploy/kubernetes/generate.py

.PHONY: screenshots
screenshots: $(DEV) ## take docs/images anew (gcc, chromium; two and a half minutes)
	@$(PIP) install playwright pillow
	@$(PY) tests/screenshots.py

.PHONY: dist
dist: $(DEV) ## build the sdist and the wheel into dist/
	@$(PIP) install build
	@rm -rf dist
	@$(PY) -m build --outdir dist . >/dev/null
	@ls dist/*

WHEELHOUSE ?= wheelhouse
# What the hosts are, whatever this machine is. One wheel of psutil serves every Python from 3.6 on.
PLATFORMS  ?= manylinux2014_x86_64 manylinux2014_aarch64

# From a copy, for building leaves files where it is done.
.PHONY: wheelhouse
wheelhouse: ## fill wheelhouse/ for `install.sh --wheelhouse` on hosts without a network
	@$(PYTHON) -m venv $(WHEELHOUSE)/.build
	@rm -f $(WHEELHOUSE)/*.whl
	@mkdir $(WHEELHOUSE)/.build/source
	@cp -R pyproject.toml README.md LICENSE ollama_metrics $(WHEELHOUSE)/.build/source
	@$(WHEELHOUSE)/.build/bin/python -m pip $(QUIETLY) wheel --no-deps --wheel-dir $(WHEELHOUSE) \
	    $(WHEELHOUSE)/.build/source
	@for platform in $(PLATFORMS); do \
	    $(WHEELHOUSE)/.build/bin/python -m pip $(QUIETLY) download --only-binary=:all: \
	        --python-version 3.9 --platform $$platform --dest $(WHEELHOUSE) \
	        $(WHEELHOUSE)/ollama_metrics-*.whl || exit 1; \
	done
	@rm -rf $(WHEELHOUSE)/.build
	@ls $(WHEELHOUSE)

.PHONY: clean
clean: ## remove what was built, but not .roots, which takes minutes to make
	@rm -rf .venv .venv-* wheelhouse build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find ollama_metrics tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || :
