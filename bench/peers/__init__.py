"""The same work on other engines."""
