# Two commands: `make demo` shows the main job, `make test` checks everything. Both start from a bare machine.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SETUP_FILES := setup.py constraints.txt tools/setup.sh tools/build_msgs.py $(wildcard v2r_msgs/*.* v2r_msgs/msg/* v2r_msgs/srv/*)

ifdef ROS_DISTRO
# v2r_msgs lies in the virtual environment, everything else of ROS where the sourced installation has it.
export AMENT_PREFIX_PATH := $(CURDIR)/$(VENV):$(AMENT_PREFIX_PATH)
export LD_LIBRARY_PATH := $(CURDIR)/$(VENV)/lib:$(LD_LIBRARY_PATH)
endif

.PHONY: demo sim-demo test lint bench bench-train bundle clips clean help

help: ## Lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.v2r-run: $(SETUP_FILES)
	@PYTHON=$(PYTHON) tools/setup.sh run

$(VENV)/.v2r-test: $(SETUP_FILES)
	@PYTHON=$(PYTHON) tools/setup.sh test
	@touch $(VENV)/.v2r-run

demo: $(VENV)/.v2r-run ## A camera becomes a reward: real ROS 2 graph, bag, table, picture in out/demo
	@$(PY) -m v2r_ros.demo --out out/demo

sim-demo: $(VENV)/.v2r-test ## A trained policy closes a door over ROS topics: bag, video, table, picture in out/sim-demo
	@MUJOCO_GL=$${MUJOCO_GL:-egl} $(PY) -m v2r_ros.sim_demo --out out/sim-demo

test: $(VENV)/.v2r-test ## The whole test suite
	@$(PY) -m pytest

lint: $(VENV)/.v2r-test ## ruff, mypy, import rules
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(VENV)/bin/lint-imports

bench: $(VENV)/.v2r-test ## Speed and memory, as ratios within one run; writes out/bench
	@$(PY) -m benchmarks.run --out out/bench

bench-train: $(VENV)/.v2r-test ## Training: a step against lightly's, the loader against bare decoding
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@$(PY) -m benchmarks.train_step --out out/bench/train_step.json; $(PY) -m benchmarks.loader

bundle: $(VENV)/.v2r-test ## Writes the default bundle again
	@$(PY) -m v2r_core.cli export efficientnet_lite0 --half-weights --out v2r_core/assets/bundles/efficientnet_lite0 --force

clips: $(VENV)/.v2r-test ## Renders the shipped clips again
	@$(PY) tools/render_clips.py

clean: ## Removes everything that was installed or written
	rm -rf $(VENV) out build install log *.egg-info
