# `make run` and `make test` do all the set-up on a fresh machine.
UV_VERSION := 0.13.9
PYTHON ?= python3
UV := .tools/bin/uv
export UV_PYTHON_DOWNLOADS := never
# processes keep their compiled modules; without them each start takes twice the CPU time
unexport PYTHONDONTWRITEBYTECODE

# make run                              the simulated network
# make run RELAY=https://… [LABELER=https://…] [PLC=https://…] [ARGS="--workers 2"]
RELAY ?=
LABELER ?=
PLC ?=
ARGS ?=

.PHONY: setup compiled tools java run appview docs test coverage test-long chaos fuzz soak lint bench scale-test image-test clean

setup: .venv/.ready compiled

# `$(call step,TEXT,COMMAND)` says what it does, and how long it took
step = printf 'sluice: %s …\n' "$(1)" >&2; begun=$$(date +%s); { $(2); } && printf 'sluice: … %s s\n' $$(($$(date +%s) - begun)) >&2

$(UV):
	@$(call step,installing uv into .tools,$(PYTHON) -m venv .tools && .tools/bin/pip install --quiet uv==$(UV_VERSION))

# uv shows its progress on a terminal only
.venv/.ready: $(UV) pyproject.toml uv.lock
	@$(call step,installing Python packages into .venv,if [ -t 2 ]; then $(UV) sync --frozen; else $(UV) sync --frozen --quiet; fi)
	@touch $@

# protocol/ by mypyc, if its sources or mypy have changed; without a C compiler it runs as Python
compiled: .venv/.ready
	@.venv/bin/python -m tools.compile_protocol || true

# before anything is installed: what the embedded broker needs and nothing here can install
java:
	@case '$(ARGS)'"$${SLUICE_KAFKA_BOOTSTRAP:+--bootstrap}" in *--bootstrap*) exit 0;; esac; missing=; \
	  [ -x "$${JAVA_HOME:-/none}/bin/java" ] || command -v java >/dev/null || missing=" java"; \
	  ls -d .sluice/kafka-* >/dev/null 2>&1 || command -v mvn >/dev/null || missing="$$missing mvn"; \
	  [ -z "$$missing" ] || { echo "sluice: not found on the PATH:$$missing; install a Java 17+ runtime and Maven," \
	    'or give a broker: make run ARGS="--bootstrap HOST:PORT"' >&2; exit 2; }

# exec, so that sluice receives Ctrl-C and SIGTERM, and its exit code becomes the recipe's
run: java setup
	@exec .venv/bin/sluice up $(if $(RELAY),$(foreach url,$(RELAY),--relay $(url)),--simulate) \
	  $(foreach url,$(LABELER),--labeler $(url)) $(if $(PLC),--plc $(PLC)) $(ARGS)

# make appview [PORT=2584] [DATA_DIR=.sluice]     the official AppView over a mirror that runs with SLUICE_APPVIEW=true
# npm asks nothing and runs no scripts; it also brings the Node.js that the package needs. Handles are resolved as the mirror does it.
PORT ?= 2584
DATA_DIR ?= $(or $(SLUICE_DATA_DIR),.sluice)
APPVIEW_MODULES := deploy/appview/node_modules

appview: $(APPVIEW_MODULES)/.package-lock.json
	@node=$$(ls $(APPVIEW_MODULES)/node-linux-*/bin/node 2>/dev/null | head -n 1); \
	  exec "$${node:-node}" deploy/appview/appview.mjs --data-dir $(DATA_DIR) --port $(PORT)

