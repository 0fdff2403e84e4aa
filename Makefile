# Two commands do all the set-up on a fresh machine: `make run` and `make test`.
UV_VERSION := 0.13.9
PYTHON ?= python3
UV := .tools/bin/uv
export UV_PYTHON_DOWNLOADS := never

.PHONY: setup run test lint clean

setup: .venv/.ready

$(UV):
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet uv==$(UV_VERSION)

.venv/.ready: $(UV) pyproject.toml uv.lock
	@$(UV) sync --frozen --quiet
	@touch $@
