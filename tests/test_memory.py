"""Freed memory stays with the process that runs a command."""

import os
import platform
import subprocess
import sys

import pytest

from diffcli.memory import KEEP, keep_freed

GLIBC = platform.libc_ver()[0] == "glibc"
FAULTS = """
import os, resource, sys
if sys.argv[1] == "kept":
    from diffcli.memory import keep_freed
    keep_freed()
import torch
for i in range(60):
    before = before if i > 10 else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(3 * 2**20) for _ in range(4)]  # 12 MiB each, 3072 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.environ.get("MALLOC_TRIM_THRESHOLD_"))
"""


def run(mode: str, **env) -> tuple[int, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | env
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, env=clean)
    faults, threshold = done.stdout.split()
    return int(faults), threshold


@pytest.mark.skipif(not GLIBC, reason="the thresholds are glibc's")
def test_a_tensor_takes_the_pages_of_the_one_before():
    assert run("kept")[0] < 3072
    assert run("kept", MALLOC_TRIM_THRESHOLD_="131072")[1] == "131072"


def test_children_are_told(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    keep_freed()
    assert set(os.environ) == (set(KEEP) if GLIBC else set())
