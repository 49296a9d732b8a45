"""dlf as a model of lm-evaluation-harness: the harness's own command, and its ``hf`` class compared with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import dlf
from dlf import zoo

lm_eval = pytest.importorskip("lm_eval")

from dlf.lm_eval import DLF  # noqa: E402 (skipped without the harness)

ROOT = Path(__file__).parents[1]
TEXTS = [problem.prompt + " #### " + problem.answer for task in zoo.tasks() for problem in zoo.problems(task)[:5]]
CHOICES = ["3", "14", "the 15th of May", " yes and no"]


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def pairs() -> list[Any]:
    found = [(problem.prompt, f" {choice}") for problem in zoo.problems("math")[:4] for choice in CHOICES]
    return requests(*found, ("", TEXTS[0]), ("The sum is ", "12"), (TEXTS[0] + "\n\n" + TEXTS[1], " #### 3"))


@pytest.fixture(scope="module")
def hf() -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(zoo.path("large-base")), device="cpu", dtype="float32", batch_size=4, max_length=128)


@pytest.fixture(scope="module")
def ours() -> Iterator[DLF]:
    model = DLF(pretrained=zoo.path("large-base"), dtype="float32", batch_size="4", max_length=128, threads=2)
    assert model.batch_size == 4 and model.max_length == 128
    yield model
    model.engine.close()


def test_loglikelihood_is_that_of_hf(ours: DLF, hf: Any) -> None:
    mine, theirs = ours.loglikelihood(pairs()), hf.loglikelihood(pairs())
    np.testing.assert_allclose([one[0] for one in mine], [one[0] for one in theirs], atol=1e-3)
    assert [one[1] for one in mine] == [one[1] for one in theirs]


def test_loglikelihood_of_what_greedy_decoding_gives(ours: DLF) -> None:
    prompt = "4 * 24 = 96, 5 *"  # a long greedy text
    text = ours.engine.generate(prompt, max_new_tokens=12).text
    [(logprob, greedy)] = ours.loglikelihood(requests((prompt, text)))
    assert greedy and logprob < 0


def test_too_long_contexts_are_cut_on_the_left(ours: DLF, hf: Any) -> None:
    long = requests((" ".join(TEXTS), " 12"), (" ".join(TEXTS), " 12 and 13"))
    mine, theirs = ours.loglikelihood(long, disable_tqdm=True), hf.loglikelihood(long, disable_tqdm=True)
    np.testing.assert_allclose([one[0] for one in mine], [one[0] for one in theirs], atol=1e-3)


def test_rolling_loglikelihood_is_that_of_hf(ours: DLF, hf: Any) -> None:
    texts = requests(*((text,) for text in TEXTS), ("\n".join(TEXTS),), ("x",))
    mine, theirs = ours.loglikelihood_rolling(texts), hf.loglikelihood_rolling(texts)
    np.testing.assert_allclose(mine, theirs, atol=1e-3, rtol=1e-6)


def test_generated_texts_are_those_of_hf(ours: DLF, hf: Any) -> None:
    contexts = [problem.prompt for problem in zoo.problems("math")[:6]] + [" ".join(TEXTS)]
    for options in ({"until": ["\n", "."], "max_gen_toks": 24}, {"until": "e", "do_sample": False, "max_gen_toks": 9}):
        asked = requests(*((context, options) for context in contexts))
        assert ours.generate_until(asked) == hf.generate_until(asked)


def test_repeats_are_drawn_anew(ours: DLF) -> None:
    options = {"until": [], "do_sample": True, "temperature": 1.5, "max_gen_toks": 16}
    texts = ours.generate_until(requests(*([("Q: ", options)] * 4)))
    assert len(set(texts)) > 1
    with pytest.raises(ValueError, match="context of 128"):
        ours.generate_until(requests(("x", {"max_gen_toks": 128})))
    with pytest.raises(TypeError, match="no option is called 'num_beams'"):
        ours.generate_until(requests(("x", {"num_beams": 2, "max_gen_toks": 8})))


def test_results_are_put_into_the_harness_cache(ours: DLF, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[str, Any, Any]] = []
    monkeypatch.setattr(ours.cache_hook, "add_partial", lambda *entry: kept.append(entry))
    answers = ours.loglikelihood(requests(("a", " b")))
    totals = ours.loglikelihood_rolling(requests(("a b",)))
    texts = ours.generate_until(requests(("a", {"until": [], "max_gen_toks": 4})))
    assert kept == [
        ("loglikelihood", ("a", " b"), answers[0]),
        ("loglikelihood_rolling", ("a b",), totals[0]),
        ("generate_until", ("a", {"until": [], "max_gen_toks": 4}), texts[0]),
    ]


def test_models_that_lay_out_their_prompts(family: dict[str, Path]) -> None:
    shots = [("Question: 1 and 2?", "the sum is 3")]
    with dlf.Engine(family["large"], [dlf.InContext(family["base"], shots)], threads=2) as engine:
        model = DLF(engine=engine, batch_size=1)
        [(logprob, _), (empty, _)] = model.loglikelihood(requests(("Question: 3 and 4? ", "the sum"), ("", "the sum")))
        assert logprob == engine.score("Question: 3 and 4?", " the sum").logprob
        assert empty == engine.score("<|begin|>", "the sum").logprob
        assert model.loglikelihood_rolling(requests(("the sum",))) == [empty]
        asked = requests(("Question: 3 and 4?", {"until": [], "max_gen_toks": 5}))
        assert model.generate_until(asked) == [engine.generate("Question: 3 and 4?", max_new_tokens=5).text]
        history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "It is"}]
        assert model.apply_chat_template(history[:1]).endswith("[user] Hello\n[assistant] ")
        assert model.apply_chat_template(history, add_generation_prompt=False).endswith("[assistant] It is")
        assert "message.role" in str(model.chat_template(True)) and model.tokenizer_name.startswith("dlf-")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, "recipe=FILE or pretrained=FOLDER"),
        ({"recipe": "a.yaml", "pretrained": "b"}, ValueError, "one of"),
        ({"recipe": "a.yaml", "expert": "b"}, ValueError, "go with pretrained"),
        ({"recipe": "/no/such.yaml"}, FileNotFoundError, "such"),
        ({"pretrained": "/no/such", "colour": 3}, TypeError, "colour"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        DLF(**arguments)


def write_task(folder: Path, name: str, documents: list[dict[str, Any]], **fields: Any) -> None:
    data = folder / f"{name}.json"
    data.write_text("\n".join(json.dumps(document) for document in documents))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | fields))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    problems = zoo.problems("math")[:3]
    write_task(
        tmp_path,
        "dlf_choice",
        [{"question": problem.prompt, "choices": CHOICES, "label": 1} for problem in problems],
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="choices",
        doc_to_target="label",
        metric_list=[{"metric": "acc"}],
    )
    write_task(
        tmp_path,
        "dlf_text",
        [{"text": text} for text in TEXTS[:4]],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    write_task(
        tmp_path,
        "dlf_answer",
        [{"question": problem.prompt, "answer": problem.answer} for problem in problems],
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 64},
        metric_list=[{"metric": "exact_match"}],
    )
    return tmp_path


@pytest.mark.parametrize("command", [["python", "-m", "dlf.lm_eval"], ["dlf", "lm-eval"]], ids=["module", "dlf"])
def test_the_command_of_the_harness(tasks: Path, command: list[str]) -> None:
    recipe = {
        "large": str(zoo.path("large-base")),
        "base": str(zoo.path("small-base")),
        "experts": [{"model": str(zoo.path("math-expert"))}],
        "engine": {"threads": 2},
    }
    (tasks / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    program = Path(sys.executable).parent / command[0]
    names = ["dlf_choice", "dlf_text", "dlf_answer"] if command[0] == "python" else ["dlf_choice"]
    arguments = {
        "--model": "dlf",
        "--model_args": f"recipe={tasks / 'recipe.yaml'}",
        "--tasks": ",".join(names),
        "--include_path": str(tasks),
        "--batch_size": "4",
        "--output_path": str(tasks / "results.json"),
    }
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
    done = subprocess.run(
        [program, *command[1:], *(word for pair in arguments.items() for word in pair)],
        env=os.environ | offline,
        cwd=tasks,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [written] = tasks.glob("results*.json")
    results = json.loads(written.read_text())["results"]
    assert list(results) == sorted(names) or set(results) == set(names)
    assert 0 <= results["dlf_choice"]["acc,none"] <= 1
    if command[0] == "python":
        with dlf.Engine.from_recipe(tasks / "recipe.yaml") as engine:
            prefix = [DLF(engine=engine).prefix_token_id]
            total = sum(engine.score(prefix, engine.tokenizer.encode(text)).logprob for text in TEXTS[:4])
        words = sum(len(text.split()) for text in TEXTS[:4])
        assert results["dlf_text"]["word_perplexity,none"] == pytest.approx(np.exp(-total / words), rel=1e-3)
        assert "exact_match,none" in results["dlf_answer"]
