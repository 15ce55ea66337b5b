#!/usr/bin/env bash
# Kills runs of a tiny recipe with SIGKILL at random moments, tokenisers and pretraining alike, goes on
# with each until it ends, and compares what comes of it with a run that was left alone. Prints a table.
#
#   benches/soak.sh [KILLS] [FOLDER]
#
# Needs the built program (cargo build --release, or its path in DANLU) and nothing else. Ends with an error if any run
# differs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kills=${1:-50}
at=${2:-$(mktemp -d)}
danlu=${DANLU:-$PWD/target/release/danlu}
mkdir -p "$at"

cat >"$at/soak.toml" <<TOML
# Seconds of training, to be killed again and again.
name = "soak"
[data]
packs = ["$PWD/packs/sample"]
scenes = 8
variants = 1
concepts = 8
[text]
vocabulary = 400
train_bytes = 20000
[image]
levels = [4, 4, 4]
channels = 8
blocks = 1
steps = 40
batch = 2
semantic = { steps = 20, batch = 2, channels = 4, width = 8 }
[audio]
levels = [4, 4, 4]
channels = 16
blocks = 1
steps = 40
batch = 2
clip = 8
semantic = { steps = 20, batch = 2, channels = 4, width = 8, seconds = 1.0 }
[model]
depth = 2
width = 32
head_dim = 8
[train]
steps = 150
rows = 2
window = 160
warmup = 5
checkpoint = 5
validate = 40
[checkpoint]
minutes = 0.002
[mixture]
name_en = 1.0
draw_en = 1.0
transcribe_en = 1.0
text_en = 0.5
TOML

began=$(date +%s.%N)
"$danlu" train "$at/soak.toml" --out "$at/base" 2>"$at/base.log"
whole=$(echo "$(date +%s.%N) - $began" | bc)

declare -A where=([tokenisers]=0 [pretraining]=0)
total=0 runs=0 same_model=0 same_tokenisers=0 clean=0 early=0 resumed=0
while [ "$total" -lt "$kills" ]; do
    runs=$((runs + 1))
    run=$at/run
    rm -rf "$run"
    finished=
    while [ -z "$finished" ]; do
        if [ -f "$run/recipe.toml" ]; then resume=(--resume "$run"); else resume=("$at/soak.toml" --out "$run"); fi
        "$danlu" train "${resume[@]}" 2>>"$at/run.log" &
        child=$!
        if [ "$total" -lt "$kills" ]; then
            # Up to half as long as a whole run takes.
            sleep "$(awk -v r=$RANDOM -v w="$whole" 'BEGIN { print 0.02 + 0.5 * w * r / 32768 }')"
            if kill -KILL "$child" 2>/dev/null; then
                total=$((total + 1))
                if [ -f "$run/codes.bin" ]; then phase=pretraining; else phase=tokenisers; fi
                where[$phase]=$((where[$phase] + 1))
                if compgen -G "$run/checkpoints/step-*" >/dev/null; then resumed=$((resumed + 1)); fi
                if ! compgen -G "$run/*" >/dev/null; then early=$((early + 1)); fi
            fi
        fi
        if wait "$child" 2>/dev/null; then finished=yes; fi
    done
    same() { cmp -s "$at/base/$1" "$run/$1"; }
    if same model/model.safetensors; then same_model=$((same_model + 1)); fi
    tokenisers=yes
    for file in tokenizer.json image.safetensors audio.safetensors image-semantic.safetensors; do
        same "tokenisers/$file" || tokenisers=
    done
    if [ -n "$tokenisers" ]; then same_tokenisers=$((same_tokenisers + 1)); fi
    if same audit.jsonl && "$danlu" debug "$run" --audit >>"$at/run.log"; then clean=$((clean + 1)); fi
done

row() { printf '%-52s %6s\n' "$1" "$2"; }
row "kills" "$total"
row "  while tokenisers were learnt" "${where[tokenisers]}"
row "  while the model was trained" "${where[pretraining]}"
row "  with a checkpoint to go on from" "$resumed"
row "  before the run had a file" "$early"
row "checkpoints that had to be passed over" "$(grep -c 'going on from .* instead' "$at/run.log" || true)"
row "runs gone on with to their end" "$runs"
row "  with the same bits of the model" "$same_model"
row "  with the same bits of the tokenisers" "$same_tokenisers"
row "  with the same samples, none doubled or lost" "$clean"
[ "$same_model" = "$runs" ] && [ "$same_tokenisers" = "$runs" ] && [ "$clean" = "$runs" ]
