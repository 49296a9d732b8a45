"""The page at ``/``: one file of the package, which asks nothing of any other server."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

__all__ = ["HEADERS", "PAGE"]

PAGE = Path(__file__).with_suffix(".html").read_text("utf-8")


def _policy(page: str) -> str:
    """Content security policy: this script, this style, and this server alone."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in found)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {"Content-Security-Policy": _policy(PAGE), "Referrer-Policy": "no-referrer"}
