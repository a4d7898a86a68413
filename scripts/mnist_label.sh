#!/usr/bin/env bash
# MNIST by its labels: the model, the classifier that guides and the one that judges, the curve of guidance, and the README's
# pictures.  An hour and a half on one CPU core.
#   scripts/mnist_label.sh DATA_ROOT [FOLDER]        DATA_ROOT holds MNIST/raw; default FOLDER outputs/mnist_label
set -euo pipefail
root=$1
out=${2:-outputs/mnist_label}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

train() { # folder, then the settings
    local name=$1
    shift
    diffcli train data.root="$root" out="$out/$name" resume=auto "$@"
}

train model experiment=mnist_label
train noisy experiment=mnist_classifier sde=vp trainer.max_steps=4000
train clean experiment=mnist_classifier
train plain experiment=mnist_vp
model=$out/model/checkpoints/last.ckpt
plain=$out/plain/checkpoints/last.ckpt

python "$(dirname "$0")/../benchmarks/guidance.py" "$root" "$model" "$out"/{noisy,clean}/checkpoints/last.ckpt --out "$out/guidance"

diffcli sample ckpt="$model" label=all n=100 guidance=cfg sampler=dpmpp_2m steps=20 out="$out/classes" overwrite=true
for task in inpaint superres; do
    diffcli sample ckpt="$plain" data.root="$root" task=$task each=7 steps=50 out="$out/$task" overwrite=true
done
diffcli interpolate ckpt="$plain" data.root="$root" out="$out/interpolation" overwrite=true
