"""Makes golden/rows.parquet and golden/parts.parquet with pyarrow.

    pip install pyarrow
    python golden/make_parquet.py
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent

# One table with the columns of several forms of rows, of which each row fills one.
ROWS = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1 and 1."},
                  {"role": "assistant", "content": "2"}], "task": "sums"},
    {"instruction": "Translate.", "input": "cat", "output": "猫"},
    {"text": "A plain text.\nOf two lines."},
    {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
    {"instruction": "No output."},
    {"conversations": [{"from": "human", "value": "1 + 2?"}, {"from": "gpt", "value": "3"}]},
    {"text": "x" * 5000},
]

# Contents as lists of parts, numbers and columns of no use to anybody here.
PARTS = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?", "image": None},
                                               {"type": "image", "text": None, "image": "cat.png"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A cat.", "image": None}]}],
     "id": "a"},
]


def main():
    names = sorted({name for row in ROWS for name in row})
    rows = [{name: row.get(name) for name in names} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), HERE / "rows.parquet", compression="snappy", row_group_size=3)
    pq.write_table(pa.Table.from_pylist(PARTS), HERE / "parts.parquet", compression="zstd")


if __name__ == "__main__":
    main()
