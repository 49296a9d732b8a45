"""Experts of several kinds in one engine: what each lane reads, and which lanes run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.decoding import Reference

import dlf

PROMPT = "Question: what is the sum"
SHOTS = [("The quick brown", "fox"), ("def add", "(first)"), ("Ein Caf\u00e9", "zahlt")]
LONG = [(f"Question: {i} and {i + 1}?", f"the sum is {2 * i + 1}") for i in range(7)]


def fuse(large: np.ndarray, base: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    solved = dlf.fusion.solve(large[None], base[None], experts[None])
    return solved.alpha[0], solved.logits[0]


def texts(shots: list[tuple[str, str]]) -> str:
    return "".join(f"{question} {answer}\n\n" for question, answer in shots)


def test_an_in_context_expert_sees_examples_and_its_base_does_not(family: dict[str, Path]) -> None:
    expert = dlf.InContext(family["base"], SHOTS)
    with dlf.Engine(family["large"], [expert], threads=2) as engine:
        completion = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True)
        encode, vocab = engine.tokenizer.encode, engine.vocab_size
    reference = Reference(family["large"], family["base"], [family["base"]], vocab)
    prompts = [encode(texts(SHOTS) + PROMPT)]
    tokens, alpha = reference.generate(encode(PROMPT), 30, fuse, prompts)
    assert completion.tokens == tokens
    assert completion.experts == ["in-context"]
    assert completion.prompt_tokens == len(encode(PROMPT))
    np.testing.assert_allclose(completion.alpha, alpha, atol=1e-3)
    assert alpha.max() > 0


def test_examples_for_the_large_model(family: dict[str, Path]) -> None:
    with dlf.Engine(family["large"], [family["expert-a"]], base=family["base"], threads=2) as engine:
        completion = engine.generate(PROMPT, examples=SHOTS, max_new_tokens=20, ignore_eos=True)
        encode, vocab = engine.tokenizer.encode, engine.vocab_size
    reference = Reference(family["large"], family["base"], [family["expert-a"]], vocab)
    shots = encode(texts(SHOTS) + PROMPT)
    tokens, _ = reference.generate(shots, 20, fuse, [encode(PROMPT)], encode(PROMPT))
    assert completion.tokens == tokens
    assert completion.prompt_tokens == len(shots)


def test_each_model_has_its_own_template(family: dict[str, Path]) -> None:
    expert = dlf.Expert(family["expert-a"], family["base"], template="chat", base_template="[INST] {prompt} [/INST]")
    with dlf.Engine(family["large"], [expert], template="Q: {prompt}\nA:", threads=2) as engine:
        completion = engine.generate("why", max_new_tokens=20, ignore_eos=True)
        tokenizer, vocab = engine.tokenizer, engine.vocab_size
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "why"}])
    reference = Reference(family["large"], family["base"], [family["expert-a"]], vocab)
    tokens, _ = reference.generate(
        tokenizer.encode("Q: why\nA:"),
        20,
        fuse,
        [tokenizer.encode(chat, add_special_tokens=False)],
        tokenizer.encode("[INST] why [/INST]"),
    )
    assert completion.tokens == tokens


def test_messages(family: dict[str, Path]) -> None:
    talk = [{"role": "user", "content": "why"}]
    with dlf.Engine(family["large"], [family["expert-a"]], base=family["base"], threads=2) as engine:
        completion = engine.generate(messages=talk, max_new_tokens=9, ignore_eos=True)
        text = engine.tokenizer.apply_chat_template(talk)
        tokens = engine.tokenizer.encode(text, add_special_tokens=False)
        assert engine.generate(tokens, max_new_tokens=9, ignore_eos=True).tokens == completion.tokens
        several = engine.generate(messages=[talk, talk], max_new_tokens=9, ignore_eos=True)
        assert [one.tokens for one in several] == [completion.tokens] * 2
        pieces = list(engine.stream(messages=talk, max_new_tokens=9, ignore_eos=True))
        assert [piece.token for piece in pieces] == completion.tokens
        with pytest.raises(TypeError, match="one of the two"):
            engine.generate("why", messages=talk)
        with pytest.raises(TypeError, match="one of the two"):
            engine.generate()


def test_token_ids_and_templates_do_not_go_together(family: dict[str, Path]) -> None:
    with dlf.Engine(family["large"], [dlf.InContext(family["base"], SHOTS, name="shots")]) as engine:
        with pytest.raises(ValueError, match="token ids.*'shots'.*give text"):
            engine.generate([5, 6, 7])
        assert engine.generate([5, 6, 7], experts=[], max_new_tokens=2).tokens


def test_examples_that_do_not_fit(family: dict[str, Path]) -> None:
    many = LONG * 3
    with dlf.Engine(family["large"], [dlf.InContext(family["base"], many, name="shots")], max_context=200) as engine:
        with pytest.raises(ValueError, match=r"21 examples of expert 'shots'.*: (\d+) of the examples fit") as caught:
            engine.generate(PROMPT)
        most = int(str(caught.value).split(": ")[1].split()[0])
        with pytest.raises(ValueError, match="21 examples of the large model"):
            engine.generate(PROMPT, examples=many, experts=[])
        with pytest.raises(ValueError, match="alone is longer"):
            engine.generate(PROMPT * 40, examples=many[:1], experts=[])
    for count, fits in ((most, True), (most + 1, False)):
        engine = dlf.Engine(family["large"], [dlf.InContext(family["base"], many[:count])], max_context=200)
        if fits:
            assert engine.generate(PROMPT, max_new_tokens=1).tokens
        else:
            with pytest.raises(ValueError, match="fit"):
                engine.generate(PROMPT, max_new_tokens=1)


def test_lanes_that_read_the_same_are_one(family: dict[str, Path]) -> None:
    base = family["base"]
    experts = [
        dlf.Expert(family["expert-a"], base),
        dlf.Expert(family["expert-b"], base),
        dlf.InContext(base, SHOTS),
        dlf.InContext(base, SHOTS, name="again"),
        dlf.InContext(base, SHOTS[:1], name="one"),
        dlf.Expert(family["expert-a"], base, name="chat", template="chat"),
    ]
    with dlf.Engine(family["large"], experts) as engine:
        lanes = engine._ensemble.lanes
        assert len(lanes.models) == 4  # large, base and two experts
        assert lanes.counts() == [1, 2, 3, 1]  # expert-a with two prompts; the base plain, with examples, with one
        assert len({base for _, base in lanes.pairs}) == 1
        completion = engine.generate(PROMPT, max_new_tokens=5)
        assert completion.alpha.shape == (5, 6)


@pytest.mark.parametrize("combine", ["select", "centroid", "joint"])
def test_experts_chosen_for_a_request(family: dict[str, Path], combine: str) -> None:
    base = family["base"]
    kinds = {
        "a": dlf.Expert(family["expert-a"], base, name="a"),
        "b": dlf.Expert(family["expert-b"], base, name="b"),
        "shots": dlf.InContext(base, SHOTS, name="shots"),
    }
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    with dlf.Engine(family["large"], list(kinds.values()), combine=combine, threads=2) as engine:
        with dlf.Engine(family["large"], [kinds["a"]], combine="static", alpha=[0.0]) as alone:
            nobody = engine.generate(PROMPT, experts=[], **options)
            assert nobody.tokens == alone.generate(PROMPT, **options).tokens
            assert nobody.alpha.shape == (12, 0) and nobody.experts == []
        for names in (["a"], ["shots"], ["b", "a"], ["a", "b", "shots"]):
            some = engine.generate(PROMPT, experts=names, **options)
            rest = [name for name in kinds if name in names]
            with dlf.Engine(family["large"], [kinds[name] for name in rest], combine=combine, threads=2) as alone:
                expected = alone.generate(PROMPT, **options)
            assert some.tokens == expected.tokens
            assert some.experts == rest
            assert np.array_equal(some.alpha, expected.alpha)
            assert np.array_equal(some.logprobs, expected.logprobs)
        mixed = [threading.Thread(target=engine.generate, args=(PROMPT,), kwargs={"experts": [name]} | options)
                 for name in kinds]  # fmt: skip
        for thread in mixed:
            thread.start()
        for thread in mixed:
            thread.join()
        with pytest.raises(ValueError, match="no expert is called 'c'; there are: a, b, shots"):
            engine.generate(PROMPT, experts=["c"])
        with pytest.raises(TypeError, match="list of names"):
            engine.generate(PROMPT, experts="a")


def test_experts_come_and_go(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from dlf.model import load_model

    loaded: list[str] = []

    def load(name: Any, *rest: Any) -> Any:
        loaded.append(Path(name).name)
        return load_model(name, *rest)

    monkeypatch.setattr("dlf.ensemble.load_model", load)
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    with dlf.Engine(family["large"], [family["expert-a"]], base=family["base"]) as engine:
        before = engine.generate(PROMPT, **options)
        engine.add_expert(dlf.InContext(None, SHOTS))
        engine.add_expert(family["expert-b"])
        assert engine.experts == ["expert-a", "in-context", "expert-b"]
        assert loaded == ["large", "expert-a", "base", "expert-b"]
        assert engine.generate(PROMPT, **options).alpha.shape == (12, 3)
        assert engine.generate(PROMPT, experts=["expert-a"], **options).tokens == before.tokens
        engine.remove_expert("in-context")
        engine.remove_expert("expert-a")
        assert engine.experts == ["expert-b"]
        with pytest.raises(ValueError, match="no expert is called"):
            engine.remove_expert("expert-a")
        with pytest.raises(FileNotFoundError):
            engine.add_expert(dlf.Expert(family["base"].parent / "nowhere"))
        with pytest.raises(ValueError, match="finite"):
            engine.add_expert(dlf.Expert(family["expert-a"], base=family["base"], alpha=float("nan")))
        assert engine.experts == ["expert-b"]
        assert engine.generate(PROMPT, **options).alpha.shape == (12, 1)
        stream = engine.stream(PROMPT, **options)
        next(stream)
        with pytest.raises(RuntimeError, match="1 requests are running"):
            engine.remove_expert("expert-b")
        stream.close()
        engine.remove_expert("expert-b")
        assert engine.generate(PROMPT, **options).alpha.shape == (12, 0)
    with pytest.raises(RuntimeError, match="closed"):
        engine.add_expert(family["expert-a"])


def test_names_that_are_not_unique_cannot_be_chosen(family: dict[str, Path]) -> None:
    experts = [dlf.InContext(None, SHOTS), dlf.InContext(None, SHOTS[:1])]
    with dlf.Engine(family["large"], experts, base=family["base"]) as engine:
        assert engine.generate(PROMPT, max_new_tokens=1).experts == ["in-context", "in-context"]
        with pytest.raises(ValueError, match="2 experts are called 'in-context'"):
            engine.generate(PROMPT, experts=["in-context"])


def test_the_prefix_cache_changes_nothing_but_the_time(family: dict[str, Path]) -> None:
    expert = dlf.InContext(family["base"], LONG)
    prompts = [PROMPT, "lazy dog " * 9, PROMPT, "x"]
    options: dict[str, Any] = {"max_new_tokens": 15, "ignore_eos": True, "temperature": 1.0, "seed": 5}
    found = []
    for size in (0, 1 << 30):
        with dlf.Engine(family["large"], [expert], max_batch=2, threads=2, prefix_cache_bytes=size) as engine:
            completions = engine.generate(prompts, examples=LONG[:6], **options)
            completions += engine.generate(prompts[0], num_return_sequences=3, examples=LONG[:6], **options)
            found.append(completions)
            length = len(engine.tokenizer.encode(texts(LONG)))
            cached = [one.cached_tokens for one in completions]
            if size == 0:
                assert cached == [0] * 7
            else:
                assert cached[0] == 0 and min(cached[1:]) > 1.5 * length  # both examples except for their ends
                assert cached[4] == cached[2] > cached[3] + 2 * len(engine.tokenizer.encode(PROMPT)) - 4
    for one, other in zip(*found, strict=True):
        assert one.tokens == other.tokens
        assert np.array_equal(one.logprobs, other.logprobs)
        assert np.array_equal(one.alpha, other.alpha)


@pytest.mark.parametrize("size", [-1, 1 << 60])
def test_impossible_prefix_caches(family: dict[str, Path], size: int) -> None:
    with pytest.raises(ValueError, match="prefix_cache_bytes"):
        dlf.Engine(family["large"], prefix_cache_bytes=size)


def test_a_base_without_a_chat_template_needs_its_own(family: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(family["base"], tmp_path / "base"))
    for file in base.glob("chat_template*"):
        file.unlink()
    config = base / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"no_template"'))
    with pytest.raises(ValueError, match="base_template"):
        dlf.Engine(family["large"], [family["expert-a"]], base=base, template="chat")
    expert = dlf.Expert(family["expert-a"], base, base_template="{prompt}")
    with dlf.Engine(family["large"], [expert], template="chat") as engine:
        assert engine.generate("why", max_new_tokens=2).tokens


def test_defaults(family: dict[str, Path]) -> None:
    with dlf.Engine(family["large"], defaults={"max_new_tokens": 3, "ignore_eos": True}) as engine:
        assert len(engine.generate(PROMPT).tokens) == 3
        assert len(engine.generate(PROMPT, max_new_tokens=4).tokens) == 4
    with pytest.raises(TypeError, match="no option is called"):
        dlf.Engine(family["large"], defaults={"max_tokens": 3})


@pytest.mark.parametrize("combine", ["select", "centroid", "joint"])
def test_an_anti_expert_has_a_given_weight(family: dict[str, Path], combine: str) -> None:
    base = family["base"]
    experts = [
        dlf.Expert(family["expert-a"], base, name="a", alpha_max=0.4),
        dlf.Expert(family["expert-b"], base, name="toxic", alpha=-0.5),
        dlf.InContext(base, SHOTS, alpha_max=3.0),
    ]
    with dlf.Engine(family["large"], experts, combine=combine, threads=2) as engine:
        encode, vocab = engine.tokenizer.encode, engine.vocab_size
        completion = engine.generate(PROMPT, max_new_tokens=25, ignore_eos=True)
        only = engine.generate(PROMPT, experts=["toxic"], max_new_tokens=25, ignore_eos=True)

    def fuse(large: np.ndarray, base: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        options: dict[str, Any] = {"alpha": [None, -0.5, None], "alpha_max": [0.4, 2.0, 3.0]}
        solved = dlf.fusion.solve(large[None], base[None], experts[None], combine=combine, **options)
        return solved.alpha[0], solved.logits[0]

    reference = Reference(family["large"], base, [family["expert-a"], family["expert-b"], base], vocab)
    prompt = encode(PROMPT)
    tokens, alpha = reference.generate(prompt, 25, fuse, [prompt, prompt, encode(texts(SHOTS) + PROMPT)])
    assert completion.tokens == tokens
    np.testing.assert_allclose(completion.alpha, alpha, atol=1e-3)
    assert np.all(completion.alpha[:, 1] == -0.5) and completion.alpha[:, 0].max() <= 0.4
    assert np.all(only.alpha == -0.5)


def test_given_weights_of_the_engine_and_of_experts(family: dict[str, Path]) -> None:
    experts = [dlf.Expert(family["expert-a"], alpha=1.0), family["expert-b"]]
    with dlf.Engine(family["large"], experts, base=family["base"], alpha=[None, 0.5], combine="static") as engine:
        assert np.all(engine.generate(PROMPT, max_new_tokens=3).alpha == [1.0, 0.5])
    with pytest.raises(ValueError, match="expert 1 has none"):
        dlf.Engine(family["large"], experts, base=family["base"], combine="static")
    with pytest.raises(ValueError, match="alpha holds 1 weights for 2 experts"):
        dlf.Engine(family["large"], experts, base=family["base"], alpha=[0.5])
