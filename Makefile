# make demo    two faces exchange expressions, the true answer beside them      (first time a few minutes, then seconds)
# make test    everything that must hold: lint, types, tests, notebooks
# make check   lint, types and the fast tests: about a minute
# make lab     JupyterLab, with notebook 00 open; more arguments: make lab ARGS="--no-browser --ip=0.0.0.0"
# make app     the expression mixer as a page of its own, in the browser
# make page    the mixer as a static web page, computed in the browser: build/page  (needs npm)
# make book    every notebook executed, as a web site: build/book/index.html      (about 20 minutes)
# make slides  every figure of the course as a PDF for lectures: build/book/slides.pdf  (executes the notebooks first)
# make lint    ruff and mypy alone
# make results measure the shipped weights: table and picture of the README, tables and figures in benchmarks/results
# make quick   from nothing to a network that is nearer to the truth than its input: 20 minutes on two cores, build/quick
# make film    a rendered person drives the still face of another: notebooks/figures/animate.gif
# make bench   how fast ours is beside four baselines, in a few minutes: build/bench.json
# make assignments               the course assignments for students, one zip each, in build/assignments
# make grade SUBMISSIONS=folder  grade what came back: <student>/<assignment>.ipynb or .zip -> build/grades
# make clean   forget .venv and build/, but not build/grades

PYTHON ?= python3
VENV   := .venv
DEMO   := $(VENV)/.demo
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin
GRADER := .venv-grading
SHELL  := /bin/bash
# What Jupyter writes about the Python that ran a notebook, beside outputs and counts, is no change for git.
STRIP  := $(BIN)/nbstripout --keep-id --extra-keys "$(addprefix metadata.language_info.,version mimetype file_extension codemirror_mode nbconvert_exporter pygments_lexer)"

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint lab app page book slides chromium results quick film bench assignments grade clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

setup: $(READY)

# A virtual environment with what the demo needs, pinned; made again only when the list of packages changes or Python has gone.
$(DEMO): pyproject.toml constraints.txt $(if $(shell $(BIN)/python -c 1 2>/dev/null && echo ok),,rebuild)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); 3.10 to 3.13 is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(BIN)/python -c 1 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages into $(VENV) (a minute or two on a fast line) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# ... and, for everything else, with the course and the tools. Git then sees notebooks without outputs (.gitattributes).
$(READY): $(DEMO)
	@echo "Installing the packages of the course and the tests ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[course,dev]"
	@git config filter.nbstripout.clean '$(STRIP)' 2>/dev/null || true
	@touch $@

# nbgrader adds panels to JupyterLab, so it lives in an environment of its own.
$(GRADER)/.ready: pyproject.toml constraints.txt $(if $(shell $(GRADER)/bin/python -c 1 2>/dev/null && echo ok),,rebuild)
	@$(GRADER)/bin/python -c 1 2>/dev/null || $(PYTHON) -m venv --clear $(GRADER)
	@echo "Installing nbgrader and the pinned packages into $(GRADER) ..."
	@$(GRADER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[course,assignments]"
	@touch $@

.PHONY: rebuild
rebuild:

demo: $(DEMO)
	@$(BIN)/expr-lib demo

lab: $(READY)
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. $(ARGS) notebooks/00_start_here.ipynb

app: $(READY)
	@$(BIN)/expr-lib app $(ARGS)

page: $(READY)
	@$(BIN)/expr-lib page -o build/page

book: $(READY)
	@$(BIN)/python notebooks/book.py build/book

slides: $(READY)
	@$(BIN)/python notebooks/slides.py build/book

# The widgets are tested in a real browser; where it is missing and cannot be installed, those tests are skipped and say so.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } >/dev/null 2>&1 || \
	  echo "No Chromium here, and it could not be installed: the widgets will not be tested in a browser." >&2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

FAST := environment ecosystem readme images losses model swap datasets head
check: lint
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -n 2 $(wildcard $(FAST:%=tests/test_%.py))

# One thread for each test process: two processes share two cores better than four threads do.
test:
	@$(MAKE) --no-print-directory -j 2 lint $(GRADER)/.ready chromium
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n 2 --durations=15

# Half of the bar of `gain`, 0.45, from an empty folder: render, train E and the AU branch, then the generator, measure.
quick: $(READY)
	$(BIN)/expr-lib faces build/quick/faces --n-subjects 300 --images-per-subject 20 --images-per-take 5
	$(BIN)/expr-lib train build/quick/faces --run build/quick/run --steps 3500 --warmup-steps 2000 --sample-every 250
	$(BIN)/python benchmarks/time_to_gain.py build/quick/run --out $(R)/quick-64.json

R := benchmarks/results
W := expr_lib/weights
results: $(READY)
	$(BIN)/expr-lib evaluate $(W)/swap-64.safetensors --label "drawn, unpaired (the paper)" --pairs 1000 -o $(R)/swap-64.json --figures $(R)/swap-64
	$(BIN)/expr-lib evaluate $(W)/moved-64.safetensors --label "moved, takes, E at 64 px" --pairs 1000 -o $(R)/moved-64.json --figures $(R)/moved-64
	$(BIN)/expr-lib evaluate --label "moved, takes" --pairs 100 --size 256 -o $(R)/moved-128-at-256.json
	$(BIN)/expr-lib evaluate --label "moved, takes" --pairs 1000 -o $(R)/moved-128.json --figures $(R)/moved-128 \
	  --beside $(R)/moved-128-at-256.json $(R)/moved-64.json $(R)/swap-64.json --readme README.md
	$(BIN)/expr-lib card $(R)/moved-128.json $(W)/moved-128.md --beside $(R)/moved-128-at-256.json $(R)/moved-64.json $(R)/scratch-64.json $(R)/swap-64.json
	$(BIN)/expr-lib card $(R)/moved-64.json $(W)/moved-64.md --beside $(R)/swap-64.json
	$(BIN)/expr-lib card $(R)/swap-64.json $(W)/swap-64.md
	$(BIN)/python benchmarks/limits.py
	@mkdir -p build && $(BIN)/papermill --cwd notebooks notebooks/00_start_here.ipynb build/00_start_here.ipynb
	@cp build/notebooks/00_start_here/swap.png notebooks/figures/swap.png

film: $(READY)
	$(BIN)/python tools/driving_film.py build/film
	$(BIN)/expr-lib animate build/film/still.png build/film/driving.mp4 --inputs -o notebooks/figures/animate.gif

bench: $(READY)
	@$(BIN)/python benchmarks/speed.py --short

assignments: $(GRADER)/.ready
	@$(GRADER)/bin/python assignments/grade.py release

grade: $(GRADER)/.ready
	@test -d "$(SUBMISSIONS)" || { echo "make grade SUBMISSIONS=folder: found no folder '$(SUBMISSIONS)'" >&2; exit 2; }
	@$(GRADER)/bin/python assignments/grade.py "$(SUBMISSIONS)"

clean:
	rm -rf $(VENV) $(GRADER)
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name grades -exec rm -rf {} +; fi
