# On a fresh machine with Python 3.11, make and git: `make demo` draws, `make test` proves.
PYTHON ?= python3
VENV := .venv
DEADIFF := $(VENV)/bin/deadiff
STAMP := $(VENV)/.installed

.PHONY: demo test check clean

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

clean:
	rm -rf $(VENV) out
