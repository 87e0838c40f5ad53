#!/usr/bin/env bash
# Measures apex on a GPU machine: bash benchmarks/gpu/measure.sh
# Needs Python 3.10 or newer with a CUDA build of torch; neither git nor a network. README.md beside
# this file has the stages and the variables. Stages run one after the other, each with its own
# limit in seconds; none needs the success of another. One for which too little is left is a line.
set -u
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)

# Relative paths are the caller's.
folder() { mkdir -p "$1" && (cd "$1" && pwd -P); }
OUT=$(folder "${OUT:-/tmp/apex-gpu-out}") || exit 2
WORK=$(folder "${WORK:-/tmp/apex-gpu}") || exit 2
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$ROOT/.venv/bin/python" ] && PYTHON=$ROOT/.venv/bin/python
fi
found=$(command -v "$PYTHON") || {
    echo "expected an interpreter in PYTHON, got '$PYTHON', which is not there" >&2
    exit 2
}
case $found in /*) PYTHON=$found ;; *) PYTHON=$PWD/$found ;; esac
cd "$ROOT" || exit 2

TOTAL_S=${TOTAL_S:-480}
STAGES=${STAGES:-"setup run learner smoke inference suite micro doctor learner-data tests"}
LEARNER_S=${LEARNER_S:-95} SMOKE_S=${SMOKE_S:-45}
export OUT WORK CALLERS_PATH=${PYTHONPATH:-}
export PYTHON PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 APEX_RUNS=$WORK/runs
export TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton
PATH=$(dirname "$PYTHON"):$PATH
APEX_COMMIT=${APEX_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export PATH APEX_COMMIT
# Everything temporary is below WORK, so that `sweep` knows what belongs to these measurements.
export TMPDIR=$WORK/tmp
mkdir -p "$WORK/logs" "$TMPDIR"
BEGAN=$(date +%s)
# Results of an earlier call stay; those of this one begin here.
printf '{"commit":"%s","utc":"%s"}\n' "$APEX_COMMIT" "$(date -u +%FT%TZ)" >>"$OUT/results.jsonl"

left() { echo $((TOTAL_S - ($(date +%s) - BEGAN))); }
say() { printf '%4ds  %s\n' $(($(date +%s) - BEGAN)) "$*" | tee -a "$OUT/stages.txt"; }
wanted() { case " $STAGES " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# The checkout comes first, then what the caller has there, then the packages that could only be
# installed beside the environment.
use_path() {
    PYTHONPATH=$ROOT${CALLERS_PATH:+:$CALLERS_PATH}
    [ -d "$WORK/site" ] && PYTHONPATH=$PYTHONPATH:$WORK/site
    export PYTHONPATH
}

# Seconds that the run leaves to those stages after it that must not be left out.
kept() {
    local seconds=0 STAGES=${STAGES#*run}
    wanted learner && seconds=$((seconds + LEARNER_S + 8))
    wanted smoke && seconds=$((seconds + SMOKE_S + 8))
    echo "$seconds"
}

# run_limit LIMIT: what the run may take of it.
run_limit() {
    local most=$(($(left) - 8 - $(kept)))
    echo $(($1 < most ? $1 : most))
}

# stage NAME LIMIT LEAST COMMAND...: at most LIMIT seconds; left out where fewer than LEAST are left.
stage() {
    local name=$1 limit=$2 least=$3 rest began rc ms
    shift 3
    wanted "$name" || return 0
    rest=$(($(left) - 8))
    [ "$rest" -lt "$limit" ] && limit=$rest
    if [ "$limit" -lt "$least" ]; then
        say "$name: left out, $rest s left"
        printf '{"stage":"%s","skipped":"%s s left"}\n' "$name" "$rest" >>"$OUT/results.jsonl"
        return 0
    fi
    began=$(date +%s%N)
    STAGE=$name STAGE_LIMIT_S=$limit timeout -s "${SIGNAL:-TERM}" -k 20 "$limit" "$@" \
        >"$WORK/logs/$name.log" 2>&1
    rc=$?
    ms=$((($(date +%s%N) - began) / 1000000))
    say "$name: exit status $rc, $((ms / 1000)).$(printf %03d $((ms % 1000))) s of $limit"
    printf '{"stage":"%s","rc":%d,"ms":%d,"limit_s":%d}\n' "$name" "$rc" "$ms" "$limit" \
        >>"$OUT/results.jsonl"
    [ "$rc" -eq 0 ] ||
        tail -n 6 "$WORK/logs/$name.log" | without_paths | cut -c1-300 | sed 's/^/        | /' |
        tee -a "$OUT/stages.txt"
    use_path
}

# Results name no folder of the machine, so that they can be kept in the project.
without_paths() {
    local home=${HOME:-/}
    [ "$home" = / ] && home=$WORK
    sed -E -e "s|$OUT|OUT|g; s|$WORK|WORK|g; s|$ROOT/||g; s|$ROOT|.|g; s|$home|~|g" \
        -e 's|[^ "]*/site-packages/||g'
}

