# make setup: create .venv with the pinned packages. make try: answer a recording. make demo: audio to accuracy. make test: run the tests.
# make bench: measure this code against the published way. make lock: rewrite locks/ after a pin in requirements*.txt has changed.
PYTHON_IN_VENV := .venv/bin/python

.PHONY: setup try demo test bench lint lock

setup: .venv/.ready
	@if [ -n "$${PYTHON-}" ] && [ "$$(cat .venv/.python)" != "$$(command -v "$$PYTHON")" ]; then \
		echo "error: .venv was made with $$(cat .venv/.python), not $$PYTHON; rm -r .venv, then make setup" >&2; exit 2; fi

.venv/.ready: setup.sh $(wildcard locks/*.txt)
	./setup.sh
	@touch $@

try: setup
	$(PYTHON_IN_VENV) ulm_prompt/predict.py --segments demo/try.opus --format table
	@echo "expected: yes, left, stop, _unknown_ (forward), up, go, by a speaker who is not in the training data"

demo: setup
	$(PYTHON_IN_VENV) demo/run.py

test: setup
	$(PYTHON_IN_VENV) -m pytest -n auto --dist loadfile

bench: setup
	$(PYTHON_IN_VENV) -m tests.benchmarks

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock:
	python3 locks/lock.py
