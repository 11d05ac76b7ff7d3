"""Whether the bytes of a tensor are numbers: neither infinite nor NaN.

Owns the bits of the float formats. A checksum only says that a file is what was written.
"""

from __future__ import annotations

# By the name of a format in safetensors: the type of the bits, and the bits of the exponent. A
# number of which they are all set is infinite or NaN.
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


def are_finite(content: bytes | bytearray, dtype: str) -> bool:
    """Whether all numbers of the format `dtype` are finite; integers are."""
    if dtype not in _EXPONENTS:
        return True
    import numpy as np

    bits_type, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(content, dtype=bits_type)
    return not bool(((bits & exponent) == exponent).any())
