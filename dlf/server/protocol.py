"""The bodies of requests: OpenAI's fields, sampling under vLLM's names, and the fusion of each request."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChatRequest",
    "ChatTemplateFields",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "TokenizeRequest",
]

MAX_TOKENS = 1 << 20
Message = dict[str, Any]


class Body(BaseModel):
    """A body that refuses unknown fields: a misspelt option would otherwise do nothing."""

    model_config = ConfigDict(extra="forbid", strict=False)


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Fusion(Body):
    """How a request fuses its experts; fields that are None are the model's. See `dlf.Rule`."""

    experts: list[str] | None = Field(None, max_length=16)
    combine: str | None = None
    match: str | None = None
    alpha: list[float | None] | dict[str, float | None] | None = None
    alpha_max: float | list[float] | dict[str, float] | None = None
    mix: list[float | None] | dict[str, float | None] | None = None
    large_weight: float | None = None
    plausibility: float | None = None
    gate: str | None = None
    gate_threshold: float | None = None
    negative_prompt: str | list[Message] | None = None
    positive_prompt: str | list[Message] | None = None
    guidance_scale: float | None = None
    speculate: Literal["auto", False] | None = None
    return_alpha: bool = False


class GenerationRequest(Fusion):
    """What completions and chats share."""

    model: str
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, float] | None = Field(None, max_length=1024)
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    n: int | None = Field(None, ge=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    user: str | None = None
    # Sampling under vLLM's names.
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stop_token_ids: list[int] | None = Field(None, max_length=256)
    bad_words: list[str] | None = Field(None, max_length=256)
    ignore_eos: bool = False
    # Form of the answer, under vLLM's names.
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # Accepted, as clients send them, and without a meaning here.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None


class CompletionRequest(GenerationRequest):
    """Body of ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = Field(None, ge=1)
    echo: bool = False
    logprobs: int | bool | None = None
    suffix: str | None = None


class ResponseFormat(Body):
    """Form of an answer."""

    type: str
    json_schema: dict[str, Any] | None = None


class ChatTemplateFields(Body):
    """What a chat template takes, under the names of vLLM."""

    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


class ChatRequest(GenerationRequest, ChatTemplateFields):
    """Body of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    response_format: ResponseFormat | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class TokenizeRequest(ChatTemplateFields):
    """Body of ``/tokenize``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    """Body of ``/detokenize``."""

    model: str | None = None
    tokens: list[int]
