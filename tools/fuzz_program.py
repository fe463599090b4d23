"""Damages program files in thousands of ways and runs them under the address and undefined-behaviour sanitizers.

    python tools/fuzz_program.py --count 10000 --seed 0

Builds what reads and runs programs (csrc/net) with the sanitizers, for the plainest instruction set that the machine has
besides SSE2; needs g++. A file that crashes is written beside the report.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from engine.mutations import damaged, valid_files  # noqa: E402

SANITIZERS = ["-g", "-O1", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Icsrc"]
ONE_ISA = """
#include "gossamer.h"
#include "net/step.h"
namespace gossamer {
extern const NetKernels net_base;
const NetKernels* net_kernels() { return &net_base; }
}
extern "C" const char* gossamer_status_text(int) { return ""; }
"""


def build(folder: Path) -> Path:
    (folder / "isa.cpp").write_text(ONE_ISA)
    own = [*(f"csrc/net/{name}.cpp" for name in ("json", "file", "pack", "run", "step")), "csrc/base/parallel.cpp"]
    objects = []
    for source in [*own, str(folder / "isa.cpp")]:
        flags = ["-std=gnu++17", "-w", "-DGOSSAMER_BUILD=base"]
        objects.append(str(folder / f"{Path(source).stem}.o"))
        subprocess.run(["g++", *SANITIZERS, *flags, "-c", source, "-o", objects[-1]], cwd=ROOT, check=True)
    driver = folder / "run_programs"
    subprocess.run(["gcc", *SANITIZERS, "-c", "tests/native/run_programs.c", "-o", f"{driver}.o"], cwd=ROOT, check=True)
    subprocess.run(["g++", *SANITIZERS, *objects, f"{driver}.o", "-o", driver], cwd=ROOT, check=True)
    return driver


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        driver = build(Path(folder))
        files = [*valid_files(), *damaged(asked.seed, asked.count)]
        stream = b"".join(len(file).to_bytes(8, "little") + file for file in files)
        ended = subprocess.run([driver], input=stream, capture_output=True)
    lines = ended.stdout.decode().splitlines()
    if ended.returncode == 0:
        print(f"{len(files)} files, seed {asked.seed}: {lines[-1]}, nothing read or written outside its memory")
        return 0
    culprit = Path(f"crash-{asked.seed}-{lines[-1]}.gossamer")
    culprit.write_bytes(files[int(lines[-1])])
    print(ended.stderr.decode(errors="replace"))
    print(f"file {lines[-1]} ended the run (status {ended.returncode}); it is {culprit}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
