"""The other routes: models, tokens, metrics."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI
from serving import GREEDY, KEY, PROMPT, TALK, Running

import dlf


def test_models_tokens_and_metrics(server: Running, client: OpenAI, engine: dlf.Engine) -> None:
    assert [one.id for one in client.models.list()] == ["pair", "pair/a", "pair/b", "pair/cfg"]
    assert client.models.retrieve("pair/b").id == "pair/b"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    found = server.post("/tokenize", {"model": "pair", "prompt": PROMPT}).json()
    assert found == {"tokens": engine.tokenizer.encode(PROMPT), "count": found["count"], "max_model_len": 200}
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json()["prompt"] == PROMPT
    chat = server.post("/tokenize", {"messages": TALK}).json()["tokens"]
    messages = [{"role": "system", "content": "Be brief."}, TALK[1]]
    assert chat == engine.tokenizer.encode(engine.tokenizer.apply_chat_template(messages), add_special_tokens=False)
    before = client.completions.create(prompt=PROMPT, **GREEDY, extra_body={"return_alpha": True})
    assert before.usage is not None
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['dlf_generated_tokens_total{model="pair"}']) >= 8
    assert float(figures['dlf_traced_tokens_total{model="pair"}']) >= before.usage.completion_tokens
    assert float(figures['dlf_requests_total{endpoint="completions",model="pair",status="200"}']) >= 1
    for name in ("kv_cache_use", "put_back_sequences"):
        assert float(figures[f'dlf_{name}{{model="pair"}}']) == 0
    assert 'dlf_time_to_first_token_seconds_count{model="pair"}' in figures
    assert httpx.get(f"{server.url}/version").json() == {"version": dlf.__version__}
