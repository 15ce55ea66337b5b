#!/bin/sh
# Runs llm.c's CPU program on the benchmark model and prints the result as JSON.
#
#   LLMC_DIR=/path/to/llm.c sh llmc.sh [--steps 3] [--warmup 1] [--threads 2] [--json] ...
#
# llm.c (https://github.com/karpathy/llm.c, MIT licence) is not part of Danlu: clone it wherever you
# like and build its `train_gpt2` as its own README says. Rows and window of a batch are constants
# in the main function of its train_gpt2.c, `B` and `T`: for the benchmark they are 8 and 512. This
# script builds nothing; where the program runs with another batch, it says so in the result.
#
# The program reads a checkpoint and token files, so llmc.py writes both into a temporary folder,
# starts the program there, reads its step times, and stops it after as many steps as asked.
# Its AdamW has its own fixed settings (rate 1e-4, no weight decay, no clipping).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${LLMC_DIR:-}" ]; then
    echo "LLMC_DIR is not set: clone https://github.com/karpathy/llm.c, set B = 8 and T = 512 in main" >&2
    echo "of train_gpt2.c, build train_gpt2 as its README says, and set LLMC_DIR to the clone" >&2
    exit 3
fi
if [ ! -x "$LLMC_DIR/train_gpt2" ]; then
    echo "$LLMC_DIR/train_gpt2 is not there: build it as the README of llm.c says" >&2
    exit 3
fi
exec "${PYTHON:-python3}" "$here/llmc.py" --program "$LLMC_DIR/train_gpt2" "$@"
