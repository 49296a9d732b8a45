"""Mistral Small 3 and Ministral 3 with images (Mistral AI, 2025): the text part is Mistral or Ministral 3."""

from __future__ import annotations

from dlf.families.family import Wrapper

__all__ = ["WRAPPER"]

WRAPPER = Wrapper("Mistral3ForConditionalGeneration", "mistral3", "mistral", {"tie_word_embeddings": True})
