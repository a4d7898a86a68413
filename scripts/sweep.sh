#!/usr/bin/env bash
# Every SDE with two weights of the loss, then each model's bits/dim: six short runs, one folder.
#   scripts/sweep.sh [STEPS] [more settings]
set -euo pipefail
steps=${1:-500}
shift || true
out=outputs/sweep-$(date +%Y%m%d-%H%M%S)

diffcli train -m sweep=sde_x_loss trainer.max_steps="$steps" out="$out" "$@"
for run in "$out"/*/; do
    diffcli nll ckpt="${run}checkpoints/last.ckpt" n=32 likelihood.solver=rk4 likelihood.steps=16 likelihood.probes=2 \
        out="${run}nll" overwrite=true
done
