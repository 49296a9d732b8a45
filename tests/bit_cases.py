"""The cases of ``same_bits.py``: all that decides a token, a log-probability or a weight, in few requests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from models import FAMILIES, finetune, make_model, make_sentencepiece_tokenizer, overflowing, write_adapter
from safetensors.torch import load_file, save_file

import dlf
from dlf import zoo

if TYPE_CHECKING:
    from same_bits import Recorder

PROMPTS = ["Question: what is the sum", "x", "lazy dog " * 9]  # the last one exceeds the sliding windows
SHOTS = [(f"Question: {i} and {i + 1}?", f"the sum is {2 * i + 1}") for i in range(7)]
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why is the dog lazy"}]
IDS = [2 + (7 * i + i // 5) % 380 for i in range(1300)]  # longer than two chunks
SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.8, "seed": 1},
    "top_k": {"temperature": 1.2, "top_k": 7, "seed": 2},
    "top_p": {"temperature": 1.0, "top_p": 0.8, "seed": 3},
    "min_p": {"temperature": 1.5, "min_p": 0.05, "seed": 4},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    "bias": {"logit_bias": {5: 3.5, 9: -100.0, 270: float("-inf")}, "bad_words": ["the", "so"], "logprobs": 4},
    "samples": {"temperature": 0.9, "num_return_sequences": 3, "seed": 2**64 - 1},
    "all": {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "logit_bias": {5: 2.0},
        "bad_words_ids": [[7], [8, 9]],
        "min_new_tokens": 5,
        "logprobs": 5,
        "seed": 7,
    },
}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": [2.0 + 0.9 * i for i in range(8)],
        "original_max_position_embeddings": 32,
    },
}


def run_all(recorder: Recorder) -> None:
    """Run every case."""
    trio = make_trio(recorder.folder / "trio")
    for cases in (solver, families, ropes, shipped, errors):
        cases(recorder)
    for cases in (fusion, rules, sampling, ends, company, lanes, adapters, merged, drafts, recipe):
        cases(recorder, trio)
    long_texts(recorder)


def make_trio(root: Path, **overrides: Any) -> dict[str, Path]:
    """Make a large model, a base and two experts, random and with one tokenizer."""
    large = make_model(root / "large", "llama", seed=1, **overrides)
    base = make_model(root / "base", "llama", seed=2, **overrides)
    return {
        "large": large,
        "base": base,
        "a": finetune(root / "a", base, 3, 0.2),
        "b": finetune(root / "b", base, 4, 0.3),
    }


def pair(trio: dict[str, Path], **options: Any) -> list[dlf.Expert]:
    """Return both experts, the first with `options`."""
    return [dlf.Expert(trio["a"], trio["base"], **options), dlf.Expert(trio["b"], trio["base"])]


def solver(recorder: Recorder) -> None:
    """`dlf.fusion.solve` on random logits of several sizes, with some tokens excluded."""
    place = {"device": recorder.device} if recorder.device != "cpu" else {"threads": recorder.threads}
    for batch, count, vocab in recorder.few([(2, 2, 1000), (1, 1, 2), (5, 3, 333), (3, 16, 777), (2, 2, 33000)], 4):
        generator = torch.Generator().manual_seed(vocab)
        large, base = (3 * torch.randn(batch, vocab, generator=generator) for _ in range(2))
        experts = base[:, None] + torch.randn(batch, count, vocab, generator=generator)
        bases = base[:, None] + 0.5 * torch.randn(batch, count, vocab, generator=generator)
        ruled_out = torch.rand(batch, vocab, generator=generator) < 0.3
        ruled_out[:, 0] = False
        masked = (large.masked_fill(ruled_out, float("-inf")), base, experts)
        size = f"solve/{batch}x{count}x{vocab}"
        given = [0.7 - 0.3 * i for i in range(count)]

        def keep(name: str, *logits: torch.Tensor, size: str = size, **options: Any) -> None:
            recorder.keep(f"{size}/{name}", dlf.fusion.solve(*logits, **place, **options))

        for match in ("symmetric", "forward", "reverse"):
            for combine in ("select", "centroid", "joint", "grid"):
                keep(f"{combine}/{match}", large, base, experts, combine=combine, match=match)
                keep(f"{combine}/{match}/masked", *masked, combine=combine, match=match)
        keep("static", large, base, experts, combine="static", alpha=given)
        keep("bases", large, bases, experts, alpha_max=[1.5 - 0.05 * i for i in range(count)])
        keep("mixed", *masked, alpha=[None, *given[1:]], alpha_max=0.5)
        keep("bfloat16", *(logits.bfloat16() for logits in (large, base, experts)), combine="joint")


def families(recorder: Recorder) -> None:
    """Every family in every type of weights, and variants of the configuration."""
    variants: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in FAMILIES}
    variants["biases"] = ("llama", {"attention_bias": True, "mlp_bias": True})
    variants["tied"] = ("qwen2", {"tie_word_embeddings": True})
    variants["wide"] = ("llama", {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 1})
    types: dict[str, dict[str, str]] = {
        "float32": {"dtype": "float32"},
        "bfloat16": {"dtype": "bfloat16"},
        "int8": {"weights": "int8"},
        "int4": {"weights": "int4"},
        "int8-bfloat16": {"weights": "int8", "dtype": "bfloat16"},
        "int4-bfloat16": {"weights": "int4", "dtype": "bfloat16"},
    }
    if recorder.device != "cpu":
        types = {"float16": {"dtype": "float16"}} | types
    for name, (family, overrides) in variants.items():
        folder = make_model(recorder.folder / "families" / name, family, seed=11, **overrides)
        more = {"int4-g64": {"weights": "int4-g64"}} if name == "wide" else {}
        for kind, chosen in (types | more).items():
            if recorder.small and name not in ("mistral", "qwen3", "wide") and kind not in ("float32", "bfloat16"):
                continue
            with (
                contextlib.suppress(dlf.UnknownArchitectureError),  # the build may be older than the family
                recorder.engine(f"family/{name}/{kind}", folder, **chosen),
            ):
                recorder.generate("greedy", PROMPTS[:: 2 if recorder.small else 1], logprobs=3)
                recorder.score("score", PROMPTS[0], " of 12 and 30? The quick brown fox")
    spaced = make_model(recorder.folder / "families" / "spaced", "llama", seed=12)
    make_sentencepiece_tokenizer(spaced)
    with recorder.engine("family/sentencepiece", spaced):
        recorder.generate("sampled", PROMPTS, temperature=1.0, seed=5, max_new_tokens=40)


def ropes(recorder: Recorder) -> None:
    """Scaled rotary embeddings within the trained length and beyond it."""
    for kind, scaling in ROPES.items():
        rope = {"rope_type": kind, "rope_theta": 10000.0} | scaling
        folder = make_model(
            recorder.folder / "ropes" / kind, "llama", seed=5, max_position_embeddings=64, rope_parameters=rope
        )
        lengths = {"longrope": (32, 64), "dynamic": (64,)}.get(kind, (64, 256))
        for length in recorder.few(lengths):
            with recorder.engine(f"rope/{kind}/{length}", folder, max_context=length):
                recorder.score("score", IDS[:5], IDS[5:length])
                recorder.generate("greedy", IDS[: length - 20], max_new_tokens=30)


def shipped(recorder: Recorder) -> None:
    """The shipped models on shipped problems."""
    problems = {task: [problem.prompt for problem in zoo.problems(task)[:3]] for task in ("math", "facts")}
    large, base = zoo.path("large-base"), zoo.path("small-base")
    experts = {name: dlf.Expert(zoo.path(f"{name}-expert"), base) for name in ("math", "facts", "reports", "truths")}
    ways: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "two": (("math", "facts"), {}),
        "alone": ((), {}),
        "one": (("math",), {}),
        "four": (tuple(experts), {"combine": "joint"}),
        "bfloat16": (("math",), {"dtype": "bfloat16"}),
        "int8": (("math",), {"weights": "int8"}),
        "int4": (("facts",), {"weights": "int4"}),
    }
    for name, (chosen, options) in recorder.few(ways.items()):
        with recorder.engine(f"zoo/{name}", large, [experts[one] for one in chosen], **options):
            if recorder.small:  # a token takes seconds on an emulated device
                recorder.generate("greedy", problems["math"][0], max_new_tokens=3)
                continue
            for task, prompts in problems.items():
                recorder.generate(task, prompts, max_new_tokens=48, ignore_eos=False)
                recorder.generate(f"{task} sampled", prompts, max_new_tokens=24, temperature=0.8, seed=3)
                recorder.score(f"{task} score", prompts, [" 42.", " 7 apples", " no"])


def fusion(recorder: Recorder, trio: dict[str, Path], bound: float = 0.5) -> None:
    """Every rule of fusion: all pairs of combine and match, given and bounded weights."""
    prompts = PROMPTS[:: 2 if recorder.small else 1]
    for combine in ("select", "centroid", "joint", "grid"):
        for match in ("symmetric", "forward", "reverse"):
            with recorder.engine(f"fusion/{combine}/{match}", trio["large"], pair(trio), combine=combine, match=match):
                recorder.generate("greedy", prompts)
                if not recorder.small:
                    recorder.generate("sampled", prompts, temperature=0.9, seed=2)
                    recorder.score("score", PROMPTS[0], [" of 12 and 30? The quick", "?"])
    weights: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "static": ({}, {"combine": "static", "alpha": [0.7, -0.3]}),
        "bound": ({}, {"alpha_max": bound}),
        "bounds": ({"alpha_max": 0.25}, {"alpha_max": 3.0, "combine": "centroid"}),
        "mixed": ({}, {"alpha": [None, -0.3]}),
        "mixed joint": ({}, {"alpha": [0.4, None], "combine": "joint"}),
        "anti-expert": ({"alpha": -0.5}, {"combine": "grid"}),
    }
    for name, (first, options) in weights.items():
        with recorder.engine(f"fusion/{name}", trio["large"], pair(trio, **first), **options):
            recorder.generate("greedy", prompts)
            recorder.score("score", PROMPTS[0], " of 12 and 30")
    bases = [dlf.Expert(trio["a"], trio["base"]), dlf.Expert(trio["b"], trio["a"], weights="int8")]
    with recorder.engine("fusion/bases", trio["large"], bases, weights="bf16", combine="joint"):
        recorder.generate("greedy", prompts)


def rules(recorder: Recorder, trio: dict[str, Path]) -> None:
    """Rules beyond solved weights: mixtures, masks, gates, contrasts of one model with itself, functions."""
    prompts = PROMPTS[: 1 if recorder.small else 3]
    alone = dlf.Expert(trio["a"], base=False, name="alone")
    mixed = dlf.Expert(trio["b"], trio["base"], name="mixed", mix=0.4)
    added = dlf.Expert(trio["a"], trio["base"], name="added")
    drafted = {"speculate": dlf.Speculation("prompt_lookup", 4, adaptive=False), "trace": True}

    def run(name: str, experts: list[Any], rule: dict[str, Any], **request: Any) -> None:
        with recorder.engine(f"rules/{name}", trio["large"], experts, **rule):
            recorder.generate("greedy", prompts, **request)
            recorder.generate("sampled", prompts, temperature=0.9, seed=2, **request)
            if not recorder.small:
                recorder.generate("drafted", prompts, temperature=0.9, seed=2, **drafted, **request)
                recorder.score("score", PROMPTS[0], [" of 12 and 30? The quick", "?"], **request)

    ways: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "jsd": (pair(trio), {"combine": "jsd"}),
        "certainty": (pair(trio), {"combine": "certainty"}),
        "large_weight": ([alone], {"large_weight": 0.6, "alpha": [0.4]}),
        "plausibility": (pair(trio), {"plausibility": 0.2}),
        "mix": ([added, mixed], {}),
        "amateur": ([dlf.Amateur(trio["base"], alpha=0.5)], {"plausibility": 0.1}),
        "entropy gate": (pair(trio), {"gate": "entropy", "gate_threshold": 5.0}),
        "top gate": (pair(trio), {"gate": "top_prob", "gate_threshold": 0.03}),
        "disagreement gate": (pair(trio), {"gate": "disagree"}),
    }
    for name, (experts, rule) in recorder.few(ways.items(), 5):
        run(name, experts, rule)
    run("guidance", [dlf.Guidance(scale=1.5)], {}, negative_prompt="lazy dog")
    run("guidance of a base", [dlf.Guidance(trio["base"], alpha_max=2.0)], {}, negative_prompt="x")
    with recorder.engine("rules/together", trio["large"], [added, mixed, alone, dlf.Guidance(scale=2.0, name="cfg")]):
        requests: dict[str, dict[str, Any]] = {
            "select": {"experts": ["added"]},
            "jsd": {"experts": ["added"], "combine": "jsd", "plausibility": 0.3},
            "mixture": {"experts": ["mixed", "added"], "large_weight": 0.8},
            "gate": {"experts": ["added", "alone"], "gate": "entropy", "gate_threshold": 5.0},
            "cfg": {"experts": ["cfg"], "negative_prompt": "x", "guidance_scale": 1.2},
            "function": {"experts": ["added"], "rule": lambda step: step.large + step.experts[0] - step.bases[0]},
        }
        every: dict[str, Any] = {"prompt": PROMPTS[0], "ignore_eos": True}
        recorder.together("rules", {key: every | one for key, one in requests.items()})


def sampling(recorder: Recorder, trio: dict[str, Path]) -> None:
    """Every option that changes which token is chosen."""
    with recorder.engine("sampling", trio["large"], pair(trio)):
        for name, options in SAMPLING.items():
            recorder.generate(name, PROMPTS[: 1 if recorder.small else 3], **options)


def ends(recorder: Recorder, trio: dict[str, Path]) -> None:
    """All ends of a text: the end-of-sequence token, stop tokens and strings, a callback, lengths, the context."""
    with recorder.engine("ends", trio["large"], pair(trio), max_context=64) as engine:
        whole = engine.generate(PROMPTS[0], max_new_tokens=12, ignore_eos=True)
        recorder.generate("token", PROMPTS, stop_token_ids=[whole.tokens[3]], max_new_tokens=12)
        recorder.generate("text", PROMPTS, stop_strings=[whole.text[5:8], "zzz"], max_new_tokens=12)
        recorder.generate("callback", PROMPTS[0], callback=lambda piece: piece.token != whole.tokens[2])
        recorder.generate("length", PROMPTS[0], max_new_tokens=1)
        recorder.generate("end of sequence", PROMPTS[0], ignore_eos=False, logit_bias={1: 12.0}, min_new_tokens=2)
        recorder.generate("context", IDS[:60])
        recorder.generate("whole context", IDS[:63])
        recorder.fails("ends/too long", lambda: engine.generate(IDS[:64]))


def company(recorder: Recorder, trio: dict[str, Path]) -> None:
    """Eight requests with different options: in one batch, in turns with fewer slots, and alone."""
    prompts = [*PROMPTS, "def add(first, second)", "The quick brown", "Answer: the", "lazy " * 20, "Ein Caf\u00e9"]
    options = [*SAMPLING.values()][:6] + [SAMPLING["all"], {"experts": ["b"]}]
    requests = {
        str(i): {"prompt": prompt, "ignore_eos": True, "max_new_tokens": min(recorder.most_tokens, 5 + 3 * i)} | chosen
        for i, (prompt, chosen) in enumerate(zip(prompts, options, strict=True))
    }
    for places in recorder.few((16, 8, 3)):
        with recorder.engine(f"company/{places}", trio["large"], pair(trio), max_batch=places):
            recorder.together("together", requests)
            recorder.generate("list", prompts * 2)
            if places == 16 and not recorder.small:
                for key, request in requests.items():
                    recorder.together("alone", {key: request})


def lanes(recorder: Recorder, trio: dict[str, Path]) -> None:
    """Templates and examples for each model, subsets of experts, experts added and removed, the prefix cache."""
    experts = [
        dlf.Expert(trio["a"], trio["base"], name="a", template="chat", alpha_max=0.5),
        dlf.InContext(trio["base"], SHOTS, name="shots"),
        dlf.InContext(trio["base"], SHOTS[:2], name="turns", template="chat"),
        dlf.Expert(trio["b"], trio["base"], name="toxic", alpha=-0.3, base_template="[INST] {prompt} [/INST]"),
    ]
    for size in (1 << 24, 0, 1 << 19):  # the last holds only some of the chunks
        for combine in recorder.few(("joint", "select")):
            name = f"lanes/{combine}/prefix {size}"
            with recorder.engine(name, trio["large"], experts, combine=combine, prefix_cache_bytes=size) as engine:
                recorder.generate("all", PROMPTS[0], counts="cached_tokens")
                recorder.generate("again", PROMPTS[0], counts="cached_tokens")
                recorder.generate("begins alike", PROMPTS[0] + " of 12", counts="cached_tokens")
                if recorder.small and size != 1 << 24:
                    continue
                recorder.generate("two", PROMPTS[0], experts=["toxic", "shots"], counts="cached_tokens")
                recorder.generate("none", PROMPTS[0], experts=[], counts="cached_tokens")
                recorder.generate("examples", PROMPTS[0], examples=SHOTS[:3], counts="cached_tokens")
                recorder.generate("messages", messages=TALK, experts=["a", "turns"], counts="cached_tokens")
                recorder.score("score", PROMPTS[0], [" of 12 and 30", "?"])
                recorder.score("score messages", messages=TALK, continuation=" because", experts=["toxic", "a"])
                engine.remove_expert("turns")
                recorder.generate("fewer", PROMPTS[:2])
                engine.add_expert(dlf.Expert(trio["b"], trio["a"], name="late"))
                recorder.generate("more", PROMPTS[:2], experts=["late", "a"])


def adapters(recorder: Recorder, trio: dict[str, Path]) -> None:
    """LoRA adapters on one base, beside an expert model and an in-context expert."""
    one, two = (write_adapter(recorder.folder / f"lora{i}", trio["base"], i, rank=3 + 5 * i) for i in range(2))
    experts = [
        dlf.Lora(trio["base"], one),
        dlf.Lora(trio["base"], two, alpha_max=0.8),
        dlf.Expert(trio["a"], trio["base"]),
        dlf.InContext(trio["base"], SHOTS[:2]),
    ]
    types: list[dict[str, Any]] = [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"weights": "int8"},
        {"weights": "int4"},
    ]
    for chosen in types:
        name = f"adapters/{'-'.join(chosen.values())}"
        with recorder.engine(name, trio["large"], experts, combine="centroid", max_context=256, **chosen):
            recorder.generate("all", PROMPTS[:2])
            recorder.generate("one", PROMPTS[0], experts=["lora1"])
            recorder.score("score", PROMPTS[0], [" of 12 and 30", "?"], experts=["lora0", "lora1"])
    changed = {
        kind: write_adapter(recorder.folder / kind, trio["base"], 7, tables=kind) for kind in ("low-rank", "saved")
    }
    mixture = make_model(recorder.folder / "mixture", "olmoe", seed=8)
    changed["experts"] = write_adapter(recorder.folder / "experts", mixture, 9, experts=True)
    more = [dlf.Lora(mixture if kind == "experts" else trio["base"], path) for kind, path in changed.items()]
    for chosen in types:
        name = f"adapters/tables-and-experts-{'-'.join(chosen.values())}"
        with recorder.engine(name, trio["large"], more, combine="centroid", max_context=256, **chosen):
            recorder.generate("all", PROMPTS[:2])
            recorder.score("score", PROMPTS[0], [" of 12 and 30", "?"])
    with recorder.engine("adapters/folded", trio["large"], [dlf.Lora(trio["base"], one, merge=True)]):
        recorder.generate("greedy", PROMPTS[:2])


def merged(recorder: Recorder, trio: dict[str, Path]) -> None:
    """Experts merged by every method; the CPU merges for every device."""
    both = {trio["a"]: 0.7, trio["b"]: -0.3}
    methods: dict[str, dict[str, Any]] = {
        "task_arithmetic": {"experts": both, "scale": 0.8},
        "ties": {"experts": both, "density": 0.4},
        "dare_linear": {"experts": both, "density": 0.5, "seed": 3},
        "dare_ties": {"experts": both, "density": {trio["a"]: 0.5, trio["b"]: 0.9}, "seed": 4, "dtype": "bfloat16"},
        "linear": {"experts": {trio["a"]: 0.7, trio["b"]: 0.3}},
        "slerp": {"experts": {trio["a"]: 0.4}},
    }
    for method, options in recorder.few(methods.items()):
        expert = dlf.TaskArithmetic(trio["base"], method=method, **options)
        with recorder.engine(f"merged/{method}", trio["large"], [expert]):
            recorder.generate("greedy", PROMPTS[:2])
        tensors = load_file(expert.save(recorder.folder / "merged" / method) / "model.safetensors")
        recorder.keep(f"merged/{method}/tensors", {name: tensor.float() for name, tensor in sorted(tensors.items())})


def drafts(recorder: Recorder, trio: dict[str, Path]) -> None:
    """Drafts by every drafter; on the CPU, with fixed lengths, the numbers of drafted tokens too."""
    fixed = {"counts": "passes drafted"} if recorder.device == "cpu" else {}
    sampled = {"temperature": 0.7, "seed": 1}

    def run(prompts: list[str], drafters: list[str], **options: Any) -> None:
        for drafter in drafters:
            draft = dlf.Speculation(drafter, 4 if drafter == "base" else 12, adaptive=False)
            recorder.generate(drafter, prompts, speculate=draft, **fixed, **options)
            recorder.generate(f"{drafter} sampled", prompts, speculate=draft, logprobs=2, **fixed, **options, **sampled)
        recorder.generate("adaptive", prompts, speculate="auto", **options, **sampled)

    with recorder.engine("drafts/trio", trio["large"], pair(trio), drafter=trio["a"]):
        run(PROMPTS[: 1 if recorder.small else 3], ["drafter", "a", "base", "prompt_lookup", "auto"])
    near = [dlf.Expert(trio["a"], trio["base"], alpha=0.05)]
    with recorder.engine("drafts/right", trio["large"], near, drafter=trio["large"]):  # most drafts are accepted
        run(PROMPTS[:1], ["drafter"], max_new_tokens=24)
    one = write_adapter(recorder.folder / "drafting", trio["base"], 7)
    with recorder.engine("drafts/adapter", trio["large"], [dlf.Lora(trio["base"], one, name="lora")], dtype="bfloat16"):
        run(PROMPTS[:2], ["lora"])
    if recorder.small:
        return
    prompts = [problem.prompt for problem in zoo.problems("math")[:4]]
    expert = dlf.Expert(zoo.path("math-expert"), zoo.path("small-base"), name="math")
    for weights in ("fp32", "int8"):
        with recorder.engine(f"drafts/zoo/{weights}", zoo.path("large-base"), [expert], weights=weights):
            run(prompts, ["auto", "math", "base", "prompt_lookup"], max_new_tokens=40, ignore_eos=False)
    with recorder.engine("drafts/alone", zoo.path("large-base"), drafter=zoo.path("small-base")):
        run(prompts, ["drafter", "prompt_lookup"], max_new_tokens=40)


def recipe(recorder: Recorder, trio: dict[str, Path]) -> None:
    """An engine from a recipe."""
    file = recorder.folder / "recipe.yaml"
    file.write_text(
        f"""\
