"""Questions whose answer stands in a text that contradicts what models remember."""
