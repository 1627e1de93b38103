#!/usr/bin/env bash
# Makes everything that building quire needs: system packages (through apt where that is allowed, else their names are
# printed) and the Python environment .venv. Called by the Makefile; does not build quire. Safe to run again.
# Usage: tools/setup.sh demo|dev    (dev adds what tests, benchmarks and lint need)
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:?usage: tools/setup.sh demo|dev}
venv=.venv

say() { printf 'setup: %s\n' "$*"; }

compiles() {  # compiles <line of C++>...: does this source compile as C++20?
  printf '%s\n' "$@" | ${CXX:-c++} -std=c++20 -x c++ -fsyntax-only - >/dev/null 2>&1
}

find_python() {  # the first Python >= 3.10
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
}

find_missing() {  # sets needed (nothing works without) and wished (there is another way), as Debian package names
  needed=() wished=()
  compiles '#include <span>' 'int main() { return std::span<int>{}.size(); }' || needed+=(g++)
  python=$(find_python)
  if [ -z "$python" ]; then
    needed+=(python3 python3-venv python3-dev)
  elif [ ! -x $venv/bin/python ]; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null || needed+=(python3-venv)
    "$python" -c 'import os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' 2>/dev/null ||
      needed+=(python3-dev)
  fi
  compiles '#include <nlohmann/json.hpp>' || wished+=(nlohmann-json3-dev)
  if [ "$mode" = dev ]; then
    compiles '#include <gtest/gtest.h>' || wished+=(libgtest-dev)
    compiles '#include <benchmark/benchmark.h>' || wished+=(libbenchmark-dev)
    command -v ccache >/dev/null || wished+=(ccache)
  fi
}

system_packages() {
  find_missing
  local missing=("${needed[@]}" "${wished[@]}") as_root=()
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
      say "apt-get failed"
    find_missing
    missing=("${needed[@]}" "${wished[@]}")
    [ ${#missing[@]} -gt 0 ] || return 0
  fi
  say "missing: ${missing[*]}; on Debian or Ubuntu: sudo apt-get install ${missing[*]}"
  if [ ${#needed[@]} -gt 0 ]; then
    say "cannot go on without ${needed[*]} (a C++20 compiler and Python 3.10 or later with its headers)"
    exit 1
  fi
  say "going on: CMake fetches the sources of what it does not find"
}

python_environment() {
  if [ ! -x $venv/bin/python ]; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv $venv
  fi
  local groups=(build run) constraints=()
  if [ "$mode" = dev ]; then
    groups+=(dev)
    constraints=(-c constraints.txt)
  fi
  local list=$venv/requirements-$mode.txt
  $venv/bin/python tools/requirements.py "${groups[@]}" >$list
  say "installing Python packages ($mode)"
  $venv/bin/python -m pip install --quiet --disable-pip-version-check "${constraints[@]}" -r $list
}

system_packages
python_environment
