"""SentencePiece's BPE in the obvious way: merge the best pair again and again."""

from __future__ import annotations

from collections.abc import Mapping


def encode(text: str, scores: Mapping[str, float], prefix: bool) -> list[str]:
    """Return the tokens of a text; characters without a token are bytes."""
    symbols = list((" " * prefix + text).replace(" ", "▁"))
    while True:
        pairs = [
            (scores[a + b], -i) for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in scores
        ]
        if not pairs:
            break
        best = -max(pairs)[1]
        symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
    found = []
    for symbol in symbols:
        found += [symbol] if symbol in scores else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    return found
