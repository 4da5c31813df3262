"""What `import agl_sc` costs as a ratio to `import anndata`, each in fresh processes, taken in turns.

python benchmarks/import_time.py [--rounds 7]
"""

import argparse
import subprocess
import sys
from statistics import median

CODE = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
STATEMENTS = {
    "import anndata": "import anndata",
    "import agl_sc": "import agl_sc",
    "agl_sc and tab completion": "import agl_sc; dir(agl_sc)",
    "agl_sc.pp": "from agl_sc import pp",
    "agl_sc.tl": "from agl_sc import tl",
    "agl_sc.cli": "import agl_sc.cli",
}


def seconds(statement: str) -> float:
    """CPU seconds of a statement in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", CODE.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            taken[name].append(seconds(statement))
    base = median(taken["import anndata"])
    for name, values in taken.items():
        print(f"{name:26} {median(values):6.3f} s CPU  {median(values) / base:6.3f} x anndata")


if __name__ == "__main__":
    main()
