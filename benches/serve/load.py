"""Good, bad, slow and cancelled requests at a server for some minutes; the standard library alone.

Fails if a good request is neither answered nor refused with 429, if a bad one is answered with anything but
a client error, or if the server's resident memory grows: the median of the last minute over that of the second.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import threading
import time
from collections import Counter
from urllib.parse import urlparse

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("url")
parser.add_argument("model")
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--threads", type=int, default=24)
parser.add_argument("--pid", type=int, help="process whose memory is watched")
parser.add_argument("--grow", type=float, default=1.25, help="most that memory may grow")
options = parser.parse_args()
address = urlparse(options.url)
counts, wrong, times = Counter(), [], []
lock = threading.Lock()
deadline = time.monotonic() + 60 * options.minutes

PNG = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def post(path, body, kind="application/json", timeout=120):
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": kind})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def chat(rng, **more):
    content = rng.choice(["What is this?", "Draw a cat.", "A picture of a dog", "画猫", "x" * rng.randrange(1, 60)])
    if rng.random() < 0.2:
        url = "data:image/png;base64," + PNG
        content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": options.model, "messages": [{"role": "user", "content": content}],
            "max_tokens": rng.randrange(1, 60), "seed": rng.randrange(1000), "temperature": rng.random(), **more}


def good(rng):
    start = time.monotonic()
    what = rng.random()
    if what < 0.4:
        status, body = post("/v1/chat/completions", chat(rng))
        fine = status == 200 and b'"choices"' in body
    elif what < 0.65:
        status, body = post("/v1/chat/completions", chat(rng, stream=True))
        fine = status == 200 and body.endswith(b"data: [DONE]\n\n")
    elif what < 0.75:
        status, body = post("/v1/images/generations", {"model": options.model, "prompt": "a cat"})
        fine = status == 200 and b"b64_json" in body
    elif what < 0.85:
        status, body = post("/v1/audio/speech", {"model": options.model, "input": "cat", "voice": "alloy"})
        fine = status == 200 and body.startswith(b"RIFF")
    elif what < 0.92:
        status, body = post("/v1/embeddings", {"model": options.model, "input": "a cat"})
        fine = status == 200
    else:
        schema = {"type": "object", "properties": {"a": {"enum": [rng.randrange(10**6)]}},
                  "required": ["a"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        status, body = post("/v1/chat/completions", chat(rng, response_format=form) | {"max_tokens": 60})
        fine = status == 200
    with lock:
        if fine:
            times.append(time.monotonic() - start)
    return "good answered" if fine else "good refused" if status == 429 else f"GOOD FAILED {status} {body[:200]!r}"


def bad(rng):
    body = rng.choice([
        b"{", b"[" * 100000, json.dumps(chat(rng, temperature=-1)).encode(),
        json.dumps(chat(rng) | {"model": "nobody"}).encode(), json.dumps(chat(rng, n=10**6)).encode(),
        json.dumps({"model": options.model, "messages": [{"role": "user", "content": "a" * 2000000}]}).encode(),
        json.dumps(chat(rng, response_format={"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "string", "pattern": "(" * 50000}}})).encode(),
    ])
    status, _ = post("/v1/chat/completions", body, rng.choice(["application/json"] * 5 + ["text/plain"]))
    return "bad refused" if 400 <= status < 500 else f"BAD ANSWERED {status}"


def raw(rng, body):
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    data = json.dumps(body).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n")
    return connection, head.encode() + data


def cancelled(rng):
    connection, data = raw(rng, chat(rng, stream=rng.random() < 0.5) | {"max_tokens": 200})
    connection.sendall(data)
    time.sleep(rng.random() * 0.5)
    connection.close()
    return "cancelled"


def slow(rng):
    connection, data = raw(rng, chat(rng, stream=True))
    if rng.random() < 0.5:
        start = time.monotonic()
        try:
            for byte in data[: rng.randrange(20, 120)]:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        except ConnectionError:
            # A head may take ten seconds, and does where this machine is slow itself.
            if time.monotonic() - start < 9:
                raise
        connection.close()
        return "slow, never finished"
    connection.sendall(data)
    got = b""
    try:
        while not got.endswith(b"0\r\n\r\n"):
            piece = connection.recv(64)
            if not piece:
                break
            got += piece
            time.sleep(0.005)
    finally:
        connection.close()
    fine = b"[DONE]" in got or b" 429 " in got[:20]
    return "slow reader served" if fine else f"SLOW READER FAILED {got[-200:]!r}"


def work(seed):
    rng = random.Random(seed)
    while time.monotonic() < deadline:
        kind = rng.choices([good, bad, cancelled, slow], [60, 15, 15, 10])[0]
        try:
            name = kind(rng)
        except OSError as error:
            name = f"{kind.__name__.upper()} BROKEN {error!r}"
        with lock:
            counts[name.split(" ")[0] if name[:4].isupper() else name] += 1
            if name[:3].isupper():
                wrong.append(name)
        if "refused" in name and kind is good:
            time.sleep(0.2)


def memory():
    with open(f"/proc/{options.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


threads = [threading.Thread(target=work, args=(i,)) for i in range(options.threads)]
for thread in threads:
    thread.start()
sizes = []
while any(t.is_alive() for t in threads):
    time.sleep(1)
    if options.pid:
        sizes.append(memory())
for thread in threads:
    thread.join()
times.sort()
for name, count in sorted(counts.items()):
    print(f"{count:7} {name}")
if times:
    print(f"good answers: median {times[len(times) // 2]:.2f} s, 95 % {times[int(len(times) * 0.95)]:.2f} s")
if sizes:
    minutes = [statistics.median(sizes[i : i + 60]) for i in range(0, len(sizes), 60) if len(sizes) - i >= 30]
    print("memory by the minute (medians, MB):", *(f"{m:.0f}" for m in minutes), f"; at most {max(sizes):.0f}")
    early = minutes[min(1, len(minutes) - 1)] if minutes else sizes[0]
    if minutes and minutes[-1] > early * options.grow:
        wrong.append(f"memory grew from {early:.0f} to {minutes[-1]:.0f} MB")
print("\n".join(wrong[:20]) or "nothing went wrong")
raise SystemExit(bool(wrong))