large: {trio["large"]}
base: {trio["base"]}
template: "Q: {{prompt}}\\nA:"
experts:
  - {{model: {trio["a"]}, alpha_max: 1.5}}
  - {{examples: [["2 + 2", "4"], ["3 + 5", "8"]], template: "{{question}} = {{answer}}; ", name: shots}}
fusion: {{combine: joint, match: forward, alpha_max: 3}}
engine: {{threads: {recorder.threads}, device: {recorder.device}, max_batch: 2, max_context: 200, speculate: false,
  prefix_cache_bytes: 1000000}}
sampling: {{max_new_tokens: 5, temperature: 0.5, seed: 9, stop_strings: ["zzz"]}}
"""
    )
    with dlf.Engine.from_recipe(file) as engine:
        recorder.keep("recipe", engine.generate(PROMPTS[:2]))


def errors(recorder: Recorder) -> None:
    """Models that overflow or hold NaN: the errors, and the requests that still work."""
    trio = make_trio(recorder.folder / "broken")
    for name in ("large", "base", "a"):
        broken = trio | {name: overflowing(trio[name].with_name(f"{name}-overflows"), trio[name])}
        with recorder.engine(f"errors/{name} overflows", broken["large"], pair(broken)) as engine:
            recorder.fails(f"errors/{name} overflows/generate", lambda engine=engine: engine.generate("x"))
            recorder.fails(f"errors/{name} overflows/score", lambda engine=engine: engine.score("x", "y"))
            if name == "a":
                recorder.generate("others", "x", experts=["b"])
    tensors = load_file(trio["a"] / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].index_fill(0, torch.tensor([3]), float("nan"))
    save_file(tensors, broken["a"] / "model.safetensors", metadata={"format": "pt"})
    recorder.fails("errors/NaN", lambda: dlf.Engine(trio["large"], pair(broken), device=recorder.device))


def long_texts(recorder: Recorder) -> None:
    """Prompts and scores over several chunks, examples that end inside a chunk, with and without the prefix cache."""
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 2048}
    trio = make_trio(recorder.folder / "long", **sizes)
    window = make_model(recorder.folder / "window", "mistral", seed=3, sliding_window=300, **sizes)
    shots = [(f"Question: {i} and {i + 1}?", f"the sum is {2 * i + 1}") for i in range(40)]
    experts = [*pair(trio), dlf.InContext(trio["base"], shots, name="shots")]
    for size in recorder.few((1 << 26, 0, 1 << 20), 2):
        with recorder.engine(f"long/prefix {size}", trio["large"], experts, prefix_cache_bytes=size, max_context=2048):
            recorder.generate("ids", IDS[:1100], experts=["a", "b"], counts="cached_tokens")
            recorder.generate("begins alike", IDS[:900] + IDS[3:50], experts=["a"], counts="cached_tokens")
            recorder.generate("examples", PROMPTS[0], counts="cached_tokens")
            recorder.generate("examples again", PROMPTS[2], counts="cached_tokens")
            recorder.score("score", [IDS[:600]] * 2, [IDS[600:1300], IDS[700:710]], experts=["a", "b"])
            if not recorder.small:
                recorder.generate("list", [IDS[:n] for n in (256, 257, 511, 512, 513, 1000)], experts=["b"])
    for weights in recorder.few(("bf16", "fp32", "int8", "int4")):
        with recorder.engine(f"long/window/{weights}", window, max_context=2048, weights=weights):
            recorder.generate("ids", IDS[:1100])
            recorder.score("score", IDS[:300], IDS[300:1000])
