# Every target sets up what it needs: on a fresh clone `make run-pong` and `make test` just work.
PYTHON ?= python3
VENV := .venv
APEX := $(VENV)/bin/apex
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup run-pong learn-pong status logs restart-actor attach stop test test-unit \
	test-learning test-envs test-atari-games environments-table chaos fuzz soak bench bench-peers \
	bundle check docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

$(STAMP): setup.cfg constraints.txt pyproject.toml
	@echo "creating $(VENV) with everything that apex needs (about 2 GB, once)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[atari,box2d,dev,docs,examples,mujoco,plot,video]'
	@touch $(STAMP)

setup: $(STAMP)  ## create .venv and install apex in it

PONG = $(shell $(VENV)/bin/python -c \
	"from apex.cli.options import default_preset; print(default_preset())")

run-pong: $(STAMP)  ## train Ape-X DQN on Pong, or show the running one; Ctrl-C leaves it running
	@$(APEX) run --preset $(PONG) --show-running

learn-pong: $(STAMP)  ## train Pong until return 18 or for HOURS; the curve goes to benchmarks/pong
	@$(VENV)/bin/python -m benchmarks.learn $(or $(PRESET),$(PONG)) --seed $(or $(SEED),1) \
		--until-return 18 --hours $(or $(HOURS),1) --out benchmarks/pong

status: $(STAMP)  ## show the state of each daemon of the newest run
	@$(APEX) status || true

logs: $(STAMP)  ## follow all logs, or one: make logs NAME=actor_000
	@$(APEX) logs $(NAME) -f

restart-actor: $(STAMP)  ## restart one actor: make restart-actor N=0
	@$(APEX) actor restart $(or $(N),$(error expected the number of an actor: make restart-actor N=0))

attach: $(STAMP)  ## add actors from this shell: make attach N=2 (Ctrl-C stops them)
	@$(APEX) actor attach $(or $(N),1)

stop: $(STAMP)  ## stop the newest run and the actors attached to it
	@$(APEX) stop

# Tests mostly wait for processes to start and end, so two files at a time fill two cores.
TEST_JOBS ?= 2
# Files in the order given, long ones first: the short ones fill the end.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile \
	--no-loadscope-reorder

test: $(STAMP)  ## run all tests, two files at a time, as CI does
	@$(PYTEST) tests/suite tests/sockets tests/unit

test-unit: $(STAMP)  ## run the tests that need no processes or sockets (about a minute)
	@$(PYTEST) tests/unit

test-learning: $(STAMP)  ## check that each algorithm learns CartPole, with daemons and --serial (10 minutes)
	@$(VENV)/bin/python -m pytest -m "learning or not learning" tests/suite/test_learning.py

# An environment for each set of ready environments, on top of .venv, so that `make setup` does not
# grow by them and their requirements cannot clash.
ENVS := .venv-envs
SETS := classic minatar minigrid box2d mujoco dm-control vizdoom
site_packages = $(shell $(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

$(ENVS)/%/.installed: setup.cfg constraints.txt | $(STAMP)
	@echo "creating $(ENVS)/$*"
	@$(PYTHON) -m venv --clear $(ENVS)/$*
	@echo "import site; site.addsitedir('$(call site_packages,$(VENV))')" \
		> $$($(ENVS)/$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/apex.pth
	@$(ENVS)/$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[$*]'
	@touch $@

test-envs: $(or $(SET:%=$(ENVS)/%/.installed),$(SETS:%=$(ENVS)/%/.installed))  ## install and try each set of environments; one: make test-envs SET=minigrid
	@for set in $(or $(SET),$(SETS)); do \
		MUJOCO_GL=$${MUJOCO_GL:-disable} $(ENVS)/$$set/bin/python -m pytest -k "$$set or wrappers" tests/environments \
		|| exit 1; done

test-atari-games: $(STAMP)  ## make, step and evaluate all 104 Atari games; the table goes to benchmarks/environments
	@$(VENV)/bin/python -m benchmarks.environments.atari_games --out benchmarks/environments

environments-table: $(STAMP)  ## try each kind of space with each algorithm; goes on from the cells that benchmarks/environments/spaces.csv has
	@$(VENV)/bin/python -m benchmarks.environments --out benchmarks/environments

chaos: $(STAMP)  ## inject faults into a suite for MINUTES and audit the acknowledged inserts
	@$(VENV)/bin/python -m tests.tools.chaos --minutes $(or $(MINUTES),30) --seed $(or $(SEED),1) \
		--out benchmarks/reliability

fuzz: $(STAMP)  ## feed INPUTS malformed messages and records to their decoders
	@$(VENV)/bin/python -m tests.tools.fuzz --inputs $(or $(INPUTS),10000000) --seed $(or $(SEED),1) \
		--out benchmarks/reliability

soak: $(STAMP)  ## train for MINUTES and check that no daemon grows in memory or open files
	@$(VENV)/bin/python -m tests.tools.soak --minutes $(or $(MINUTES),60) --out benchmarks/reliability

bench: $(STAMP)  ## measure speed against the machine's limits (15 minutes); one part: make bench ONLY=actor
	@$(VENV)/bin/python -m benchmarks.run $(if $(ONLY),--only $(ONLY)) --out benchmarks/speed

PEERS := .venv-peers
PEER_NAMES = $(or $(filter reverb sample-factory,$(ONLY)),$(if $(ONLY),torch,reverb torch sample-factory))
PEER_STAMPS = $(PEER_NAMES:%=$(PEERS)/%/.installed)

# One environment for each group of peers whose requirements are compatible. The comparison reports
# a peer that could not be installed and goes on with the others.
$(PEERS)/%/.installed: benchmarks/peers/environments/%.txt
	@echo "creating $(PEERS)/$*"
	-@$(PYTHON) -m venv --clear $(PEERS)/$* && $(PEERS)/$*/bin/python -m pip install --quiet \
		--disable-pip-version-check --no-deps --requirement $< && touch $@

bench-peers: $(STAMP) $(PEER_STAMPS)  ## compare apex with its peers (4 GB, 25 minutes); one peer: make bench-peers ONLY=reverb
	@$(VENV)/bin/python -m benchmarks.peers $(if $(ONLY),--only $(ONLY)) --out benchmarks/speed

# PYTHON is the version of the wheels here, not the interpreter that makes the environment.
bundle:  ## wheels for a machine without a network: make bundle PYTHON=3.12 (TORCH=1, EXTRAS=, MORE=)
	@$(MAKE) --no-print-directory PYTHON=python3 setup
	@$(VENV)/bin/python deploy/bundle.py $(if $(filter command,$(origin PYTHON)),--python '$(PYTHON)') \
		$(if $(EXTRAS),--extras $(EXTRAS)) $(if $(MORE),--more "$(MORE)") $(if $(TORCH),--torch)

check: $(STAMP)  ## check lint, format, types and import layers
	@$(VENV)/bin/ruff check apex bin benchmarks deploy docs examples tests
	@$(VENV)/bin/ruff format --check apex bin benchmarks deploy docs examples tests
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --config setup.cfg

docs: $(STAMP)  ## build the documentation in site/ and check its links; SERVE=1 serves it on loopback
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs $(if $(SERVE),serve,build --strict)

clean:  ## remove generated files; runs/ is kept
	rm -rf $(VENV) .venv-peers .venv-envs *.egg-info build bundle dist site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -exec rm -rf {} +
