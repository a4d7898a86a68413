#!/usr/bin/env bash
# Train on scikit-learn's digits, sample, measure: a few minutes on two CPU cores.  Every step is a diffcli command.
#   scripts/demo.sh [FOLDER]        default outputs/demo
set -euo pipefail
out=${1:-outputs/demo}

diffcli train out="$out/train" overwrite=true
diffcli sample ckpt="$out/train/checkpoints/last.ckpt" n=100 sampler=ancestral steps=100 trajectory=true \
    out="$out/sample" overwrite=true
diffcli nll ckpt="$out/train/checkpoints/last.ckpt" n=48 likelihood.probes=2 \
    out="$out/nll" overwrite=true
diffcli evaluate ckpt="$out/train/checkpoints/last.ckpt" split=all n=256 steps=10 out="$out/evaluate" overwrite=true

cat <<END

samples                       $out/sample/grid.png
their denoising               $out/sample/trajectory.png and .gif
a digit noised and recovered  $out/train/denoised.png
checkpoint                    $out/train/checkpoints/last.ckpt
training curves               $out/train/metrics.csv
bits/dim, item by item        $out/nll/nll.csv        (figures: $out/nll/run.json)
samples against the data       $out/evaluate/card.md and card.png
END
