"""Reads R's data files: `.rda`, and the lazy-load pair `Rdata.rdx` and `Rdata.rdb` of a package.

Enough of R's serialisation (version 2 and 3, big-endian) for vectors, factors, lists and data
frames; code is passed over. No R is needed. Format: R Internals, section 1.8.
"""

import bz2
import lzma
import struct
import zlib
from pathlib import Path

# Types of R values (SEXPTYPE) that data files hold.
NIL, SYMBOL, PAIRS, CHARS, LOGICAL, INTEGER, REAL, STRINGS, LIST, RAW = 0, 1, 2, 9, 10, 13, 14, 16, 19, 24
ALTREP, EMPTY_ENV, BASE_ENV, GLOBAL_ENV, NIL_VALUE, REFERENCE, PERSISTENT = 238, 242, 241, 253, 254, 255, 247
MISSING = -(2**31)


class Value(list):
    """An R vector: its elements, and its attributes by name. A missing element is None."""

    def __init__(self, elements, attributes=None):
        super().__init__(elements)
        self.attributes = attributes or {}

    def columns(self):
        """A data frame's columns by name; a factor as its levels' names."""
        return {name: column.plain() for name, column in zip(self.attributes["names"], self)}

    def plain(self):
        """The elements, a factor's codes replaced by the names of its levels."""
        levels = self.attributes.get("levels")
        return list(self) if levels is None else [None if i is None else levels[i - 1] for i in self]


def read_rda(path):
    """The values of an `.rda` file by name."""
    data = _unpacked(Path(path).read_bytes())
    if data[:5] not in (b"RDX2\n", b"RDX3\n"):
        raise ValueError(f"{path}: expected an R data file, found {data[:5]!r}")
    return _Reader(data[5:]).value()


def read_lazy(folder):
    """The values of a package's lazy-load data base, `Rdata.rdx` and `Rdata.rdb` in a folder, by name."""
    index = _Reader(_unpacked((Path(folder) / "Rdata.rdx").read_bytes())).value()
    places = index[index.attributes["names"].index("variables")]
    store = (Path(folder) / "Rdata.rdb").read_bytes()
    out = {}
    for name, (start, length) in zip(places.attributes["names"], places):
        piece = store[start + 4 : start + length]  # after four bytes of its length unpacked
        kinds = {b"2": bz2.decompress, b"Z": lambda b: lzma.LZMADecompressor(
            lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}]).decompress(b)}
        unpack = kinds.get(piece[:1])
        out[name] = _Reader(unpack(piece[1:]) if unpack else zlib.decompress(piece)).value()
    return out


def _unpacked(data):
    if data[:2] == b"\x1f\x8b":
        return zlib.decompress(data, 31)
    if data[:3] == b"BZh":
        return bz2.decompress(data)
    return lzma.decompress(data) if data[:5] == b"\xfd7zXZ" else data


class _Reader:
    def __init__(self, data):
        if data[:2] != b"X\n":
            raise ValueError(f"expected R's portable binary form, found {data[:2]!r}")
        self.data, self.at, self.references = data, 2, []
        version, _, _ = self.integers(3)
        if version == 3:
            self.take(self.integers(1)[0])  # the name of an encoding
        elif version != 2:
            raise ValueError(f"expected version 2 or 3 of R's form, found {version}")

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError(f"R data end at byte {len(self.data)}, {self.at + count} expected")
        self.at += count
        return self.data[self.at - count : self.at]

    def integers(self, count):
        return struct.unpack(f">{count}i", self.take(4 * count))

    def length(self):
        (count,) = self.integers(1)
        if count < 0:
            raise ValueError("an R vector of over 2^31 elements")
        return count

    def value(self):
        (flags,) = self.integers(1)
        kind, has_attributes = flags & 255, flags & 512
        if kind in (NIL, NIL_VALUE, EMPTY_ENV, BASE_ENV, GLOBAL_ENV):
            return None
        if kind == REFERENCE:
            return self.references[(flags >> 8 or self.integers(1)[0]) - 1]
        if kind == SYMBOL:
            name = self.value()
            self.references.append(name)
            return name
        if kind == PAIRS:
            return self.pairs(flags)
        if kind == CHARS:
            (count,) = self.integers(1)
            text = None if count < 0 else self.take(count)
            # Bit 14 marks Latin-1; what is not marked is ASCII or UTF-8.
            return text if text is None else text.decode("latin-1" if flags & (1 << 14) else "utf-8")
        if kind == ALTREP:
            return self.compact()
        if kind in (LOGICAL, INTEGER):
            elements = [None if i == MISSING else i for i in self.integers(self.length())]
        elif kind == REAL:
            count = self.length()
            elements = [None if x != x else x for x in struct.unpack(f">{count}d", self.take(8 * count))]
        elif kind in (STRINGS, LIST):
            elements = [self.value() for _ in range(self.length())]
        elif kind == RAW:
            elements = self.take(self.length())
        else:
            raise ValueError(f"R values of type {kind} are not data")
        return Value(elements, self.value() if has_attributes else None)

    def pairs(self, flags):
        """A list of pairs as a dictionary."""
        out = {}
        while flags & 255 == PAIRS:
            if flags & 512:
                self.value()
            tag = self.value() if flags & 1024 else None
            out[tag] = self.value()
            (flags,) = self.integers(1)
        if flags & 255 not in (NIL, NIL_VALUE):
            raise ValueError("an R list of pairs without an end")
        return out

    def compact(self):
        """A vector in a short form: a range of numbers, or one that is wrapped."""
        info, state, attributes = self.value(), self.value(), self.value()
        name = next(iter(info.values()))
        if name in ("compact_intseq", "compact_realseq"):
            count, first, step = (int(n) for n in state)
            return Value(range(first, first + count * step, step), attributes)
        if name.startswith("wrap_"):
            inner = state[0] if isinstance(state, Value) else next(iter(state.values()))
            return Value(inner, attributes or inner.attributes)
        raise ValueError(f"an R vector of the form {name} is not known")
