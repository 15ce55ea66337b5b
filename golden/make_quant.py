"""Makes quant.gguf: values in every packing that Danlu reads, as the `gguf` package packs them and
unpacks them again. Random values from a fixed seed; README.md says what is in the file."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Q, GGUFWriter, quants

HERE = Path(__file__).resolve().parent
ROWS, COLUMNS = 3, 256
rng = np.random.default_rng(0)

source = rng.normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)
# A block of zeros, one with a value far outside, and one of a single sign.
source[0, :32] = 0
source[0, 40] = 3
source[1, :32] = np.abs(source[1, :32])

writer = GGUFWriter(HERE / "quant.gguf", "none")
writer.add_tensor("source", source)


def add(name, kind, packed):
    """One packed tensor, and what the package unpacks it to."""
    writer.add_tensor(name, packed, raw_dtype=kind)
    writer.add_tensor(f"{name}.values", quants.dequantize(packed, kind).reshape(ROWS, COLUMNS))


for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]:
    add(name, Q[name], quants.quantize(source, Q[name]))

# The package only reads these two: random bytes, with scales that are finite and small.
q4k = rng.integers(0, 256, (ROWS, 144), dtype=np.uint8)
q4k[:, 0:4] = rng.uniform(0.0001, 0.01, (ROWS, 2)).astype(np.float16).view(np.uint8)
add("Q4_K", Q.Q4_K, q4k)
q6k = rng.integers(0, 256, (ROWS, 210), dtype=np.uint8)
q6k[:, 208:210] = rng.uniform(-0.001, 0.001, (ROWS, 1)).astype(np.float16).view(np.uint8)
add("Q6_K", Q.Q6_K, q6k)

for name in ["Q5_0", "Q5_1"]:
    add(name, Q[name], quants.quantize(source, Q[name]))
q5k = rng.integers(0, 256, (ROWS, 176), dtype=np.uint8)
q5k[:, 0:4] = rng.uniform(0.0001, 0.01, (ROWS, 2)).astype(np.float16).view(np.uint8)
add("Q5_K", Q.Q5_K, q5k)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
(HERE / "quant.gguf").chmod(0o644)
print((HERE / "quant.gguf").stat().st_size, "bytes")
