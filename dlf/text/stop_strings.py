"""Finds where a text stops."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text that arrives in pieces, some of which are not shown.

    Text is held back only as long as it may be the beginning of a stop string. Each string has a Knuth-Morris-Pratt
    automaton, so the time is linear in the text, however it is split.

    Parameters
    ----------
    strings : str or Sequence[str]
        The stop strings; with none, all text passes.

    """

    def __init__(self, strings: str | Sequence[str] = ()) -> None:
        strings = (strings,) if isinstance(strings, str) else strings
        self.strings = tuple(strings)
        if not all(self.strings):
            raise ValueError("stop_strings holds an empty string: leave it out")
        self._borders = [_borders(string) for string in self.strings]
        self._matched = [0] * len(self.strings)
        self._held: deque[tuple[str, bool]] = deque()  # texts, and whether they are shown
        self._size = 0  # characters in all of them
        self._stopped = False

    def push(self, text: str, shown: bool = True) -> tuple[str, bool]:
        """Take the next piece of text.

        Parameters
        ----------
        text : str
            Text that follows what was pushed before.
        shown : bool
            Whether it is part of the shown text; a special token only counts for stop strings.

        Returns
        -------
        text : str
            Text that can be shown now: it lies before any stop string.
        stopped : bool
            Whether a stop string was found; from then on no text is returned.

        """
        if self._stopped:
            return "", True
        for position, character in enumerate(text):
            longest = 0
            for index, string in enumerate(self.strings):
                if self._advance(index, character) == len(string):
                    longest = max(longest, len(string))
            if longest:
                self._hold(text[: position + 1], shown)
                self._stopped = True
                return self._release(longest), True
        self._hold(text, shown)
        return self._release(max(self._matched, default=0)), False

    def flush(self) -> str:
        """End the text.

        Returns
        -------
        str
            Text that was held back and did not become a stop string.

        """
        self._matched = [0] * len(self.strings)
        return "" if self._stopped else self._release(0)

    def _hold(self, text: str, shown: bool) -> None:
        self._held.append((text, shown))
        self._size += len(text)

    def _release(self, kept: int) -> str:
        """Release the held text but for its last `kept` characters; return its shown part."""
        released = []
        while self._size > kept:
            text, shown = self._held.popleft()
            certain = min(self._size - kept, len(text))
            if shown:
                released.append(text[:certain])
            if certain < len(text):
                self._held.appendleft((text[certain:], shown))
            self._size -= certain
        return "".join(released)

    def _advance(self, index: int, character: str) -> int:
        string, borders = self.strings[index], self._borders[index]
        matched = self._matched[index]
        while matched and string[matched] != character:
            matched = borders[matched - 1]
        matched += string[matched] == character
        self._matched[index] = matched
        return matched


def _borders(string: str) -> list[int]:
    """Length, for every prefix, of its longest proper prefix that is also its suffix."""
    borders = [0] * len(string)
    length = 0
    for position in range(1, len(string)):
        while length and string[position] != string[length]:
            length = borders[length - 1]
        length += string[position] == string[length]
        borders[position] = length
    return borders
