"""How recognisable sampled digits are: a classifier trained on the real ones judges samples.npy.

    python benchmarks/digits.py outputs/demo/sample/samples.npy

Prints the share of samples of which it is sure (p >= 0.9), the classes among them, and the same share for real digits that it
has not seen.  Exits with 1 below 85 % or where a class is missing.
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


def main(path: str) -> int:
    x, y = load_digits(return_X_y=True)
    test = np.arange(len(x)) % 10 == 0
    judge = MLPClassifier((128,), max_iter=300, random_state=0).fit(x[~test], y[~test])
    accuracy, real = judge.score(x[test], y[test]), np.mean(judge.predict_proba(x[test]).max(1) >= 0.9)
    p = judge.predict_proba(np.load(path).reshape(-1, 64).clip(0, 16))
    sure = p.max(1) >= 0.9
    counts = np.bincount(p.argmax(1)[sure], minlength=10)
    print(
        f"sure of {sure.mean():.1%} of {len(p)} samples (of {real:.1%} of unseen real digits; its accuracy {accuracy:.1%})"
    )
    print(f"classes 0..9 among them: {counts.tolist()}")
    return 0 if sure.mean() >= 0.85 and (counts > 0).all() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
