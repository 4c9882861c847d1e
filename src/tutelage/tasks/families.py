"""The built-in task set: eight reasoning-gym families, each in four graded levels.

The levels are generator settings of reasoning-gym, chosen (before any comparison was run) so that the built-in student's pass rates
spread over the whole range. reasoning-gym's own curriculum levels begin far above what a model of two million parameters can do;
`levels_of` in `tutelage.tasks.reasoning_gym` gives those for larger models.
"""

from __future__ import annotations

from typing import Any


def _digits(min_terms: int, max_terms: int, min_digits: int, max_digits: int) -> dict[str, Any]:
    return {"min_terms": min_terms, "max_terms": max_terms, "min_digits": min_digits, "max_digits": max_digits}


def _bases(max_base: int, low: int, high: int) -> dict[str, Any]:
    return {"min_base": 2, "max_base": max_base, "min_value": low, "max_value": high}


def _span(name: str, *spans: tuple[int, int]) -> list[dict[str, Any]]:
    return [{f"min_{name}": low, f"max_{name}": high} for low, high in spans]


BUILTIN_LEVELS: dict[str, list[dict[str, Any]]] = {
    "chain_sum": [_digits(2, 3, 1, 1), _digits(2, 2, 2, 2), _digits(3, 3, 2, 2), _digits(4, 4, 2, 2)],
    "products": [_digits(2, 2, 1, 2), _digits(3, 3, 1, 1), _digits(2, 2, 2, 2), _digits(2, 2, 2, 3)],
    "gcd": _span("value", (1, 20), (20, 100), (100, 400), (400, 1000)),
    "lcm": _span("value", (2, 15), (10, 30), (20, 60), (50, 100)),
    "count_bits": _span("n", (1, 255), (256, 4095), (4096, 65535), (65536, 2**24)),
    "letter_counting": _span("words", (1, 2), (3, 5), (6, 9), (10, 15)),
    "spell_backward": _span("word_len", (3, 4), (5, 6), (7, 8), (9, 10)),
    "base_conversion": [_bases(4, 0, 40), _bases(4, 32, 255), _bases(6, 128, 511), _bases(10, 256, 1023)],
}

QUICK_FAMILIES = ("base_conversion", "chain_sum", "count_bits", "gcd", "lcm", "products", "spell_backward")
"""The families whose prompts stay under 32 tokens: the set "quick", on which a step of the built-in student costs a third."""
