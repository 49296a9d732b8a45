"""A process that ends while other threads work in the extension."""

import subprocess
import sys

import pytest

DAEMONS = """
import itertools, threading, torch
from dlf import Engine, _C, fusion, zoo

engine = Engine(zoo.path("small-base"), threads=2)
logits = torch.randn(3, 2, 3000)
begun = threading.Semaphore(0)

def solve():
    while True:
        fusion.solve(logits[0], logits[1], logits[2][:, None], threads=2)
        begun.release()

def step():
    loop = engine._ensemble.loop()
    for number in itertools.count():
        loop.add(_C.Request(number, [_C.Prompt([5, 6, 7] * 20)], [], _C.SamplingOptions(), 20))
        while not loop.idle:
            loop.step()
            begun.release()

def score():
    loop = engine._ensemble.loop()
    while True:
        loop.score(_C.ScoreRequest([_C.Prompt([5, 6, 7] * 20)], [], [[5, 6, 7]]), begun.release)

threading.Thread(target=WORK, daemon=True).start()
for _ in range(3):
    begun.acquire()
"""


@pytest.mark.parametrize("work", ["solve", "step", "score"])
def test_daemon_threads_end_with_the_process(work):
    for _ in range(3):
        child = subprocess.run(
            [sys.executable, "-c", DAEMONS.replace("WORK", work)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (child.returncode, child.stderr) == (0, "")
