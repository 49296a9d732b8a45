"""lm-evaluation-harness over HTTP: scores and answers are those of the class in this process, digit for digit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import Running

import dlf
from dlf import zoo
from dlf.server import ServerSettings

lm_eval = pytest.importorskip("lm_eval")
if not all(map(find_spec, ("aiohttp", "tenacity"))):
    pytest.skip("lm_eval[api] is not installed", allow_module_level=True)

from dlf.lm_eval import DLF  # noqa: E402 (skipped without the harness)

TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}{{ message.content }}"
    "{%- if message.role != 'user' %}{{ '\n\n' }}{%- endif %}{%- endfor %}"
)
MODELS = {"large": "large-base", "base": "small-base", "expert-a": "math-expert", "expert-b": "facts-expert"}
TASKS: dict[str, dict[str, Any]] = {
    "zoo_math": {"problems": "math"},
    "zoo_facts": {"problems": "facts"},
    "zoo_shots": {"problems": "math", "num_fewshot": 2, "fewshot_split": "test"},
}
LAST_WORD = {"function": "regex", "regex_pattern": r"(\w+)\.?$"}
COUNT = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of the zoo with a chat template, which they lack."""
    root = tmp_path_factory.mktemp("zoo")
    found = {key: Path(shutil.copytree(zoo.path(name), root / key)) for key, name in MODELS.items()}
    for folder in found.values():
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return found


@pytest.fixture(scope="module")
def server(models: dict[str, Path]) -> Iterator[Running]:
    with Running(models, ServerSettings(), max_context=512) as found:
        yield found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    for name, fields in TASKS.items():
        problems = zoo.problems(fields["problems"])[:COUNT]
        data = folder / f"{name}.json"
        answers = [{"question": one.prompt, "answer": one.answer} for one in problems]
        data.write_text("\n".join(map(json.dumps, answers)))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 48},
            "filter_list": [
                {
                    "name": "last",
                    "filter": [{"function": "regex", "regex_pattern": r"(\w+)\.?$"}, {"function": "take_first"}],
                }
            ],
            "metric_list": [{"metric": "exact_match"}],
        }
        own = {key: value for key, value in fields.items() if key != "problems"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | own))
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(tasks: Any, model: Any, **options: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Scores of each task, and the answers."""
    found = lm_eval.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=tasks, log_samples=True, bootstrap_iters=0, **options
    )
    return found["results"], {name: [one["resps"] for one in found["samples"][name]] for name in TASKS}


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_scores_over_http(
    kind: str, server: Running, models: dict[str, Path], tasks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    options: dict[str, Any] = {"batch_size": 1}
    if kind == "chat":
        options |= {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be exact."}
    experts = [dlf.Expert(models[f"expert-{name}"], models["base"], name=name) for name in "ab"]
    with dlf.Engine(models["large"], experts, threads=2, max_context=512) as engine:
        mine = evaluate(tasks, DLF(engine=engine), **options)
    address = f"base_url={server.url}/v1/" + ("chat/completions" if kind == "chat" else "completions")
    arguments = f"model=pair,{address},num_concurrent=4,max_retries=1"
    if kind == "completions":
        arguments += f",tokenizer={models['large']},add_bos_token=True"
    theirs = evaluate(
        tasks,
        f"local-{'chat-' if kind == 'chat' else ''}completions",
        model_args=arguments,
        gen_kwargs={"experts": ["a", "b"]},
        **options,
    )
    assert mine == theirs
    scores = [one["exact_match,last"] for one in mine[0].values()]
    assert len(scores) == 3 and sum(scores) > 0
