#!/usr/bin/env bash
# Runs one command on every worker of a TPU pod slice, again where it was interrupted.
#
#   ZONE=us-central2-b scripts/tpu_pod.sh TPU_NAME COMMAND...
#   ZONE=us-central2-b scripts/tpu_pod.sh my-v4-32 \
#       python -m experiments.survey full --distributed --work-dir /mnt/shared/runs
#
# COMMAND runs in DIR of each worker, where this package must be installed; --work-dir
# must lie on a file system that all workers share. Variables:
#
#   ZONE      of the TPU; needed
#   PROJECT   by default gcloud's own
#   DIR       on the workers, by default ppds_jax in the home folder
#   RESTARTS  how often at most to go on, by default 100
#   WAIT      seconds between looks at a TPU that is not ready, by default 60
#
# On each worker the command is started again as long as it ends with 75 (a signal: what
# was computed is kept), 138 or 143 (one that came before anything began) or 134 (aborted
# by JAX: another worker was lost). Any other code ends the loop and is this script's
# own. Where a worker is lost itself (preemption: ssh ends with 255), all go on as soon as
# the TPU is ready again; a TPU that was deleted you create again under the same name, as
# a queued resource does.
set -uo pipefail

if [[ $# -lt 2 || -z ${ZONE:-} ]]; then
    sed -n '2,/^set/p' "$0" | grep '^#' | cut -c3- >&2
    exit 2
fi
name=$1
shift
where=(--zone "$ZONE")
if [[ -n ${PROJECT:-} ]]; then
    where+=(--project "$PROJECT")
fi
restarts=${RESTARTS:-100}

# What each worker runs: the command in a loop. Only words quoted by %q are put in.
# shellcheck disable=SC2016  # expanded there, not here
worker_loop() {
    printf 'cd %q || exit 2\n' "${DIR:-ppds_jax}"
    printf 'for try in $(seq 0 %d); do\n' "$restarts"
    printf '%q ' "$@"
    printf '\ncode=$?\n'
    printf 'case $code in 75 | 134 | 138 | 143) sleep %d ;; *) exit $code ;; esac\n' "${PAUSE:-5}"
    printf 'done\nexit $code\n'
}

ready() {
    local state
    state=$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
        --format='value(state)')
    [[ $state == READY ]]
}

code=255
for ((try = 0; try <= restarts; try++)); do
    gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
        --command="$(worker_loop "$@")"
    code=$?
    if [[ $code -ne 255 ]]; then
        exit "$code"
    fi
    echo "a worker was lost; waiting until $name is ready" >&2
    until ready; do
        sleep "${WAIT:-60}"
    done
done
exit "$code"
