# Everything a person or a machine does with this project. `make demo` and `make test` set up what they need.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BROKER ?= all
# Most tests wait for processes of their own, or for time to pass.
WORKERS ?= 8
# One that dies ends the run, which names its test: with another one in its place, what is left to do is never handed out.
PARALLEL = -n $(WORKERS) --max-worker-restart 0
PYTEST_ARGS ?=
# Of the core, in whole runs only: its limit stands in pyproject.toml.
COVERAGE = $(if $(PYTEST_ARGS),,--cov mesh --cov-report term:skip-covered)
FAILED := $(VENV)/.failed
MADE := $(VENV)/.made
STAMP := $(VENV)/.installed
BUILT := $(VENV)/.built
# The tests start some thousand processes of ours, which would each compile all that they import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick check static quick-tests whole libraries unit contract faults-report provision proto compose-test bench clean help

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

# A virtual environment that is new enough, and can install.
USABLE = import sys, pip; sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)

$(MADE): pyproject.toml
	@$(BIN)/python -c '$(USABLE)' 2>/dev/null || { \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "error: $(PYTHON) is not there, or older than 3.11; name another one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "error: no venv module; on Debian: apt-get install python3-venv"; exit 1; }; }
	@touch $@

$(STAMP): pyproject.toml | $(MADE)
	@echo "installing into $(VENV), once; this loads some 100 MB and may take minutes …"
	@$(BIN)/python -m pip install $$(test -t 1 || echo -q) --disable-pip-version-check -e '.[dev]'
	@touch $@

# The one library that is built here: only who checks and tests needs it.
$(BUILT): $(STAMP) tests/provision/proton.bash
	@bash tests/provision/proton.bash $(BIN)/python
	@touch $@

demo: $(STAMP) ## run hello-world on the embedded broker
	@command -v node >/dev/null || { echo "error: the demo's second application needs Node.js 18 or later (apt-get install nodejs)"; exit 1; }
	$(BIN)/mesh run -f examples/hello-world --dashboard

quick: $(BUILT) ## for every change: check, the unit tests, the contract, gRPC and HTTP on memory and NATS
	@$(MAKE) --no-print-directory -j 2 static quick-tests

# No servers here that work beside the tests, and each process spends seconds on reading them all.
quick-tests: WORKERS = 9
quick-tests: $(BUILT)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS) --broker memory --broker nats -m "not costly" \
		tests/meta tests/unit tests/trust tests/contract tests/grpc tests/http

check: static ## lint, types, import rules, docs
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/meta

static: $(BUILT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP) ## the fast tests
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/unit

contract: $(STAMP) ## the contract suite: make contract BROKER=nats
	$(BIN)/python -m pytest $(PYTEST_ARGS) tests/contract $(if $(filter-out all,$(BROKER)),--broker $(BROKER))

faults-report: $(STAMP) ## measure what faults do, and write the tables of docs/guarantees.md
	MESH_FAULT_REPORT=docs/faults.json CI=true $(BIN)/python -m pytest $(PYTEST_ARGS) -n 2 -k "every_broker or every_native_broker or killed_twice or one_chain or clock_that_jumps" tests/faults
	$(BIN)/python -m docs.generate

provision: ## install the servers that the tests start, where they are missing
	@for script in tests/provision/*.sh; do bash $$script || exit 1; done

test: $(MADE) ## everything, with real servers
	@$(MAKE) --no-print-directory -j 2 $(BUILT) libraries # Each takes one processor, and loads.
	@$(MAKE) --no-print-directory provision
	@$(MAKE) --no-print-directory -j 2 static whole # Tests wait, and leave of the processors what this takes.

whole: $(BUILT)
	$(BIN)/python -m pytest $(PARALLEL) $(COVERAGE) $(PYTEST_ARGS) --failed $(FAILED) tests || $(BIN)/python -m tests.support.again $(FAILED)

libraries: # What of "provision" takes a while in each clone, and needs nothing of ours.
	@for script in azure examples kubernetes sdks; do bash tests/provision/$$script.sh || exit 1; done

proto: $(STAMP) ## compile the messages of gRPC
	for package in gateway/grpc bindings/pluggable bindings/spiffe; do $(BIN)/python -m grpc_tools.protoc -I $$package/proto --include_imports \
		--descriptor_set_out=$$package/messages.binpb $$package/proto/*.proto || exit 1; done

compose-test: $(STAMP) ## run the stacks of compose.yaml with a Docker engine: make compose-test BROKER=nats
	COMPOSE_TEST=true $(BIN)/python -m pytest $(PYTEST_ARGS) -s tests/compose $(if $(filter-out all,$(BROKER)),--broker $(BROKER))

bench: $(STAMP) ## measure, against the same work without brokermesh; the backbones: make bench BACKBONE=all; components: COMPONENTS=all; workflows: WORKFLOWS=all
	$(BIN)/python -m bench $(if $(BACKBONE),--backbone $(BACKBONE)) $(if $(COMPONENTS),--components $(filter-out all,$(COMPONENTS))) $(if $(WORKFLOWS),--workflows $(filter-out all,$(WORKFLOWS)))
ifeq ($(BACKBONE)$(COMPONENTS)$(WORKFLOWS),)
	$(BIN)/python -m bench --only watch
	$(BIN)/python -m bench --only actors
endif

clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
