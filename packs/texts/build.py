"""Builds the texts pack: English, Chinese and code, up to 12 MB each, with no pictures or sound.

    python packs/texts/build.py --out DIR
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import packlib
import textsources


def main():
    """Builds the pack."""
    options = packlib.arguments(__doc__).parse_args()
    pack = packlib.PackWriter(
        options.out, "texts", "Plain text in English and Chinese, and Python code, from Debian packages.",
        "No pictures and no sound.", options.force)
    for language, gather in (("en", textsources.english), ("zh", textsources.chinese), ("code", textsources.code)):
        rows, sources = gather(options.cache, 12_000_000)
        for source in sources:
            pack.add_source(source)
        pack.add_texts(f"texts-{language}.jsonl", language, rows)
    pack.finish()


if __name__ == "__main__":
    main()
