"""How much of the processors' time the host gave to other guests while something ran.

On a rented machine a figure that was taken while time was stolen says little: alternated engines do not
lose the same share. Linux counts it in /proc/stat (proc(5)); elsewhere, and on real machines, it is 0.
"""

from pathlib import Path


def clock():
    """Ticks of all processors since the start: `(all, stolen)`."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    ticks = [int(word) for word in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return sum(ticks), ticks[7]


def stolen(since):
    """Share of the time since `clock()` returned `since` that other guests had, from 0 to 1."""
    (all_now, stolen_now), (all_then, stolen_then) = clock(), since
    return (stolen_now - stolen_then) / max(1, all_now - all_then)
