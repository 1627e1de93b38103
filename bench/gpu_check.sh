#!/usr/bin/env bash
# Proves and times the CUDA kernels and the engine on a machine with a GPU, in under nine minutes, and writes what came
# out to OUT (default $OUT, else build/gpu-check): report.md, report.json, report.png, engine.png, record.jsonl, log.txt.
#
#   bench/gpu_check.sh [OUT]
#
# Sections, each of which survives the failure of another: machine, build, cases (the kernel cases and the tests of the
# emulation, compiled by nvcc), benchmark, peers (torch and FlashInfer at the same shapes), engine (quire.LLM: latency,
# throughput, start, traces, memory), pytest (tests/python/gpu on the device), engine_peers (transformers and others at
# the same workloads), sanitizer (compute-sanitizer on small cases), report. What is left after the build is divided
# among the chosen sections by weight; what one leaves over goes to the later ones. Exit status: 0 when no section
# failed. Without a GPU the same happens at toy sizes on the emulation (the engine: on the CPU where the build has no
# emulated device), as a test of this script.
#
# The engine needs quire's Python package for $PYTHON. It is taken from QUIRE_GPU_PROGRAMS, else built with the programs
# where pybind11 is installed (pip is not used, so nothing needs a network). The machine also needs numpy, and for
# pytest and engine_peers pytest, torch and transformers.
#
#   QUIRE_GPU_PROGRAMS   a folder, or a build tree, with what is built already: test_kernels_cuda and bench_cuda_kernels
#                        (without a GPU test_kernels_simt and bench_simt_kernels), and a package folder
#                        quire/ with _quire*.so in it, or a wheel quire-*.whl; else cmake builds them in build/gpu
#   QUIRE_GPU_SECTIONS   which sections, separated by spaces; default all
#   QUIRE_GPU_SECONDS    when to give up what is left but the report; default 520
#   QUIRE_CMAKE_ARGS     more arguments for cmake
#   PYTHON               default python3
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-${OUT:-$root/build/gpu-check}}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
log=$out/log.txt
: >"$log"

python=${PYTHON:-python3}
deadline=${QUIRE_GPU_SECONDS:-520}
sections=(machine build cases benchmark peers engine pytest engine_peers sanitizer report)
# Of the time after the build.
declare -A weights=([cases]=60 [benchmark]=100 [peers]=50 [engine]=170 [pytest]=45 [engine_peers]=60 [sanitizer]=50)
chosen=${QUIRE_GPU_SECTIONS:-${sections[*]}}
for name in $chosen; do
  [[ " ${sections[*]} " == *" $name "* ]] && continue
  echo "QUIRE_GPU_SECTIONS: no section $name; there are ${sections[*]}" >&2
  exit 2
done
programs=${QUIRE_GPU_PROGRAMS:-}
test_program='' bench_program='' device_program='' package='' engine_device=''
section_end=$deadline
backend=simt
nvidia-smi -L 2>/dev/null | grep -q GPU && backend=cuda
note=

# A string for JSON.
quoted() { printf '%s' "$1" | tr -d '\\"\000-\037' | sed 's/.*/"&"/;1q' | grep . || printf '""'; }

# limited SECONDS COMMAND...: no longer than that, and than what is left of the section.
limited() {
  local left=$((section_end - SECONDS)) seconds=$1
  shift
  ((left < 2)) && { echo "no time left for $*"; return 124; }
  timeout -k 5 $((seconds < left ? seconds : left)) "$@"
}

is_chosen() { [[ " $chosen " == *" $1 "* ]]; }

# Sets section_end: the section's part of what is left, by its weight and those of the chosen ones after it.
share_time() {
  local name left=$((deadline - SECONDS)) total=0 is_later=0
  for name in "${sections[@]}"; do
    [[ $name == "$1" ]] && is_later=1
    ((is_later)) && is_chosen "$name" && ((total += ${weights[$name]:-0}))
  done
  section_end=$deadline
  [[ -n ${weights[$1]:-} ]] && ((left > 0)) && section_end=$((SECONDS + left * ${weights[$1]} / total))
  return 0
}

# scaled SECONDS TOTAL: that part of TOTAL, less where the section has less.
scaled() {
  local left=$(((section_end - section_begin) * 9 / 10))
  echo $((left >= $2 ? $1 : left * $1 / $2 > 1 ? left * $1 / $2 : 1))
}

