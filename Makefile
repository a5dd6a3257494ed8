# Two commands: `make reproduce` runs the paper's experiments, `make test` runs every check. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: reproduce test docs audit clean
reproduce: $(VENV)/lab
	$(BIN)/dopaminergic reproduce

test: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -n 2 --dist worksteal
	$(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site

docs: $(VENV)/test
	$(BIN)/mkdocs serve

# Known vulnerabilities of the pinned packages; asks the Python advisory database, so it needs a network.
audit: $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/lab: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fast,lab]'
	touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fast,jax,lab,test,docs]'
	touch $@ $(VENV)/lab

clean:
	rm -rf $(VENV)
