"""Tokens a second and time to the first token of several streams at a time, from any server of the
OpenAI API; the standard library alone.

    python benches/serve/streams.py http://127.0.0.1:8080/v1 reference --streams 8 --rounds 4
"""

import argparse
import http.client
import json
import threading
import time
from urllib.parse import urlparse

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url")
parser.add_argument("model")
parser.add_argument("--streams", type=int, default=8)
parser.add_argument("--rounds", type=int, default=4, help="requests of each stream, after one to warm up")
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--prompt", default="Once upon a time there was a river, and by the river a village. ")
parser.add_argument("--repeat", type=int, default=8, help="how often the prompt is said")
options = parser.parse_args()
address = urlparse(options.url)


def once(stream, number):
    """Seconds to the first token and to the end, and tokens."""
    body = {
        "model": options.model, "prompt": f"{stream} {number} " + options.prompt * options.repeat,
        "max_tokens": options.tokens, "temperature": 1.0, "seed": 100 * stream + number, "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
    start = time.perf_counter()
    connection.request("POST", address.path + "/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    first, tokens = None, 0
    for line in response:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter()
            tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", tokens)
    connection.close()
    return first - start, time.perf_counter() - start, tokens


results = []
lock = threading.Lock()


def run(stream, barrier):
    once(stream, 99)
    barrier.wait()
    for number in range(options.rounds):
        result = once(stream, number)
        with lock:
            results.append(result)


barrier = threading.Barrier(options.streams + 1)
threads = [threading.Thread(target=run, args=(i, barrier)) for i in range(options.streams)]
for thread in threads:
    thread.start()
barrier.wait()
start = time.perf_counter()
for thread in threads:
    thread.join()
seconds = time.perf_counter() - start
firsts = sorted(r[0] for r in results)
print(json.dumps({
    "streams": options.streams,
    "tokens_per_second": round(sum(r[2] for r in results) / seconds, 1),
    "first_token_median_s": round(firsts[len(firsts) // 2], 3),
    "first_token_p95_s": round(firsts[int(len(firsts) * 0.95)], 3),
    "tokens": sum(r[2] for r in results),
}))