# section NAME: runs section_NAME and notes how it ended. 77: skipped.
section() {
  local name=$1 begin=$SECONDS status=ok
  is_chosen "$name" || return 0
  note=
  section_begin=$SECONDS
  share_time "$name"
  echo "== $name" | tee -a "$log"
  "section_$name" >>"$log" 2>&1
  case $? in 0) ;; 77) status=skipped ;; *) status=failed ;; esac
  [[ $status == failed ]] && failed=1
  printf '{"kind": "section", "section": "%s", "status": "%s", "seconds": %d, "note": %s}\n' \
    "$name" "$status" $((SECONDS - begin)) "$(quoted "$note")" >>"$parts/sections.jsonl"
  echo "   $status, $((SECONDS - begin)) s${note:+: $note}" | tee -a "$log"
}

section_machine() {
  if [[ $backend == cuda ]]; then
    nvidia-smi
    local text
    text=$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader | head -1)
    printf '{"kind": "device", "text": %s}\n' "$(quoted "$text")" >"$parts/device.jsonl"
    note=$text
    nvcc --version
  else
    note="no GPU: the emulation at toy sizes"
  fi
  uname -a
  nproc
  git -C "$root" log -1 --format='%H %s'
  return 0
}

# The paths of the two programs and the folder for PYTHONPATH, empty where they are not.
find_programs() {
  test_program=$(find -L "$1" -name "test_kernels_$backend" -type f -executable -print -quit)
  bench_program=$(find -L "$1" -name "bench_${backend}_kernels" -type f -executable -print -quit)
  device_program=$(find -L "$1" -name "test_device_$backend" -type f -executable -print -quit)
  local found
  found=$(find -L "$1" -name "libquire_$backend.so" -print -quit)
  if [[ -n $found ]]; then
    QUIRE_PLUGIN_PATH=$(cd "$(dirname "$found")" && pwd)
    export QUIRE_PLUGIN_PATH
  fi
  found=$(find -L "$1" -path '*/quire/_quire*.so' -print -quit)
  if [[ -n $found ]]; then
    package=$(cd "$(dirname "$found")/.." && pwd)
    return
  fi
  found=$(find -L "$1" -name 'quire-*.whl' -print -quit)
  [[ -n $found ]] && "$python" -m zipfile -e "$found" "$parts/site" && package=$parts/site
  return 0
}

# Whether what the chosen sections need is there; which device the engine gets.
check_programs() {
  local status=0
  if [[ -z $test_program ]] && { is_chosen cases || is_chosen sanitizer; }; then
    note+="no test_kernels_$backend; " status=1
  fi
  if [[ -z $bench_program ]] && is_chosen benchmark; then note+="no bench_${backend}_kernels; " status=1; fi
  is_chosen engine || is_chosen pytest || return $status
  [[ -n $package ]] || { note+="no Python package; "; return 1; }
  PYTHONPATH=$package limited 60 "$python" -c 'import quire._quire, quire.llm' || {
    note+="quire does not import in $python (see log.txt); " package=
    return 1
  }
  engine_device=cuda
  if [[ $backend == simt ]]; then
    engine_device=simt
    PYTHONPATH=$package:$root/bench limited 60 "$python" - "$parts/probe" <<'END' || engine_device=cpu
import pathlib, sys
import gpu_models, quire
folder = gpu_models.write_config("toy", pathlib.Path(sys.argv[1]))
arguments = dict(load_format="dummy", skip_tokenizer_init=True, max_model_len=64, num_gpu_blocks_override=8)
quire.LLM(str(folder), device="simt", **arguments).close()
END
    [[ $engine_device == cpu ]] && note+="no emulated device: the engine on the CPU; "
  fi
  return $status
}

section_build() {
  if [[ -n $programs ]]; then
    note="taken from QUIRE_GPU_PROGRAMS; "
    find_programs "$programs"
    check_programs
    return
  fi
  local build=$root/build/gpu cuda=ON module=OFF
  local targets=("test_kernels_$backend" "test_device_$backend" "bench_${backend}_kernels" "quire_${backend}_plugin")
  [[ $backend == simt ]] && cuda=OFF
  "$python" -c 'import pybind11' && module=ON && targets+=(_quire)
  # shellcheck disable=SC2086
  limited 60 cmake -G Ninja -S "$root" -B "$build" -DQUIRE_CUDA=$cuda -DQUIRE_BUILD_TESTS=ON \
    -DQUIRE_BUILD_PYTHON=$module -DPython_EXECUTABLE="$(command -v "$python")" ${QUIRE_CMAKE_ARGS:-} || return
  # Whatever can be built is built: the benchmark runs without the tests and the other way round.
  limited 240 cmake --build "$build" --target "${targets[@]}" -- -k 0
  local status=$?
  find_programs "$build"
  check_programs && return $status
}

