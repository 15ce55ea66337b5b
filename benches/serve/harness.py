"""lm-evaluation-harness on a served model and, beside it, on the same checkpoint in transformers: the answers, and how far
apart the log-probabilities of every ending are.

    danlu export models/smollm2 --format hf --out smollm2-hf
    danlu serve --model models/smollm2 --port 8099 &
    python packs/choices.py --out hellaswag.jsonl
    python benches/serve/harness.py --url http://127.0.0.1:8099/v1 --model smollm2 --hf smollm2-hf --choices hellaswag.jsonl

Install: python3 -m venv /tmp/harness && . /tmp/harness/bin/activate
         pip install "lm_eval[api,hf]"
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TASK = """task: choices
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def run(kind, arguments, folder, out):
    """One run of the harness; its samples by number, and its figures."""
    command = [sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", arguments, "--tasks", "choices",
               "--include_path", str(folder), "--log_samples", "--output_path", str(folder / out)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"lm_eval failed:\n{done.stderr[-2000:]}")
    samples = next((folder / out).rglob("samples_*.jsonl")).read_text(encoding="utf-8").splitlines()
    figures = json.loads(next((folder / out).rglob("results_*.json")).read_text(encoding="utf-8"))
    by_number = {row["doc_id"]: [float(r[0][0]) for r in row["resps"]] for row in map(json.loads, samples)}
    return by_number, figures["results"]["choices"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", required=True, help="where the API is, with /v1")
    p.add_argument("--model", required=True, help="its name there")
    p.add_argument("--hf", required=True, type=pathlib.Path, help="the same checkpoint for transformers")
    p.add_argument("--choices", required=True, type=pathlib.Path, help="rows of `context`, `endings` and `label`")
    p.add_argument("--served-only", action="store_true", help="not transformers")
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "choices.yaml").write_text(TASK.format(file=o.choices.resolve()), encoding="utf-8")
        tokenizer = f"tokenizer_backend=huggingface,tokenizer={o.hf.resolve()}"
        served = f"model={o.model},base_url={o.url}/completions,num_concurrent=4,{tokenizer}"
        ours, figures = run("local-completions", served, folder, "served")
        told = {"choices": len(ours), "served": {k: v for k, v in figures.items() if k.startswith("acc")}}
        if not o.served_only:
            theirs, figures = run("hf", f"pretrained={o.hf.resolve()},dtype=float32", folder, "hf")
            told["transformers"] = {k: v for k, v in figures.items() if k.startswith("acc")}
            far = [abs(a - b) for number in ours for a, b in zip(ours[number], theirs[number], strict=True)]
            told["endings"] = len(far)
            told["nats_apart_at_most"] = max(far)
        print(json.dumps(told))


if __name__ == "__main__":
    main()
