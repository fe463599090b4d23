"""Give the package wrong inputs for a while and say how many of which kind it took or refused, and which it lost.

    python tools/fuzz.py [files calls] [--seconds 120] [--seed 0]

A kind is a function `make(random, folder)` in the table `KINDS` of a module of `fuzzing`. It prepares what it needs and
returns a function that makes one wrong input, hands it in, and returns "refused" or "accepted". Anything else is a loss:
an exception, a crash, more memory than a wrong input may take, more time than `PATIENCE`. Each kind runs in a process of
its own; the input that was lost stays in the folder that is printed. Exit code 1 when any was.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for memory with guard pages
SUBJECTS = {"files": "fuzzing.files", "calls": "fuzzing.calls"}
"""What can be fuzzed: subject -> module with the table `KINDS`."""
PATIENCE = 60
MEMORY = 2 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", choices=[*SUBJECTS, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=120, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only this kind, in this process")
    given = parser.parse_args()
    subjects = given.subjects or list(SUBJECTS)
    if given.kind:
        print(json.dumps(fuzz(subjects[0], given.kind, given.seconds, given.seed)))
        return 0
    kinds = [(subject, kind) for subject in subjects for kind in importlib.import_module(SUBJECTS[subject]).KINDS]
    print(f"{'kind':<24}{'inputs':>9}{'refused':>9}{'accepted':>9}{'lost':>6}")
    lost = 0
    for subject, kind in kinds:
        counts = in_process(subject, kind, given.seconds / len(kinds), given.seed)
        lost += counts.get("lost", 0)
        numbers = [sum(v for v in counts.values() if isinstance(v, int)), *(counts.get(w, 0) for w in OUTCOMES)]
        print(f"{subject + ' ' + kind:<24}{numbers[0]:>9,}{numbers[1]:>9,}{numbers[2]:>9,}{numbers[3]:>6,}", flush=True)
        if "why" in counts:
            print(counts["why"], file=sys.stderr)
    return 1 if lost else 0


OUTCOMES = ("refused", "accepted", "lost")


def in_process(subject: str, kind: str, seconds: float, seed: int) -> dict[str, int | str]:
    """What `fuzz` counts in a process of its own, whose end is a loss too."""
    command = [sys.executable, __file__, subject, "--kind", kind, "--seconds", str(seconds), "--seed", str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        return {"lost": 1, "why": f"{subject} {kind} ended with {ended.returncode}: {ended.stderr[-2000:]}"}
    return json.loads(ended.stdout.splitlines()[-1])


def fuzz(subject: str, kind: str, seconds: float, seed: int) -> dict[str, int | str]:
    """How many inputs of a kind had which outcome; `why` holds the first loss."""
    found: dict[str, int | str] = dict(collections.Counter())
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{subject}-{kind}-"))
    once = importlib.import_module(SUBJECTS[subject]).KINDS[kind](random.Random(seed), folder)
    limit_memory()
    signal.signal(signal.SIGALRM, give_up)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        signal.alarm(PATIENCE)
        try:
            outcome = once()
        except Exception:
            outcome = "lost"
            found.setdefault("why", f"{folder}\n{traceback.format_exc()}")
        found[outcome] = int(found.get(outcome, 0)) + 1
        if outcome == "lost":
            break  # what was lost stays where it is
    signal.alarm(0)
    if "lost" not in found:
        shutil.rmtree(folder)
    return found


def limit_memory() -> None:
    """Let this process have so much memory more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def give_up(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"an input took more than {PATIENCE} seconds")


if __name__ == "__main__":
    sys.exit(main())