# tests GROUP FILTER: one process a group, so that a broken device ends no other group.
tests() {
  local seconds=${3:-150}
  limited "$seconds" "$test_program" --gtest_brief=1 --gtest_filter="$2" \
    --gtest_output="json:$parts/cases-$1.json" >"$parts/$1.log" 2>&1
  local status=$?
  [[ -s $parts/cases-$1.json ]] || echo "ended with $status" >"$parts/cases-$1.json"
  tail -n 40 "$parts/$1.log"
  return $status
}

section_cases() {
  [[ -n $test_program ]] || { note="no program"; return 77; }
  if [[ $backend == simt ]]; then
    [[ -z $device_program ]] || limited 60 "$device_program" --gtest_brief=1 --gtest_filter='OnCudaDevice.*' || return
    tests simt 'SimtCases.norm_rms_float32_1*:SimtCases.norm_layer_bfloat16_37:SimtCases.rope_bfloat16_full:SimtCases.*prepare_batch*:PackWeight*' 40
    return
  fi
  local status=0
  # The device alone first: regions, copies, events, graphs.
  [[ -z $device_program ]] || limited 60 "$device_program" --gtest_brief=1 || { note+="test_device_cuda failed; "; status=1; }
  local names=(attention gemm norm embedding rope other shared) pids=() i
  local filters=('CudaCases.attention_*' 'CudaCases.gemm_*' 'CudaCases.norm_*' 'CudaCases.embedding_*' 'CudaCases.rope_*'
    'CudaTable.*:CudaCases.*-*.attention_*:*.gemm_*:*.norm_*:*.embedding_*:*.rope_*' '-CudaCases.*:CudaTable.*')
  for i in "${!names[@]}"; do
    tests "${names[i]}" "${filters[i]}" &
    pids+=($!)
  done
  for i in "${!names[@]}"; do
    wait "${pids[i]}" && continue
    note+="${names[i]} failed; "
    status=1
    # Again in managed memory: tells a kernel that is wrong from memory that it does not like.
    QUIRE_TEST_MEMORY=managed tests "${names[i]}-managed" "${filters[i]}" 60 && note+="passed in managed memory; "
  done
  return $status
}

section_benchmark() {
  local status=0 family seconds
  [[ -n $bench_program ]] || { note="no program"; return 77; }
  if [[ $backend == simt ]]; then
    limited 30 "$bench_program" --json "$parts/bench-simt.jsonl"
    return
  fi
  for family in decode:60 prefill:20 sampling:25 gemm:25 norm:8 rope_kv_write:8 plan:8; do
    seconds=$(scaled "${family#*:}" 154) family=${family%:*}
    limited $((seconds + 20)) "$bench_program" --filter "^$family/" --seconds "$seconds" \
      --json "$parts/bench-$family.jsonl" || { note+="$family failed; "; status=1; }
  done
  return $status
}

section_peers() {
  local status=0 family seconds records=("$parts"/bench-*.jsonl)
  "$python" -c 'import torch' || { note="no torch"; return 77; }
  [[ -e ${records[0]} ]] || records=()
  if [[ $backend == simt ]]; then
    CUDA_VISIBLE_DEVICES='' limited 60 "$python" "$root/bench/gpu_peers.py" "${records[@]}" --seconds 15 \
      --json "$parts/peers-simt.jsonl"
    return
  fi
  for family in gemm:20 prefill:25 sampling:25 decode:45 norm:8; do
    seconds=$(scaled "${family#*:}" 123) family=${family%:*}
    limited $((seconds + 60)) "$python" "$root/bench/gpu_peers.py" "${records[@]}" --filter "^$family/" \
      --seconds "$seconds" --json "$parts/peers-$family.jsonl" || { note+="$family failed; "; status=1; }
  done
  return $status
}

