# make setup: .venv with the pinned packages. make try: answers to a recording. make demo: audio to accuracy. make test: the tests.
# make bench: measured against the published way of it. make lock: locks/ anew, after a pin in requirements*.txt changed.
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
	@echo "expected: yes, left, stop, _unknown_ (forward), up, go, by a speaker whom the prompt never heard"

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
