"""``python -m bench serve``: answers over HTTP beside the same engine in process, and beside llama.cpp's server."""