# engine_program NAME [ARGUMENT...]: a program of bench/ that ends by itself before its time is over.
engine_program() {
  local name=$1 records=("$parts"/bench-*.jsonl "$parts"/peers-*.jsonl) left=$((section_end - SECONDS - 2)) i
  shift
  for i in "${!records[@]}"; do [[ -e ${records[i]} ]] || unset "records[i]"; done
  ((left > 2)) || { note+="no time left"; return 1; }
  PYTHONPATH=$package limited $((left + 2)) "$python" "$root/bench/$name.py" "${records[@]}" --seconds "$left" "$@"
}

section_engine() {
  [[ -n $package ]] || { note="no Python package"; return 77; }
  note="device $engine_device"
  engine_program gpu_engine --device "$engine_device" --json "$parts/engine.jsonl"
}

section_pytest() {
  [[ -n $package ]] || { note="no Python package"; return 77; }
  "$python" -c 'import pytest, torch, transformers, tokenizers' || { note="no pytest or no transformers"; return 77; }
  note="device $engine_device"
  # On the emulation one case is enough here: `make test` runs them all on it.
  local some=()
  [[ $engine_device == cuda ]] || some=(-k plain)
  PYTHONPATH=$package QUIRE_TEST_DEVICE=$engine_device limited 200 "$python" -m pytest -q -p no:cacheprovider -m gpu \
    "${some[@]}" --rootdir "$root" -c "$root/pyproject.toml" "$root/tests/python/gpu" --junitxml="$parts/pytest.xml"
  local status=$?
  [[ -e $parts/pytest.xml ]] || echo "ended with $status" >"$parts/pytest.xml"
  return $status
}

section_engine_peers() {
  "$python" -c 'import torch, transformers' || { note="no transformers"; return 77; }
  if [[ $backend == simt ]]; then
    CUDA_VISIBLE_DEVICES='' engine_program gpu_engine_peers --device cpu --filter /decode/ \
      --json "$parts/engine_peers.jsonl"
    return
  fi
  # A peer that fails is a line of the report, not of quire's making.
  engine_program gpu_engine_peers --device cuda --json "$parts/engine_peers.jsonl" || note+="some gave no figure"
  return 0
}

# Shared memory and global memory alone: what the emulation's sanitizers see too, now of the machine code.
section_sanitizer() {
  [[ $backend == simt ]] && { note="the emulation has sanitizers of its own"; return 77; }
  [[ -n $test_program ]] || { note="no program"; return 77; }
  command -v compute-sanitizer >/dev/null || { note="no compute-sanitizer"; return 77; }
  local small='CudaCases.attention_bfloat16_h4_kv2_d64_*mixed:CudaCases.attention_float16_h4_kv2_d128_*mixed'
  small+=':CudaCases.attention_float32_h4_kv2_d20_*mixed:CudaCases.norm_rms_bfloat16_100:CudaCases.norm_layer_float32_wide_1028'
  small+=':CudaCases.rope_bfloat16_norms_128*:CudaCases.embedding_bfloat16_positions_37:CudaCases.*prepare*:CudaCases.*copy*'
  small+=':CudaCases.gemm_bfloat16_m5_n33_k257_*:CudaCases.gemm_bfloat16_m7_*_gated_silu_*:CudaCases.gemm_bfloat16_m130_*'
  small+=':PrefillSm90.LengthsAroundTiles:SamplingSimt.Edits:SamplingSimt.BadLogits'
  local status=0 tool
  for tool in memcheck racecheck; do
    QUIRE_TEST_EXACT=1 limited 80 compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 20 \
      "$test_program" --gtest_brief=1 --gtest_filter="$small" >"$parts/$tool.log" 2>&1
    local ended=$? found
    tail -n 60 "$parts/$tool.log"
    found=$(grep -cE '^=+ (Invalid|Error|Warning|Program hit|Misaligned|Race|Uninitialized)' "$parts/$tool.log")
    if ((ended == 124 || ended == 137)); then
      note+="$tool out of time, $found findings so far; " status=1
    elif ((ended != 0 || found > 0)) || ! grep -q COMPUTE-SANITIZER "$parts/$tool.log"; then
      note+="$tool ended with $ended, $found findings (see log.txt); " status=1
    else
      note+="$tool clean; "
    fi
  done
  return $status
}

section_report() { "$python" "$root/bench/gpu_report.py" "$parts" "$out"; }

failed=0
for name in "${sections[@]}"; do section "$name"; done
sed -n '/^== report/,$p' "$log"
exit $failed
