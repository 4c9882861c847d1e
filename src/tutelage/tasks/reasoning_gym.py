"""Tasks from reasoning-gym: families as arms, in graded levels, with that library's own verifiers.

A level is a dict of the family's generator settings. `BUILTIN_LEVELS` holds levels made for the built-in student; `levels_of` reads the
library's own curriculum attributes for any of its families. Held-out tasks are told apart by a hash of the question, never by the
generator's seed: small families repeat themselves across seeds, so a seed split would leak.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

HELDOUT_SHARE = 8
"""One question in this many is held out of all training, the built-in student's included."""


def is_heldout(question: str) -> bool:
    """Whether a question belongs to the held-out eighth (decided by its BLAKE2 hash alone)."""
    return hashlib.blake2b(question.encode(), digest_size=4).digest()[0] % HELDOUT_SHARE == 0


def generate(family: str, level: dict[str, Any], seed: int, *, chunk: int = 256) -> Iterator[dict[str, Any]]:
    """Yield endless rows `question`, `answer`, `entry` (the library's own record as JSON, which its verifier reads)."""
    import reasoning_gym

    offset = 0
    while True:
        # A fresh seed for each chunk: one reasoning-gym data set derives item i from seed + i, so neighbouring seeds overlap.
        dataset = reasoning_gym.create_dataset(family, seed=_mix(seed, family, offset), size=chunk, **level)
        for i in range(chunk):
            entry = dataset[i]
            yield {
                "question": entry["question"],
                "answer": str(entry["answer"]),
                "entry": json.dumps(entry, default=str, ensure_ascii=False),
            }
        offset += 1


def _mix(seed: int, family: str, offset: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{family}/{offset}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1)
