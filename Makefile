# Every target sets up what it needs: on a fresh clone `make run-pong` and `make test` just work.
PYTHON ?= python3
VENV := .venv
APEX := $(VENV)/bin/apex
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup run-pong learn-pong status logs restart-actor attach stop test test-unit \
	test-learning chaos fuzz soak bench bench-peers check docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

$(STAMP): setup.cfg constraints.txt pyproject.toml
	@echo "making $(VENV) with all that apex needs (about 2 GB, once)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[atari,box2d,dev,docs,examples,mujoco,plot,video]'
	@touch $(STAMP)

setup: $(STAMP)  ## make .venv with apex in it

PONG = $(shell $(VENV)/bin/python -c \
	"from apex.cli.options import default_preset; print(default_preset())")

run-pong: $(STAMP)  ## train Ape-X DQN on Pong; Ctrl-C leaves it running; again: show it
	@$(APEX) run --preset $(PONG) --show-running

learn-pong: $(STAMP)  ## train Pong to a return of 18 or for HOURS; the curve goes to benchmarks/pong
	@$(VENV)/bin/python -m benchmarks.learn $(or $(PRESET),$(PONG)) --seed $(or $(SEED),1) \
		--until-return 18 --hours $(or $(HOURS),1) --out benchmarks/pong

status: $(STAMP)  ## how each daemon of the newest run is
	@$(APEX) status || true

logs: $(STAMP)  ## follow the logs, or one: make logs NAME=actor_000
	@$(APEX) logs $(NAME) -f

restart-actor: $(STAMP)  ## restart one actor: make restart-actor N=0
	@$(APEX) actor restart $(or $(N),$(error which one? make restart-actor N=0))

attach: $(STAMP)  ## add actors from this shell: make attach N=2 (Ctrl-C ends them)
	@$(APEX) actor attach $(or $(N),1)

stop: $(STAMP)  ## end the newest run, attached actors too
	@$(APEX) stop

# Tests mostly wait, for processes that start and end: two files at a time fill two cores.
TEST_JOBS ?= 2
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile

test: $(STAMP)  ## all tests, two files at a time; what CI runs
	@$(PYTEST)

test-unit: $(STAMP)  ## the tests without processes and sockets, in about a minute
	@$(PYTEST) tests/unit

test-learning: $(STAMP)  ## whether each algorithm learns CartPole, by daemons and serially; ten minutes
	@$(VENV)/bin/python -m pytest -m "learning or not learning" tests/suite/test_learning.py

chaos: $(STAMP)  ## break a running suite for MINUTES and audit what was acknowledged
	@$(VENV)/bin/python -m tests.tools.chaos --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1) \
		--out benchmarks/reliability

fuzz: $(STAMP)  ## INPUTS broken messages and records against what reads them
	@$(VENV)/bin/python -m tests.tools.fuzz --inputs $(or $(INPUTS),10000000) --seed $(or $(SEED),1) \
		--out benchmarks/reliability

soak: $(STAMP)  ## train for MINUTES and look whether any daemon grows
	@$(VENV)/bin/python -m tests.tools.soak --minutes $(or $(MINUTES),60) --out benchmarks/reliability

bench: $(STAMP)  ## figures beside the machine's limits, 15 minutes; one: make bench ONLY=actor
	@$(VENV)/bin/python -m benchmarks.run $(if $(ONLY),--only $(ONLY)) --out benchmarks/speed

PEERS := .venv-peers
PEER_NAMES = $(or $(filter reverb sample-factory,$(ONLY)),$(if $(ONLY),torch,reverb torch sample-factory))
PEER_STAMPS = $(PEER_NAMES:%=$(PEERS)/%/.installed)

# One environment a group of peers that stand each other's requirements; a peer that cannot be
# installed is reported by the comparison, which goes on with the others.
$(PEERS)/%/.installed: benchmarks/peers/environments/%.txt
	@echo "making $(PEERS)/$*"
	-@$(PYTHON) -m venv --clear $(PEERS)/$* && $(PEERS)/$*/bin/python -m pip install --quiet \
		--disable-pip-version-check --no-deps --requirement $< && touch $@

bench-peers: $(STAMP) $(PEER_STAMPS)  ## apex beside its peers (4 GB), 25 minutes; one: make bench-peers ONLY=reverb
	@$(VENV)/bin/python -m benchmarks.peers $(if $(ONLY),--only $(ONLY)) --out benchmarks/speed

check: $(STAMP)  ## lint, format, types, import layers
	@$(VENV)/bin/ruff check apex bin benchmarks docs examples tests
	@$(VENV)/bin/ruff format --check apex bin benchmarks docs examples tests
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --config setup.cfg

docs: $(STAMP)  ## build the documentation into site/, links checked; SERVE=1 serves it on loopback
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs $(if $(SERVE),serve,build --strict)

clean:  ## remove what was generated; runs/ stays
	rm -rf $(VENV) .venv-peers *.egg-info build dist site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -exec rm -rf {} +
