"""The command line with a fake engine."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner, Result

import dlf
from dlf.cli import app
from dlf.cli.demo import extract_answer, is_correct
from dlf.devices import DeviceError
from dlf.results import Timings

WORDS = ["2", " plus", " 2", " is", " 4", ".", "\n", "####", " 4"]


@dataclass
class FakePiece:
    text: str
    token: int
    logprob: float
    alpha: npt.NDArray[np.float64]
    index: int = 0


def some_timings() -> Timings:
    # The two tokens of a pass arrive together.
    times = np.array([0.004, 0, 0.004, 0, 0.004, 0, 0.004, 0])
    return Timings(0.01, times, {"large": 0.7, "small": 0.2, "solve": 0.06, "sample": 0.04})


@dataclass
class FakeCompletion:
    text: str
    alpha: npt.NDArray[np.float64]
    tokens: list[int] = field(default_factory=lambda: list(range(9)))
    logprobs: npt.NDArray[np.float64] = field(default_factory=lambda: np.array([-0.1] * 8 + [-np.inf]))
    f: npt.NDArray[np.float64] = field(default_factory=lambda: np.linspace(0, 1, 9))
    g: npt.NDArray[np.float64] = field(default_factory=lambda: np.linspace(0, 0.5, 9))
    finish_reason: str = "stop"
    prompt_tokens: int = 3
    timings: Timings = field(default_factory=some_timings)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    passes: int = 4
    drafted: int = 6


class FakeEngine:
    """Answers 4 to everything, and 5 without experts."""

    made: list[FakeEngine] = []
    failure: BaseException | None = None
    memory = dlf.Memory((), {})

    def __init__(self, large: str, experts: Sequence[Any] = (), **options: Any) -> None:
        if large == "missing":
            raise FileNotFoundError("no folder 'missing':\n  give a checkpoint's folder")
        self.large, self.experts, self.options = large, list(experts), options
        self.closed = False
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        FakeEngine.made.append(self)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed = True

    def generate(self, prompt: Any, *, callback: Any = None, progress: Any = None, **options: Any) -> Any:
        self.calls.append((prompt, options))
        if FakeEngine.failure is not None:
            raise FakeEngine.failure
        words = WORDS if self.experts else [*WORDS[:-1], " 5"]
        alpha = np.linspace(0, 2, 9)[:, None].repeat(len(self.experts), axis=1)
        for i, word in enumerate(words):
            if callback is not None:
                callback(FakePiece(word, i, -0.1, alpha[i]))
        done = FakeCompletion("".join(words), alpha)
        return [done for _ in prompt] if isinstance(prompt, list) else done


@dataclass
class FakeExpert:
    model: str
    base: str | None = None

    @property
    def label(self) -> str:
        return self.model


@dataclass
class FakeProblem:
    prompt: str
    answer: str


def fake_problems(task: str) -> list[FakeProblem]:
    if task != "math":
        raise ValueError(f"no task is called {task!r}")
    return [FakeProblem(f"Q: [{i}] 2 + 2?\nA:", "4") for i in range(250)]


@pytest.fixture(autouse=True)
def fake_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    FakeEngine.made, FakeEngine.failure = [], None
    zoo = types.ModuleType("dlf.zoo")
    zoo.path = lambda name: Path("/zoo") / name  # type: ignore[attr-defined]
    zoo.problems = fake_problems  # type: ignore[attr-defined]
    zoo.Problem = FakeProblem  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dlf.zoo", zoo)
    for name, value in {"zoo": zoo, "Engine": FakeEngine, "Expert": FakeExpert, "__version__": "1.2.3"}.items():
        monkeypatch.setattr(dlf, name, value, raising=False)
    monkeypatch.delenv("DLF_TRACEBACK", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)
    yield


def run(*args: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(args), input=stdin)


FUSED = ("--expert", "math", "--base", "small")


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, "dlf 1.2.3\n")


def test_without_command_prints_help() -> None:
    result = run()
    assert result.exit_code == 0
    assert "generate" in result.stdout and "inspect" in result.stdout and "demo" in result.stdout


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_generate_prints_the_text(stream: str) -> None:
    result = run("generate", "big", "Q", *FUSED, stream)
    assert (result.exit_code, result.stdout) == (0, "".join(WORDS) + "\n")
    assert FakeEngine.made[0].closed


def test_generate_passes_options_that_were_given_and_no_others() -> None:
    args = "--temperature 0 --seed 0 --top-k 5 --stop END --stop ### --threads 3 --ignore-eos".split()
    assert run("generate", "big", "Q", *args).exit_code == 0
    engine = FakeEngine.made[0]
    expected = {"temperature": 0, "seed": 0, "top_k": 5, "stop_strings": ["END", "###"], "ignore_eos": True}
    assert engine.calls == [("Q", expected)]
    assert engine.options["threads"] == 3
    assert "alpha" not in engine.options


def test_generate_passes_the_type_of_weights() -> None:
    run("generate", "big", "Q", "--weights", "int8")
    run("generate", "big", "Q")
    assert [engine.options.get("weights") for engine in FakeEngine.made] == ["int8", None]


def test_generate_passes_the_template() -> None:
    run("generate", "big", "Q", "--template", "[INST] {prompt} [/INST]")
    run("generate", "big", "Q")
    assert [engine.options.get("template") for engine in FakeEngine.made] == ["[INST] {prompt} [/INST]", None]


def test_generate_drafts_unless_it_is_told_not_to() -> None:
    run("generate", "big", "Q", "--no-speculate")
    run("generate", "big", "Q", "--drafter", "small")
    assert [(engine.options.get("speculate"), engine.options.get("drafter")) for engine in FakeEngine.made] == [
        (False, None),
        (None, "small"),
    ]


@pytest.mark.parametrize("clear", [False, True])
def test_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clear: bool) -> None:
    monkeypatch.setenv("DLF_CACHE", str(tmp_path))
    file = tmp_path / f"{'0' * 40}-int8.safetensors"
    file.write_bytes(b"x" * 2048)
    result = run("cache", *(["--clear"] if clear else []))
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}: 2 KiB{' removed' if clear else ''}\n"
    assert file.exists() is not clear
    monkeypatch.setenv("DLF_CACHE", "off")
    assert "off" in run("cache").stdout


def test_generate_pairs_experts_and_bases() -> None:
    run("generate", "big", "Q", "--expert", "a", "--expert", "b", "--base", "s")
    run("generate", "big", "Q", "--expert", "a", "--base", "s", "--expert", "b", "--base", "t")
    assert [engine.experts for engine in FakeEngine.made] == [
        [FakeExpert("a", "s"), FakeExpert("b", "s")],
        [FakeExpert("a", "s"), FakeExpert("b", "t")],
    ]


def test_generate_static_alpha() -> None:
    run("generate", "big", "Q", *FUSED, "--combine", "static", "--alpha", "-0.5")
    assert FakeEngine.made[0].options["combine"] == "static"
    assert list(FakeEngine.made[0].options["alpha"]) == [-0.5]


def test_generate_reads_the_prompt_from_standard_input() -> None:
    assert run("generate", "big", "-", stdin="Q: ä\nA:\n").exit_code == 0
    assert FakeEngine.made[0].calls[0][0] == "Q: ä\nA:"


@pytest.mark.parametrize("stdin", [b"a\nb\n", b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb", b"a\rb\r"])
def test_the_prompt_may_come_from_any_system(stdin: bytes) -> None:
    assert run("generate", "big", "-", stdin=stdin).exit_code == 0
    assert FakeEngine.made[0].calls[0][0] == "a\nb"


@pytest.mark.parametrize(("stdin", "message"), [(b"", "standard input is empty"), (b"\xff\xfea\0", "not UTF-8 text")])
def test_standard_input_that_is_no_prompt(stdin: bytes, message: str) -> None:
    result = run("generate", "big", "-", stdin=stdin)
    assert result.exit_code == 2 and message in result.stderr


def test_what_ends_the_text() -> None:
    assert run("generate", "big", "Q", "--stop-token-id", "7", "--stop-token-id", "0", "--stop", "</s>").exit_code == 0
    options = FakeEngine.made[0].calls[0][1]
    assert (list(options["stop_token_ids"]), list(options["stop_strings"])) == ([7, 0], ["</s>"])


@pytest.mark.parametrize("prompt", ["- item", "-5 + 3", "--- title", "--help me"])
def test_a_prompt_that_begins_with_a_hyphen(prompt: str) -> None:
    result = run("generate", "big", prompt)
    assert result.exit_code == 2 and "dlf generate MODEL -- " in result.stderr
    assert run("generate", "big", "--", prompt).exit_code == 0
    assert FakeEngine.made[0].calls[0][0] == prompt
    assert " -- " not in run("inspect", "--nonsense").stderr


def test_errors_do_not_steer_the_terminal() -> None:
    FakeEngine.failure = ValueError("key '\x1b]0;title\x07\x9b2J\u202e'\nis wrong")
    assert run("generate", "big", "Q").stderr == "dlf: error: key '\\x1b]0;title\\x07\\x9b2J\\u202e' is wrong\n"


def test_generate_json_is_one_object() -> None:
    found = json.loads(run("generate", "big", "Q", *FUSED, "--json").stdout)
    assert found["text"] == "".join(WORDS)
    assert found["tokens"] == list(range(9))
    assert found["alpha"][-1] == [2.0]
    assert found["logprobs"][-1] is None  # JSON has no infinity
    assert found["finish_reason"] == "stop"
    assert found["timings"]["shares"]["large"] == 0.7
    assert (found["passes"], found["drafted"]) == (4, 6)


def test_generate_show_alpha_without_a_terminal_has_no_control_codes() -> None:
    result = run("generate", "big", "Q", *FUSED, "--show-alpha")
    assert result.exit_code == 0
    assert "█" in result.stdout and "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("generate", "missing", "Q"), "no folder 'missing': give a checkpoint's folder"),
        (("generate", "big", "Q", "--expert", "math"), "1 --expert and 0 --base"),
        (("generate", "big", "Q", "--base", "small"), "0 --expert and 1 --base"),
        (("generate", "big", "Q", "--show-alpha"), "need an --expert"),
        (("generate", "big"), "prompt"),
        (("generate", "big", "Q", "--top-k", "many"), "--top-k"),
        (("generate", "big", "Q", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
        (("demo", "--task", "cooking"), "cooking"),
        (("demo", "--problems", "0"), "--problems"),
        (("demo", "--plot", "no/such/folder.png"), "no/such"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(args: tuple[str, ...], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(r"dlf: error: [^\n]+\n", result.stderr)
    assert message in result.stderr.replace("PROMPT", "prompt")


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "dlf: interrupted"),
        (NotImplementedError("not on this device"), 2, "dlf: error: not on this device"),
        (FloatingPointError("big: NaN at step 3"), 1, "dlf: error: big: NaN at step 3"),
        (MemoryError("too large"), 2, "dlf: error: too large"),
        (DeviceError("there is no cuda:7"), 2, "dlf: error: there is no cuda:7"),
    ],
)
def test_failures_while_running(failure: BaseException, code: int, message: str) -> None:
    FakeEngine.failure = failure
    result = run("generate", "big", "Q")
    assert result.exit_code == code
    assert result.stderr.strip() == message
    assert FakeEngine.made[0].closed


def test_an_error_gets_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: FakeEngine, prompt: str, *, callback: Any = None, **options: Any) -> None:
        callback(FakePiece("half", 0, -0.1, np.zeros(0)))
        raise FloatingPointError("big: NaN at step 1")

    monkeypatch.setattr(FakeEngine, "generate", generate)
    result = run("generate", "big", "Q")
    assert (result.exit_code, result.stdout) == (1, "half\n")


@pytest.mark.parametrize(("plot", "message"), [("no/such/a.png", "no folder 'no/such'"), ("a.txt", "saved as '.txt'")])
def test_where_the_picture_goes_is_looked_at_first(plot: str, message: str) -> None:
    result = run("generate", "big", "Q", *FUSED, "--plot", plot)
    assert result.exit_code == 2 and message in result.stderr and not FakeEngine.made


def test_a_group_without_a_command_shows_its_help() -> None:
    result = run("recipe")
    assert (result.exit_code, "error" in result.stderr) == (2, False)
    assert "schema" in result.output


def test_what_cannot_be_explained_keeps_its_traceback() -> None:
    FakeEngine.failure = RuntimeError("a bug")
    assert isinstance(run("generate", "big", "Q").exception, RuntimeError)


def test_demo() -> None:
    result = run("demo", "--problems", "20")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    for expected in ("Problem 1", "Problem 2", "[0] 2 + 2?", "large alone ✗", "α = 1 ✓", "dynamic ✓", "20/20", "0/20"):
        assert expected in result.stdout, expected
    assert "Problem 3" not in result.stdout
    assert "dlf-demo.png" in result.stdout and Path("dlf-demo.png").stat().st_size > 0
    engines = {Path(engine.large).name: engine for engine in FakeEngine.made[:2]}
    assert [len(engine.experts) for engine in FakeEngine.made] == [0, 0, 1, 1]
    assert set(engines) == {"large-base", "math-expert"}
    assert FakeEngine.made[2].options["alpha"] == [1.0] and FakeEngine.made[2].options["combine"] == "static"
    assert "alpha" not in FakeEngine.made[3].options
    assert all(engine.closed for engine in FakeEngine.made)


def test_demo_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "memory", dlf.Memory((), {}, {"cuda:0": "a card"}))
    result = run("demo", "--json", "--threads", "2", "--weights", "int8", "--device", "cuda:0")
    found = json.loads(result.stdout)
    assert found["problems"] == 200
    assert found["systems"]["dynamic"]["accuracy"] == 1.0
    assert found["systems"]["large"]["correct"] == 0
    assert found["systems"]["large"]["mean_alpha"] is None
    assert found["systems"]["dynamic"]["tokens_per_second_single"] == pytest.approx(500)
    assert found["systems"]["dynamic"]["mean_alpha"] == pytest.approx(1.0)
    assert found["examples"][0]["outputs"]["static"]["correct"] is True
    assert found["plot"] is None and not Path("dlf-demo.png").exists()
    assert found["cards"] == {"cuda:0": "a card"}
    options = {"threads": 2, "weights": "int8", "device": "cuda:0"}
    assert all(engine.options.items() >= options.items() for engine in FakeEngine.made)


def test_demo_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("demo", "--problems", "3")
    assert result.exit_code == 0
    assert "pip install matplotlib" in result.stdout
    result = run("demo", "--problems", "3", "--plot", "wanted.png")
    assert result.exit_code == 2 and "pip install matplotlib" in result.stderr


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 2 + 2 = 4\n#### 4", "4"),
        ("#### 4.\nQ: next\n#### 7", "4"),
        ("####1,234,567", "1234567"),
        ("#### the red fox ", "the red fox"),
        ("4", None),
        ("####", ""),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_an_answer_may_be_given_with_its_working() -> None:
    assert is_correct("#### 12", "3 * 4 = 12\n#### 12")


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("First 3 + 4 = 7. Then 7 + 5 = 12 keys.", "12", True),
        ("First 3 + 4 = 7. Then 7 + 5 = 1,200 keys.", "1200", True),
        ("12 keys are 3 too many.", "12", False),
        ("He has 12 keys.\n#### 13", "12", False),  # the answer follows ####
        ("Norwick is known for its tea.", "tea", True),
        ("Norwick is known for its tea. Ida drinks wine.", "wine", False),
        ("I do not know.", "tea", False),
        ("", "tea", False),
        ("", "12", False),
    ],
)
def test_an_answer_may_come_without_its_mark(text: str, answer: str, right: bool) -> None:
    assert is_correct(text, answer) == right
