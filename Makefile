# `make train` and `make test` need Python 3.11+ and nothing else: they set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help train test lint long envs suites trackers scores bench scaling clean

help:
	@echo "make train   train CartPole-v1, evaluate it, draw its learning curve and a replay"
	@echo "make test    linters, type checker and the quick tests"
	@echo "make long    the learning tests that take minutes to hours"
	@echo "make envs    the tests of dm_control and EnvPool, in an environment of their own (a gigabyte)"
	@echo "make suites  the tests of the suites in JAX and VMAS, and learning in each (half an hour, two gigabytes)"
	@echo "make trackers  the tests of MLflow and trackio, in an environment of their own (a gigabyte)"
	@echo "make scores  train and score every task of the results table (hours)"
	@echo "make bench   speed beside other libraries, in environments of their own (half an hour)"
	@echo "make scaling speed and memory against envs, width, depth and minibatch"

# The lock holds what each package needs, so nothing is resolved; modules are compiled when they are first imported.
# The marker is written last: a set-up that was cut off is done again.
.venv/locked: requirements.lock
	@echo "Setting up .venv: a virtual environment with the locked dependencies (a few minutes, once)"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Proximo needs Python 3.11 or newer; this is ' + sys.version.split()[0] + '. Name another with: make PYTHON=python3.12')"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet --no-deps --no-compile -r requirements.lock
	@touch $@

# Apart, so that a change to the native engine builds only that.
.venv/ready: .venv/locked pyproject.toml hatch_build.py $(wildcard src/proximo/native/*.cpp src/proximo/native/*.h src/proximo/native/envs/*.c)
	@echo "Installing Proximo and building its native engine"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

train: .venv/ready
	@set -e; run=runs/cartpole; n=2; while [ -e $$run ]; do run=runs/cartpole-$$n; n=$$((n + 1)); done; \
	echo "Training CartPole-v1 (100,000 steps, well under a minute)"; \
	$(BIN)/proximo train ppo CartPole-v1 --seed 1 --run-dir $$run; \
	echo "Evaluating it in 100 episodes that it has not seen"; \
	$(BIN)/proximo eval $$run --json > $$run/evaluation.json; \
	echo "Drawing the learning curve and a replay"; \
	$(BIN)/proximo plot $$run; \
	$(BIN)/proximo play $$run --video $$run/replay.gif; \
	$(BIN)/python -c "import json, sys; score = json.load(open('$$run/evaluation.json'))['return_mean']; print(f'score {score:.1f} of 500 (475 is solved), run folder $$run'); sys.exit(score < 475)"

# A process for each core, each with one thread; a file's tests share what they have made.
test: .venv/ready lint
	@echo "Running the quick tests"
	@$(BIN)/pytest -n logical --dist loadfile --no-loadscope-reorder

lint: .venv/ready
	@echo "Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

long: .venv/ready
	@$(BIN)/pytest -m long --timeout 7200

# dm_control wants an older MuJoCo than the lock has, and EnvPool is large.
envs: .venv/ready
	@test -x .venv-envs/bin/pytest || $(PYTHON) -m venv --clear .venv-envs
	@.venv-envs/bin/pip install --quiet -r requirements.lock
	@.venv-envs/bin/pip install --quiet --no-build-isolation --editable ".[dm-control,envpool]"
	@.venv-envs/bin/pytest -rs tests/envs/test_known_envs.py tests/envs/test_pool.py

# gymnax and Craftax without what they ask for: an older Gymnasium, and a second pygame.
suites: requirements.lock
	@test -x .venv-suites/bin/pytest || $(PYTHON) -m venv --clear .venv-suites
	@.venv-suites/bin/pip install --quiet -r requirements.lock
	@.venv-suites/bin/pip install --quiet --no-build-isolation --constraint requirements.lock --editable ".[navix,xminigrid,jumanji,brax,playground,vmas]" seaborn
	@.venv-suites/bin/pip install --quiet --no-deps gymnax craftax
	@.venv-suites/bin/pytest -rs tests/envs/test_suites.py tests/envs/test_installed_suites.py tests/envs/test_vmas.py
	@.venv-suites/bin/python benchmarks/suites.py

# MLflow is large, and trackio wants an older Pillow than the lock has.
trackers: .venv/ready
	@test -x .venv-trackers/bin/pytest || $(PYTHON) -m venv --clear .venv-trackers
	@.venv-trackers/bin/pip install --quiet -r requirements.lock
	@.venv-trackers/bin/pip install --quiet --no-build-isolation --editable ".[mlflow,trackio]"
	@.venv-trackers/bin/pytest -rs tests/test_trackers.py

scores: .venv/ready
	@$(BIN)/python benchmarks/scores.py

# BENCH takes more words, such as BENCH="--only pendulum --checkout cleanrl=FOLDER".
bench: .venv/ready
	@$(BIN)/pip install --quiet "envpool==1.2.*"
	@$(BIN)/python benchmarks/speed/bench.py $(BENCH)

scaling: .venv/ready
	@$(BIN)/python benchmarks/speed/scaling.py

clean:
	rm -rf .venv .venv-envs .venv-suites .venv-trackers .pytest_cache .mypy_cache .ruff_cache .hypothesis
