"""The bodies of requests: OpenAI's fields, sampling under vLLM's names, and the fusion of each request."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "ChatRequest",
    "ChatTemplateFields",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "TokenizeRequest",
]

MAX_TOKENS = 1 << 20
MAX_ENTRIES = 1 << 12
Message = dict[str, Any]
T = TypeVar("T")


class _FailFast(FailFast):
    __hash__ = object.__hash__  # which types of a union need


# A list of a million mistakes has one error: a report of all would take gigabytes.
Checked = Annotated[list[T], _FailFast()]


class Body(BaseModel):
    """A body that refuses unknown fields: a misspelt option would otherwise do nothing."""

    model_config = ConfigDict(extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _with_few_mistakes(cls, given: Any) -> Any:
        """Bound the mistakes of mappings for the same reason: leave out all unknown fields but the first."""
        if not isinstance(given, dict):
            return given
        for name, value in given.items():
            if isinstance(value, dict) and len(value) > MAX_ENTRIES:
                text = f"{name:.80} has {len(value)} entries; at most {MAX_ENTRIES} are taken"
                raise PydanticCustomError("too_long", "{text}", {"text": text})
        unknown = next((name for name in given if name not in cls.model_fields), None)
        return {name: given[name] for name in (*cls.model_fields, unknown) if name in given}


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Fusion(Body):
    """How a request fuses its experts; fields that are None are the model's. See `dlf.Rule`."""

    experts: Checked[str] | None = Field(None, max_length=16)
    combine: str | None = None
    match: str | None = None
    alpha: Checked[float | None] | dict[str, float | None] | None = None
    alpha_max: float | Checked[float] | dict[str, float] | None = None
    mix: Checked[float | None] | dict[str, float | None] | None = None
    large_weight: float | None = None
    plausibility: float | None = None
    gate: str | None = None
    gate_threshold: float | None = None
    negative_prompt: str | Checked[Message] | None = None
    positive_prompt: str | Checked[Message] | None = None
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
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    seed: int | None = None
    stop: str | Checked[str] | None = None
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
    stop_token_ids: Checked[int] | None = Field(None, max_length=256)
    bad_words: Checked[str] | None = Field(None, max_length=256)
    ignore_eos: bool = False
    return_token_ids: bool = False
    # Form of the answer, under vLLM's names.
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Checked[str] | None = None
    guided_grammar: str | None = None
    # Accepted, as clients send them, and without a meaning here.
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None


class CompletionRequest(GenerationRequest):
    """Body of ``/v1/completions``."""

    prompt: str | Checked[str] | Checked[int] | Checked[Checked[int]]
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

    tools: Checked[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False


class ChatRequest(GenerationRequest, ChatTemplateFields):
    """Body of ``/v1/chat/completions``."""

    messages: Checked[Message] = Field(min_length=1, max_length=4096)
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
    messages: Checked[Message] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    """Body of ``/detokenize``."""

    model: str | None = None
    tokens: Checked[int]
