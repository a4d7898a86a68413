#!/usr/bin/env bash
# Train MNIST in five ways, sample each, and let a classifier of real digits judge: two hours on one CPU core.
#   scripts/mnist.sh DATA_ROOT [FOLDER]        DATA_ROOT holds MNIST/raw; default FOLDER outputs/mnist
set -euo pipefail
root=$1
out=${2:-outputs/mnist}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

one() { # experiment, then the settings of its sampler
    local name=$1
    shift
    diffcli train experiment="$name" data.root="$root" out="$out/$name" resume=auto
    diffcli sample ckpt="$out/$name/checkpoints/last.ckpt" n=128 batch_size=128 png=false "$@" out="$out/$name-samples" overwrite=true
}

one mnist_vp sampler=ancestral steps=400
one mnist_ddpm sampler=ancestral grid=uniform_lam steps=400
one mnist_ncsn sampler=ancestral grid=karras steps=500
one mnist_edm sampler=ancestral grid=karras steps=200
one mnist_flow sampler=ancestral steps=250

python "$(dirname "$0")/../benchmarks/mnist.py" "$root" "$out"/*-samples
