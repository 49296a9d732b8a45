"""Writes sizes for people."""

__all__ = ["binary"]


def binary(count: int) -> str:
    """Bytes in the unit that gives a short number, such as ``"1.5 GiB"``."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size >= 1024:
            size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
