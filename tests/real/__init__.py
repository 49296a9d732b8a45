"""What the tests with real weights ask of a model, and what llama.cpp answered."""
