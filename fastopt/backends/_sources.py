"""Digest of the sources of the C library and its extension: in a clone they may change after the build."""

from __future__ import annotations

import hashlib
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def digest() -> str:
    """A digest of the C sources and of the rule table; empty where there are none, as in an installed wheel."""
    if not (_ROOT / "csrc").is_dir():
        return ""
    files = sorted(
        path
        for pattern in ("csrc/**/*.[ch]", "csrc/*.py", "fastopt/rules/*.py", "fastopt/backends/native/build.py")
        for path in _ROOT.glob(pattern)
    )
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
