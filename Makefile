# make setup: .venv with the pinned packages. make demo: audio to accuracy. make test: the tests.
# make bench: measured against the published way of it.
PYTHON_IN_VENV := .venv/bin/python

.PHONY: setup demo test bench lint

setup: .venv/.ready

.venv/.ready: setup.sh requirements.txt requirements-fairseq.txt requirements-dev.txt
	./setup.sh
	@touch $@

demo: setup
	$(PYTHON_IN_VENV) demo/run.py

test: setup
	$(PYTHON_IN_VENV) -m pytest -n auto --dist loadfile

bench: setup
	$(PYTHON_IN_VENV) -m tests.benchmarks

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
