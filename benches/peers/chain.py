"""Synthetic token ids that can be learnt: a fixed random Markov chain.

Every token has four successors, taken with equal chance, so the best loss is ln 4 = 1.386 nats once
the chain is known. Successors are drawn with a bias to small ids, as words are in text, so the loss
falls from the first steps. All arithmetic is on integers: `candle/` and `burn/` have the same
function in Rust and see the same batches.
"""

import numpy as np

SUCCESSORS = 4
MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def mix(values):
    """splitmix64 (Steele, Lea and Flood 2014) of an array of counters."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) & MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) & MASK
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB) & MASK
    return z ^ (z >> np.uint64(31))


def successors(vocabulary):
    """`[vocabulary, 4]`: which tokens may follow each token; dense near 0, as the cube of u."""
    r = mix(np.arange(1, vocabulary * SUCCESSORS + 1)) >> np.uint64(40)
    shift = np.uint64(24)
    cube = ((r * r >> shift) * r) >> shift
    return (cube * np.uint64(vocabulary) >> shift).astype(np.int64).reshape(vocabulary, SUCCESSORS)


def stream(vocabulary, count):
    """`count` ids of one walk over the chain."""
    table = successors(vocabulary).tolist()
    turns = (mix(np.arange(count) + (1 << 32)) % np.uint64(SUCCESSORS)).tolist()
    out, token = [], 0
    for turn in turns:
        token = table[token][turn]
        out.append(token)
    return np.array(out, dtype=np.int64)


def batches(vocabulary, steps, rows, window):
    """`[steps, rows, window + 1]`: inputs are `[..., :-1]`, targets `[..., 1:]`."""
    return stream(vocabulary, steps * rows * (window + 1)).reshape(steps, rows, window + 1)
