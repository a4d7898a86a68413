#!/usr/bin/env bash
# Bits/dim of an MNIST model on the test digits, probability-flow ODE and variational bound side by side, with error bars.
#   scripts/mnist_bits.sh DATA_ROOT CHECKPOINT [N] [FOLDER] [more settings]
# DATA_ROOT holds MNIST/raw; CHECKPOINT is of `diffcli train experiment=mnist_vp`; N defaults to all 10,000, FOLDER to
# outputs/mnist_bits.  A GPU is used where there is one.
set -euo pipefail
root=$1
ckpt=$2
n=${3:-10000}
out=${4:-outputs/mnist_bits}
shift $(($# < 4 ? $# : 4))

diffcli nll ckpt="$ckpt" data.root="$root" split=test n="$n" also=elbo out="$out" overwrite=true "$@"

python - "$out/run.json" <<'END'
import json
import sys

results = json.load(open(sys.argv[1]))["results"]
elbo = results["elbo"]
error = lambda r: "" if r["bits_per_dim_standard_error"] is None else f" ± {r['bits_per_dim_standard_error']:.4f}"
print(f"| bits/dim, {results['n']} test digits | mean ± s.e. |\n|---|---|")
print(f"| probability-flow ODE | {results['bits_per_dim']:.4f}{error(results)} |")
print(f"| variational bound | {elbo['bits_per_dim']:.4f}{error(elbo)} |")
END
