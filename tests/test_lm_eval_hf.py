"""A model's files and arguments have the same effect as in the ``hf`` class of lm-evaluation-harness."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dlf
from dlf import zoo

pytest.importorskip("lm_eval")

from dlf.lm_eval import DLF  # noqa: E402
from dlf.lm_eval import arguments as lm_eval_arguments  # noqa: E402 (skipped without the harness)
from dlf.text.open_ended import open_ended  # noqa: E402

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHAT.replace("{{ m.content }}", "{{ m.content | trim }}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHAT


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def changed(folder: Path, model: str = "small-base", **files: dict[str, Any]) -> Path:
    """Copy a model and change values in its files; a file with no values is removed."""
    shutil.copytree(zoo.path(model), folder)
    for name, values in files.items():
        path = folder / f"{name}.json"
        if values:
            path.write_text(json.dumps(json.loads(path.read_text()) | values))
        else:
            path.unlink()
    return folder


def hf(folder: Path, **options: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, **options)


def ours(folder: Path, **options: Any) -> DLF:
    return DLF(pretrained=folder, dtype="float32", threads=1, batch_size=1, **options)


def test_a_long_text_is_read_as_far_as_the_model_reads(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", config={"max_position_embeddings": 6000}, tokenizer_config={"model_max_length": 9})
    text = " ".join(f"Question {i}: what is {i} plus {i * 7}?" for i in range(250))
    mine, theirs = ours(folder), hf(folder)
    assert mine.max_length == theirs.max_length == 6000 and len(mine.tok_encode(text)) > 4096
    found, expected = (model.loglikelihood_rolling(requests((text,)))[0] for model in (mine, theirs))
    assert found == pytest.approx(expected, rel=1e-4)
    assert ours(folder, max_length=100).max_length == ours(folder, max_context=100).max_length == 100


def test_an_engine_with_a_context_by_default_is_no_surprise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = changed(tmp_path / "m", config={"max_position_embeddings": 6000})
    for length, warnings in ((None, 1), (100, 0), (6000, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING), dlf.Engine(folder, threads=1, max_context=length) as engine:
            assert DLF(engine=engine).max_length == (length or 4096)
        assert sum("max_context=6000" in message for message in caplog.messages) == warnings


def test_a_recipe_says_its_context_itself(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", config={"max_position_embeddings": 6000})
    recipe = tmp_path / "recipe.yaml"
    expert = f"experts: [{{model: {zoo.path('math-expert')}, base: {zoo.path('small-base')}}}]\n"
    for more, length in (("", 6000), ("engine: {max_context: 50}\n", 50), (expert, 512)):
        recipe.write_text(f"large: {folder}\n{more}")
        assert DLF(recipe=recipe, threads=1).max_length == length


def test_a_model_with_two_kinds_of_frequencies_reads_short_texts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    rope |= {"short_factor": [1.0] * 12, "long_factor": [4.0] * 12}
    folder = changed(tmp_path / "m", config={"rope_parameters": rope})
    with caplog.at_level(logging.WARNING):
        assert lm_eval_arguments.model_length({"large": folder, "experts": []}) == 64
    assert "max_length, up to 512" in caplog.text


def test_memory_bounds_the_batch_first_and_then_the_context(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rooms = [0]

    def make(**arguments: Any) -> Any:
        if arguments["max_batch"] * arguments["max_context"] > rooms[-1]:
            raise MemoryError("the KV cache does not fit")
        return SimpleNamespace(**arguments)

    monkeypatch.setattr(lm_eval_arguments, "Engine", make)
    for room, batch, context in ((1 << 30, 8, 32768), (1 << 16, 2, 32768), (10_000, 1, 8192), (5000, 1, 4096)):
        rooms.append(room)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made: Any = lm_eval_arguments.make_engine({"max_batch": 8}, 32768)
        assert (made.max_batch, made.max_context) == (batch, context)
        assert len(caplog.messages) == (batch < 8) + (context < 32768)
    rooms.append(1)
    with pytest.raises(MemoryError):
        lm_eval_arguments.make_engine({}, 100)


@pytest.fixture(scope="module", params=[CHAT, TRIMMED, NO_SYSTEM], ids=["plain", "trimmed", "no-system"])
def chats(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DLF, Any]]:
    folder = changed(tmp_path_factory.mktemp("chat") / "m", tokenizer_config={"chat_template": request.param})
    model = ours(folder)
    yield model, hf(folder)
    model.engine.close()


@pytest.mark.parametrize("prefix", ["def f(x):\n", "\n```python\n", "Answer: ", "end", "user", "a  b", "", " "])
def test_the_beginning_of_an_answer_stays_open(chats: tuple[DLF, Any], prefix: str) -> None:
    history = [{"role": "system", "content": "Be"}, {"role": "user", "content": prefix or "Hi"}]
    history.append({"role": "assistant", "content": prefix})
    mine, theirs = (model.apply_chat_template(history, add_generation_prompt=False) for model in chats)
    assert mine == theirs
    mine, theirs = (model.apply_chat_template(history[:2]) for model in chats)
    assert mine == theirs


def test_a_template_that_changes_the_beginning_of_an_answer() -> None:
    history = [{"role": "assistant", "content": "Hello"}]
    for template in ("", "HELLO"):
        with pytest.raises(ValueError, match="leaves out the beginning of the answer, 'Hello'"):
            open_ended(lambda messages, text=template: text, history)
    with pytest.raises(ValueError, match="no text to continue"):
        open_ended(str, [{"role": "assistant", "content": None}])


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"eos_token_id": None}, "generation_config": {}},
        {"config": {"eos_token_id": 5}, "generation_config": {}},
        {"tokenizer_config": {"eos_token": "<s>"}},
    ],
    ids=["tokenizer", "not-the-config", "not-the-tokenizer"],
)
def test_a_text_ends_where_that_of_hf_ends(tmp_path: Path, files: dict[str, Any]) -> None:
    folder = changed(tmp_path / "m", "math-expert", **files)
    mine, theirs = ours(folder), hf(folder)
    prompt = zoo.problems("math")[0].prompt
    untils: list[Any] = [[], "</s>", ["</s>", "\n"], ["<s>"], ["####"]]
    for until in untils:
        texts = [
            model.generate_until(requests((prompt, {"until": until, "max_gen_toks": 60})), disable_tqdm=True)
            for model in (mine, theirs)
        ]
        assert texts[0] == texts[1] != [""]


def test_answers_come_after_thoughts() -> None:
    folder = Path(zoo.path("math-expert"))
    asked = requests((zoo.problems("math")[0].prompt, {"until": [], "max_gen_toks": 60}))
    plain = ours(folder)
    dot = plain.engine.tokenizer.encode(".", add_special_tokens=False)[-1]
    for end in (" Then", dot, str(dot), "nowhere", 1000):
        found = ours(folder, think_end_token=end).generate_until(asked, disable_tqdm=True)
        assert found == hf(folder, think_end_token=end).generate_until(asked, disable_tqdm=True)
        assert found[0] and found != plain.generate_until(asked, disable_tqdm=True) or end in ("nowhere", 1000)
    with pytest.raises(ValueError, match="enable_thinking needs think_end_token"):
        ours(folder, enable_thinking=True)
    with pytest.raises(ValueError, match="for generative tasks"):
        ours(folder, enable_thinking=True, think_end_token="x").loglikelihood(requests(("a", " b")))


def test_variables_reach_the_chat_template(tmp_path: Path) -> None:
    template = "{{ messages[0].content }} {{ tone }} {{ enable_thinking }}"
    folder = changed(tmp_path / "m", tokenizer_config={"chat_template": template})
    options: dict[str, Any] = {"chat_template_args": {"tone": "kind"}, "enable_thinking": False}
    history = [{"role": "user", "content": "Hi"}]
    texts = [make(folder, **options).apply_chat_template(history) for make in (ours, hf)]
    assert texts == ["Hi kind False"] * 2


@pytest.mark.parametrize("processor", [True, False])
@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_the_beginning_of_a_text_is_added_as_by_hf(tmp_path: Path, processor: bool, add_bos_token: bool | None) -> None:
    folder = changed(tmp_path / "m")
    if not processor:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    mine, theirs = ours(folder, add_bos_token=add_bos_token), hf(folder, add_bos_token=add_bos_token)
    for text in ("Hello", "<s>Hello"):
        assert mine.tok_encode(text) == theirs.tok_encode(text)


def test_arguments_of_hf_that_mean_nothing_here_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    folder = zoo.path("small-base")
    with caplog.at_level(logging.WARNING):
        usual = {"trust_remote_code": False, "use_fast_tokenizer": True, "parallelize": False, "logits_cache": True}
        honoured = {"tokenizer": folder, "revision": "abc", "backend": "causal", "torch_dtype": "torch.float32"}
        model = DLF(pretrained=folder, threads=1, peft=None, **usual, **honoured)
        assert not caplog.messages and model.engine.max_context == 512
        DLF(pretrained=folder, trust_remote_code=True, parallelize=True, device_map="auto", token="x", threads=1)
    assert [message.split()[0] for message in caplog.messages] == [
        "trust_remote_code",
        "parallelize",
        "device_map_option",
        "token",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"peft": "a"}, "peft .*recipe with 'large: M', 'base: M' and the expert 'adapter: A, alpha: 1'"),
        ({"delta": "a"}, "delta .*apply it"),
        ({"autogptq": True}, "weights=int8"),
        ({"gguf_file": "a.gguf"}, "FILE.gguf"),
        ({"load_in_4bit": True}, "weights=int4"),
        ({"truncation": True}, "cut on the left"),
        ({"backend": "seq2seq"}, "causal"),
        ({"tokenizer": object()}, "give a folder"),
        ({"recipe": "r.yaml", "revision": "v2"}, "revision.* go with pretrained"),
        ({"pretrained": "org/name", "subfolder": "x"}, "fetch it"),
    ],
)
def test_arguments_of_hf_that_would_change_results_are_refused(arguments: dict[str, Any], words: str) -> None:
    where = {} if "recipe" in arguments else {"pretrained": zoo.path("small-base"), "threads": 1}
    with pytest.raises(ValueError, match=words):
        DLF(**where | arguments)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    other = changed(tmp_path / "m", tokenizer_config={"eos_token": "<s>"})
    with pytest.raises(ValueError, match="not that of pretrained .another eos_token_id"):
        DLF(pretrained=zoo.path("small-base"), tokenizer=other, threads=1)


def test_revisions_and_folders_within(tmp_path: Path) -> None:
    changed(tmp_path / "m" / "inner")
    assert lm_eval_arguments.located(tmp_path / "m", "v2", "inner") == str(tmp_path / "m" / "inner")
    assert lm_eval_arguments.located("org/name", "v2", None) == "org/name@v2"
    assert lm_eval_arguments.located("org/name", 20240101, "") == "org/name@20240101"
    assert lm_eval_arguments.located("org/name", "main", None) == "org/name"
    assert dlf.Engine(lm_eval_arguments.located(tmp_path / "m", None, "inner"), threads=1).max_context == 512
