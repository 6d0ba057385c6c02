"""Look for seeds that find the broken clusters of test_found_mutations.py, and write found_by.json anew: a few minutes.

--all: also those that only many seeds find, another ten minutes. Where the seed of the file still finds it, it stays.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_found_mutations import FOUND_BY, FOUND_BY_MANY_SEEDS, MUTATIONS, all_campaigns, campaigns


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        outcome = all_campaigns(Path(directory))
        if "--all" in sys.argv:
            outcome |= campaigns(Path(directory), FOUND_BY_MANY_SEEDS)
    seeds: dict[str, int | None] = json.loads(FOUND_BY.read_text())
    seeds |= {name: seed for name, (seed, _) in outcome.items()}
    known = {name: seed for name, seed in sorted(seeds.items()) if name in MUTATIONS and seed is not None}
    FOUND_BY.write_text(json.dumps(known, indent=1) + "\n")
    for name, (seed, reason) in outcome.items():
        if seed is None:
            print(f"not found: {name}. {reason}")


if __name__ == "__main__":
    main()
