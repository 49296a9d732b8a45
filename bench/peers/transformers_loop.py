"""Fused decoding as the paper's authors ran it: a Python loop over three models of ``transformers`` with KV caches.

Each step tries 21 values of alpha and keeps the one whose fused distribution is as far from the large model, in both KL
divergences, as the expert is from its base (Fan et al., arXiv 2406.15480, section 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench.peers.paper_grid import torch_grid


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Return the folder; transformers reads the checkpoint itself."""
    return folder


class TransformersLoop:
    """Large model, expert and base; with `alpha` None the grid is searched at every step."""

    def __init__(self, paths: Sequence[Path], threads: int, alpha: float | None, device: str) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        torch.set_num_threads(threads)
        logging.disable_progress_bar()
        models = [AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval() for path in paths]
        self.models = [model.to(device) for model in models]
        self.alpha, self.device = alpha, device
        self.weight_bytes = sum(_read_bytes(model) for model in self.models)
        self.settings = {"alpha": "21 values" if alpha is None else alpha, "attention": "sdpa", "cache": "dynamic"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        caches: list[object] = [None] * len(self.models)
        tokens = torch.tensor([prompt], device=self.device)
        while True:
            logits = []
            with torch.inference_mode():
                for i, model in enumerate(self.models):
                    output = model(tokens, past_key_values=caches[i], use_cache=True, logits_to_keep=1)
                    caches[i] = output.past_key_values
                    logits.append(output.logits[0, -1])
            large, expert, base = (one.float() for one in logits)
            weight = self.alpha
            if weight is None:
                ((_, weight),) = torch_grid(large[None], base[None], expert[None, None])
            token = int((large + weight * (expert - base)).argmax())
            yield token
            tokens = torch.tensor([[token]], device=self.device)


def _read_bytes(model: torch.nn.Module) -> int:
    embedding = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters() if weight is not embedding)


def load(
    paths: Sequence[Path], weights: str, threads: int, context: int, alpha: float | None = None, device: str = "cpu"
) -> TransformersLoop:
    return TransformersLoop(paths, threads, alpha, device)
