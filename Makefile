# Every target sets itself up in .venv; all it needs is Python >= 3.11, git and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Six real patch pairs come in a package whose own dependencies are not needed; pip complains about their absence
# whenever it installs something beside it, so it comes last.
IMAGERY := echo "-- fetching six Sentinel-1 and Sentinel-2 patch pairs" && $(PIP) --no-deps bigearthnet-common==2.8.0
NO_IMAGERY := $(BIN)/python -m pip uninstall -qq --yes bigearthnet-common 2>/dev/null || true
WEIGHTS ?=
DEMO_OUT ?= demo
CODE := src tests docs benchmarks hubconf.py

.PHONY: demo test test-slow check format docs nano bench clean

.venv/bin/python:
	@echo "-- making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	@if [ .venv/.dev -nt pyproject.toml ]; then touch $@; else \
	echo "-- installing anysat with its geo extra (about 2 minutes the first time)" && \
	$(PIP) -e '.[geo]' && $(IMAGERY) && touch $@; fi

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "-- installing anysat with everything its tests need (about 3 minutes the first time)"
	@$(NO_IMAGERY)
	@$(PIP) -e '.[geo,train,dev]'
	@$(IMAGERY)
	@touch $@

demo: .venv/.demo  ## embed real Sentinel-1 + Sentinel-2 patches and write one HTML page
	@echo "-- embedding"
	@$(BIN)/anysat demo --out "$(DEMO_OUT)" $(if $(WEIGHTS),--weights "$(WEIGHTS)")

test: .venv/.dev  ## the whole suite
	@echo "-- testing"
	@$(BIN)/python -m pytest -n 2

test-slow: .venv/.dev  ## what takes too long for the suite
	@echo "-- testing what is slow"
	@$(BIN)/python -m pytest -m slow

format: .venv/.dev
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

check: .venv/.dev  ## everything that must pass before a commit
	@$(MAKE) --no-print-directory check-static
	@$(MAKE) --no-print-directory test docs

check-static: .venv/.dev
	@echo "-- format, lint, types, layers"
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
	@$(BIN)/lint-imports

nano: .venv/.dev  ## make the model that ships again, about an hour
	@$(BIN)/anysat pretrain --preset nano --out runs/nano --resume
	@$(BIN)/python benchmarks/pretraining_nano.py runs/nano

bench: .venv/.dev  ## seconds, memory and error of the encoder, on a machine that does nothing else, about 30 minutes
	@$(BIN)/python benchmarks/speed.py run --json docs/experiments/speed.json
	@$(BIN)/python benchmarks/speed.py growth
	@$(BIN)/python benchmarks/speed_step.py run --json docs/experiments/speed-step.json
	@$(BIN)/python benchmarks/speed_update.py run --json docs/experiments/speed-update.json

docs: .venv/.dev  ## the documentation, strict
	@echo "-- documentation"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf .venv site dist
