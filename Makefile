# Two commands matter: `make book` and `make test`. Every target makes what it needs, the
# virtual environment included. Works with GNU make 3.81 (macOS) and later.

PYTHON ?= python3
JOBS   ?= 2

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready

# A notebook is executed once, into the copy of the tree from which the book is built.
SOURCE    := _build/source
INDEX     := _build/html/index.html
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
EXECUTED  := $(NOTEBOOKS:notebooks/%=$(SOURCE)/notebooks/%)
# No notebook uses the grader.
PACKAGE   := $(shell find segcourse -path segcourse/grading -prune -o \( -name '*.py' -o -name '*.json' \
                 -o -name '*.pt' -o -name '*.npz' \) -print)
# The reference shows its docstrings, though.
PAGES     := _config.yml _toc.yml CONTRIBUTING.md CHANGELOG.md $(wildcard segcourse/grading/*.py) \
                 $(shell find book -type f -not -path '*/__pycache__/*')

# Ids stay, or they would no longer be unique across the book.
STRIP := $(BIN)/nbstripout --keep-id --extra-keys 'metadata.language_info cell.metadata.execution'

# One thread for each process, so that JOBS processes share the cores without fighting over them.
export OMP_NUM_THREADS  := 1
export TQDM_DISABLE     := 1
export SEGCOURSE_PRESET := cpu
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help book test results results-check bench pictures lint format address clean executed
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

book: $(READY) ## execute the notebooks that changed, build the book
	@$(MAKE) -s --no-print-directory -j$(JOBS) executed
	@$(MAKE) -s --no-print-directory $(INDEX)
	@echo "Book ready: file://$(CURDIR)/$(INDEX)"

test: book ## build the book and run all tests
	@$(BIN)/pytest -n $(JOBS)

results: $(READY) ## run the experiments behind the recorded results (an hour or two)
	@$(BIN)/python -m segcourse.experiments
	@PYTHONPATH=tests $(BIN)/python -m hidden.effects
	@$(BIN)/python -m segcourse.results README.md book/*.md

results-check: $(READY) ## run some of them again, fail beyond the recorded spread (some minutes)
	@$(BIN)/python -m segcourse.experiments check $(ONLY)

bench: $(READY) ## time scenes, models, losses, filters and the grader, record the ratios
	@for part in rendering models losses filters grading; do \
	    PYTHONPATH=tests $(BIN)/python -m bench.$$part || exit 1; done

pictures: $(READY) ## draw the cover and the logo anew
	@$(BIN)/python book/_ext/pictures.py

lint: $(READY) ## check code and notebooks, change nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(STRIP) --verify $(NOTEBOOKS)

format: $(READY) ## format code, strip the notebooks' outputs
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(STRIP) $(NOTEBOOKS)

address: ## move every link to a fork: make address REPO=owner/name
	@$(PYTHON) .ci/address.py "$(REPO)"

clean: ## remove what was built, keep the virtual environment
	rm -rf _build .running .pytest_cache .ruff_cache .hypothesis

$(READY): requirements.txt pyproject.toml
	@echo "Installing the environment into $(VENV) (some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -r requirements.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

executed: $(EXECUTED)

# The copy is executed outside _build, where nbmake does not look, and moves there when it is
# done: a failed or interrupted run leaves nothing that looks fresh.
$(SOURCE)/notebooks/%.ipynb: notebooks/%.ipynb $(PACKAGE) requirements.txt
	@mkdir -p .running $(@D)
	@rm -f $@
	@cp $< .running/$*.ipynb
	@touch .running/$*.begun
	@echo "Executing $<"
	@start=$$(date +%s); \
	$(BIN)/python -m pytest --nbmake --overwrite --nbmake-timeout=600 -q --no-header \
	    -p no:cacheprovider .running/$*.ipynb > .running/$*.log 2>&1 \
	|| { cat .running/$*.log; echo "FAILED: $<"; exit 1; }; \
	echo "Executed  $< in $$(( $$(date +%s) - start )) s"
	@mv .running/$*.ipynb $@
	@touch -r .running/$*.begun $@ # an edit during the run makes it stale

# Execution is off here: the copy already holds the outputs. Pages of notebooks that are gone
# would stay in the copy, so that everything but the executed notebooks is made afresh.
$(INDEX): $(EXECUTED) $(PAGES) $(READY)
	@echo "Building the book"
	@rm -rf _build/html $(SOURCE)/book
	@mkdir -p $(SOURCE)
	@cp -R book _toc.yml CONTRIBUTING.md CHANGELOG.md $(SOURCE)
	@sed 's/execute_notebooks: .*/execute_notebooks: "off"/' _config.yml > $(SOURCE)/_config.yml
	@$(BIN)/jupyter-book build $(SOURCE) --path-output . -W -n --all --keep-going --quiet \
	    > _build/book.log 2>&1 || { cat _build/book.log; rm -rf _build/html; exit 1; }
