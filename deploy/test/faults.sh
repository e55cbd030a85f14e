#!/usr/bin/env bash
# Runs a mesh of real processes with networks, disks and clocks of their own, breaks them by a seeded schedule while clients
# use it, and checks that nothing acknowledged is lost. FAULT_SEED repeats a run's operations and faults; FAULT_MINUTES is
# the length of the random schedule (5), which ends a little earlier where there are pushes enough; FAULT_SCENARIOS and
# FAULT_NEMESES choose some; FAULT_DIR holds disks and logs. What this machine cannot break is named, and the last line
# then says INCOMPLETE.
set -euo pipefail
# shellcheck source=deploy/test/lib.sh
source "$(dirname "$0")/lib.sh"

faults_tools
[[ -n ${FLOTILLA:-} ]] || build_all
mkdir "$work/faults"
build_older "$root" "$work/older"
flags=(-dir "${FAULT_DIR:-$work/faults}" -flotilla "$flotilla" -old "$work/older" -length "${FAULT_MINUTES:-5}m")
[[ -z ${FAULT_SEED:-} ]] || flags+=(-seed "$FAULT_SEED")
[[ -z ${FAULT_SCENARIOS:-} ]] || flags+=(-scenarios "$FAULT_SCENARIOS")
[[ -z ${FAULT_NEMESES:-} ]] || flags+=(-nemeses "$FAULT_NEMESES")
"$root/bin/faults" "${flags[@]}"