$(APPVIEW_MODULES)/.package-lock.json: deploy/appview/package.json
	@command -v npm >/dev/null || { echo "sluice: npm is not on the PATH; install Node.js, whose npm installs the AppView" >&2; exit 2; }
	@$(call step,installing the AppView's packages into $(APPVIEW_MODULES),cd deploy/appview && npm install --yes --no-audit --no-fund \
	  --no-package-lock --ignore-scripts --loglevel error >&2)
	@touch $@

# the documents as a site in .sluice/site; needs npm once, for mermaid, which draws the pictures
MERMAID_VERSION := 11.17.2
MERMAID := .sluice/docs/mermaid-$(MERMAID_VERSION)

docs: .venv/.ready $(MERMAID)
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	@echo "sluice: the documents are in .sluice/site/index.html"

$(MERMAID):
	@mkdir -p .sluice/docs
	@$(call step,downloading mermaid $(MERMAID_VERSION),cd .sluice/docs && npm pack --silent mermaid@$(MERMAID_VERSION) >/dev/null && \
	  tar -xzf mermaid-$(MERMAID_VERSION).tgz package/dist/mermaid.min.js && rm mermaid-$(MERMAID_VERSION).tgz)
	@touch $@

# promtool and prometheus for tests of alert rules, chromium for the status page, kcat and Go for docs/consuming.md; installed if root on
# Debian
tools:
	@missing=""; command -v promtool >/dev/null && command -v prometheus >/dev/null || missing=prometheus; \
	  command -v chromium >/dev/null || missing="$$missing chromium"; command -v kcat >/dev/null || missing="$$missing kcat"; \
	  command -v go >/dev/null || missing="$$missing golang-go"; [ -z "$$missing" ] || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  echo "sluice: installing Debian packages: $$missing" >&2 && { apt-get update -qq; apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }; } || \
	  echo "missing, and cannot be installed here: Debian's packages $$missing" >&2

# Three files at a time, since every test waits for something, and in the order of tests/conftest.py: short ones between the long.
# The official servers' packages are installed in the background; tests that need them wait for that.
AT_ONCE ?= 3
PYTEST_AT_ONCE := .venv/bin/pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder
OFFICIAL := nice .venv/bin/python -m tests.support.official.appview_servers >/dev/null 2>&1

test: setup tools
	@.venv/bin/python -m tests.support.broker_archive
	@$(OFFICIAL) & $(PYTEST_AT_ONCE)

# the same tests with all sweeps at full size: schedules, mutants, chaos, soak, fuzzing, PostgreSQL releases (an hour);
# at the end, by themselves, those that measure time
test-long: export TEST_SIZE := long
test-long: setup tools
	@$(OFFICIAL) & $(PYTEST_AT_ONCE) -m "not alone"; most=$$?; .venv/bin/pytest -m alone && exit $$most

# lines and branches that the tests reach, per module, in Python; whole systems are left out
coverage: export SLUICE_PURE := 1
coverage: setup tools
	@$(PYTEST_AT_ONCE) -m "not acceptance" --cov --cov-report=term --cov-report=html:.coverage_html; \
	  echo "by line: .coverage_html/index.html"

# make chaos [SEED=7] [MINUTES=10]     random faults everywhere; at the end the mirror is verified
SEED ?=
MINUTES ?= 10
# make soak [DAYS=60]     weeks of operation with accelerated clocks; nothing may grow without bound
DAYS ?= 60
soak: setup
	@SOAK_DAYS=$(DAYS) .venv/bin/pytest -rP tests/system/endurance/test_soak.py

chaos: setup
	@seed=$(or $(SEED),$$(date +%s)); echo "chaos: SEED=$$seed MINUTES=$(MINUTES)"; \
	  CHAOS_SEED=$$seed CHAOS_MINUTES=$(MINUTES) .venv/bin/pytest -rP tests/system/endurance/test_chaos.py

# make fuzz [MINUTES=10]     coverage-guided fuzzing of every parser of untrusted bytes; a failure prints its input
fuzz: setup
	@FUZZ_MINUTES=$(MINUTES) .venv/bin/pytest -rP -k finds_nothing tests/fuzz/test_guided.py

lint: setup
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

bench: setup
	@for name in index backfill firehose end_to_end; do .venv/bin/python -m bench.$$name || exit 1; done

# scales index and backfill from 1 to 4 processes and back under load, restarts and kills them: cost of each step, no loss
scale-test: setup
	@.venv/bin/python -m bench.scale

# builds the image without a container engine and runs every process in it; needs root, buildah and debootstrap
image-test: setup
	@deploy/image_acceptance.sh

# removes files created by `make setup` and the tools, but not the mirror's data in .sluice
clean:
	@rm -rf .venv .tools .compiled .coverage_html .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