facts() {
    date -u
    echo "commit $APEX_COMMIT"
    nvidia-smi
    env -u OMP_NUM_THREADS nproc
    lscpu | grep -E 'Model name|Thread|Core|Socket|NUMA|MHz'
    free -m
    df -h --output=size,avail,target / /dev/shm /tmp
    ulimit -l -n
    cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max
    uname -srm
    for tool in git gcc cc nvcc py-spy; do
        command -v "$tool" >/dev/null && echo "$tool is there"
    done
    "$PYTHON" -V
    "$PYTHON" -m pip --disable-pip-version-check list --format=freeze
}

setup() {
    facts >"$OUT/machine.txt" 2>&1
    # An environment of `make setup` has everything, and apex as it is in the checkout.
    if [ -f "$ROOT/bundle/install.sh" ] && [ "$PYTHON" != "$ROOT/.venv/bin/python" ]; then
        PYTHON=$PYTHON bash "$ROOT/bundle/install.sh" ||
            PYTHON=$PYTHON TARGET=$WORK/site bash "$ROOT/bundle/install.sh" || return 1
    fi
    use_path
    "$PYTHON" -c "
import sys, time
began = time.time()
import torch
print('import torch', round(time.time() - began, 1), 's', torch.__version__, torch.cuda.is_available())
import ale_py, gymnasium, lz4.frame, msgspec, numpy, supervisor, tensorboardX, zlib_ng, zmq, apex.api
print('python', sys.version.split()[0], 'numpy', numpy.__version__, 'apex', apex.__file__)
"
}

# Ends the daemons that a stage has left behind: those of its own runs and of its tests, no others.
sweep() { "$PYTHON" "$HERE/sweep.py" "$WORK/" 2>>"$OUT/stages.txt"; }

export -f facts setup use_path
export ROOT HERE
use_path
say "commit $APEX_COMMIT"
stage setup "${SETUP_S:-120}" 10 bash -c setup

APEX=("$PYTHON" -c "from apex.cli.main import main; main()")
TESTS=${TESTS:-"tests/unit/test_batches_on_a_gpu.py tests/unit/test_execution.py \
tests/unit/test_static_batches.py tests/unit/test_packed_batches.py tests/unit/test_precision.py \
tests/unit/test_host_copies.py tests/unit/test_batched_policy.py \
tests/sockets/test_batches_in_flight.py tests/unit/test_transfer.py \
tests/unit/test_no_host_synchronisation.py tests/sockets/test_learner.py \
tests/sockets/test_trainer.py tests/sockets/test_inference.py tests/unit/test_checkpoint.py \
tests/unit/test_optimizers.py tests/unit/test_apex_dqn.py tests/unit/test_impala.py \
tests/unit/test_r2d2.py tests/unit/test_apex_dpg.py tests/sockets/test_prepare.py \
tests/unit/test_doctor.py tests/unit/test_config.py tests/suite/test_serial.py \
tests/suite/test_crash_loops.py"}
RUN_SETTINGS=${RUN_SETTINGS:-"--set evaluator.period_s=15 --set evaluator.max_share=0.25"}
bench() { stage "$1" "$2" "$3" "$PYTHON" -m benchmarks.gpu.bench "$1"; }

for name in $STAGES; do
    case $name in
        setup) ;;
        # shellcheck disable=SC2086
        run) stage run "$(run_limit "${RUN_S:-300}")" 60 "$PYTHON" -m benchmarks.gpu.run_to_return \
            "${RUN_NAME:-run}" $RUN_SETTINGS ;;
        learner) bench learner "$LEARNER_S" 25 ;;
        smoke) stage smoke "$SMOKE_S" 8 "$PYTHON" -m benchmarks.gpu.smoke ;;
        doctor)
            stage doctor "${DOCTOR_S:-30}" 5 "${APEX[@]}" doctor --preset "${PRESET:-pong}" --json
            [ -s "$WORK/logs/doctor.log" ] &&
                without_paths <"$WORK/logs/doctor.log" >"$OUT/doctor.json" ;;
        micro) stage micro "${MICRO_S:-60}" 15 "$PYTHON" -m benchmarks.gpu.micro ;;
        inference) bench inference "${INFERENCE_S:-90}" 45 ;;
        suite) bench suite "${SUITE_S:-110}" 40 ;;
        learner-data) bench learner-data "${DATA_S:-60}" 30 ;;
        # shellcheck disable=SC2086
        tests)
            SIGNAL=INT stage tests "${TESTS_S:-60}" 10 "$PYTHON" -m pytest -p no:cacheprovider \
                -v --no-header --tb=short --durations 8 $TESTS
            grep -hE '(FAILED|ERROR|passed|failed)' "$WORK/logs/tests.log" 2>/dev/null |
                tail -n 40 | without_paths | cut -c1-200 >>"$OUT/stages.txt" ;;
        *) say "no stage '$name'" ;;
    esac
    sweep
done

(cd "$WORK" && tar czf "$OUT/logs.tar.gz" logs)
say "done"
echo "---- $OUT/results.jsonl"
cut -c1-420 "$OUT/results.jsonl" | tail -n 60
