"""Text to token ids and back: tokenizers, chat templates, layouts of prompts, and where a text stops."""
