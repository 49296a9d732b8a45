"""The engine on a CUDA device, or an emulated one, compared with the engine on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bit_cases import SAMPLING
from models import FAMILIES, make_model, write_adapter

import dlf
from dlf import _C

pytestmark = pytest.mark.cuda

PROMPTS = ["Question: what is the sum", "x", "lazy dog " * 9]
OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}


def engine(family: dict[str, Path], **options: object) -> dlf.Engine:
    experts = [dlf.Expert(family[name], base=family["base"]) for name in ("expert-a", "expert-b")]
    return dlf.Engine(family["large"], experts, max_batch=2, max_context=128, threads=1, **options)


def close(device: dlf.Completion, host: dlf.Completion) -> None:
    assert device.tokens == host.tokens
    assert device.text == host.text
    assert device.finish_reason == host.finish_reason
    np.testing.assert_allclose(device.logprobs, host.logprobs, atol=1e-3)
    np.testing.assert_allclose(device.alpha, host.alpha, atol=5e-3)
    np.testing.assert_allclose(device.f, host.f, atol=1e-3)
    np.testing.assert_allclose(device.g, host.g, atol=1e-3)


@pytest.mark.parametrize("combine", ["select", "centroid", "joint", "grid", "static"])
def test_completions_are_those_of_the_cpu(family: dict[str, Path], combine: str) -> None:
    fusion = {"combine": combine} | ({"alpha": [0.7, -0.3]} if combine == "static" else {})
    with engine(family, **fusion) as host, engine(family, device="cuda", **fusion) as device:
        for ours, theirs in zip(device.generate(PROMPTS, **OPTIONS), host.generate(PROMPTS, **OPTIONS), strict=True):
            close(ours, theirs)


def test_sampling_is_that_of_the_cpu(family: dict[str, Path]) -> None:
    options = OPTIONS | SAMPLING["all"] | {"num_return_sequences": 2}
    with engine(family) as host, engine(family, device="cuda:0") as device:
        ours, theirs = device.generate(PROMPTS[:2], **options), host.generate(PROMPTS[:2], **options)
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other)
        assert [list(step) for step in mine.top_logprobs] == [list(step) for step in other.top_logprobs]


def test_a_graph_changes_nothing(family: dict[str, Path]) -> None:
    with engine(family, device="cuda") as graph, engine(family, device="cuda", cuda_graph=False) as eager:
        for ours, theirs in zip(graph.generate(PROMPTS, **OPTIONS), eager.generate(PROMPTS, **OPTIONS), strict=True):
            assert ours.tokens == theirs.tokens
            assert np.array_equal(ours.alpha, theirs.alpha)
            assert np.array_equal(ours.logprobs, theirs.logprobs)


def test_a_batch_changes_nothing(family: dict[str, Path]) -> None:
    with engine(family, device="cuda") as one:
        together = one.generate(PROMPTS, **OPTIONS)
        for prompt, completion in zip(PROMPTS, together, strict=True):
            alone = one.generate(prompt, **OPTIONS)
            assert alone.tokens == completion.tokens
            assert np.array_equal(alone.logprobs, completion.logprobs)


@pytest.mark.parametrize("family_name", FAMILIES)
def test_every_family_of_models(family_name: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / family_name, family_name, seed=11)
    prompt = "The quick brown fox jumps over the lazy dog, and "  # exceeds the sliding windows
    with dlf.Engine(path, threads=1, max_batch=1) as host, dlf.Engine(path, device="cuda", max_batch=1) as device:
        ours, theirs = device.generate(prompt, **OPTIONS), host.generate(prompt, **OPTIONS)
    assert ours.tokens == theirs.tokens
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-3)


@pytest.mark.parametrize(
    "types", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"weights": "int8"}, {"weights": "int4"}]
)
def test_smaller_types_stay_near(family: dict[str, Path], types: dict[str, str]) -> None:
    host_types = {"dtype": "float32"} if types.get("dtype") == "float16" else types
    prompt = PROMPTS[2]
    with engine(family, **host_types) as host, engine(family, device="cuda", **types) as device:
        ours, theirs = device.generate(prompt, **OPTIONS), host.generate(prompt, **OPTIONS)
    # Rounding may change a token, and the texts differ from there on.
    np.testing.assert_allclose(ours.logprobs[:1], theirs.logprobs[:1], atol=0.25)
    np.testing.assert_allclose(ours.f[:1], theirs.f[:1], atol=0.25)


def test_streams_callbacks_and_stop_strings(family: dict[str, Path]) -> None:
    with engine(family) as host, engine(family, device="cuda") as device:
        pieces = [piece.text for piece in device.stream(PROMPTS[0], **OPTIONS)]
        whole = host.generate(PROMPTS[0], **OPTIONS)
        assert "".join(pieces) == whole.text
        stop = whole.text[3:5]
        stopped = device.generate(PROMPTS[0], stop_strings=[stop], **OPTIONS)
        assert stopped.text == host.generate(PROMPTS[0], stop_strings=[stop], **OPTIONS).text
        for piece in device.stream(PROMPTS[1], **OPTIONS):
            assert piece.token >= 0
            break  # an early close frees the slot
        close(device.generate(PROMPTS[0], **OPTIONS), whole)


def test_experts_on_a_second_device(family: dict[str, Path]) -> None:
    if len(_C.cuda_devices()) < 2:
        pytest.skip("one CUDA device")
    placed = {"large": "cuda:0", "experts": "cuda:1"}
    with engine(family) as host, engine(family, device_map=placed) as devices:
        for ours, theirs in zip(devices.generate(PROMPTS, **OPTIONS), host.generate(PROMPTS, **OPTIONS), strict=True):
            close(ours, theirs)


SPLIT = {"large": ["cuda:0", "cuda:1"], "experts": "cuda:0"}


@pytest.mark.parametrize("combine", ["select", "joint"])
def test_a_split_large_model(family: dict[str, Path], combine: str) -> None:
    if len(_C.cuda_devices()) < 2:
        pytest.skip("one CUDA device")
    with engine(family, combine=combine) as host, engine(family, combine=combine, device_map=SPLIT) as devices:
        for ours, theirs in zip(devices.generate(PROMPTS, **OPTIONS), host.generate(PROMPTS, **OPTIONS), strict=True):
            close(ours, theirs)
        [ours, theirs] = (one.score(PROMPTS[0], ["lazy dog", "sum"]) for one in (devices, host))
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.logprobs, other.logprobs, atol=1e-3)


@pytest.mark.parametrize(
    "types", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"weights": "int8"}, {"weights": "int4"}]
)
def test_a_split_changes_little_in_smaller_types(family: dict[str, Path], types: dict[str, str]) -> None:
    """The sums over devices are rounded once, as those of one device are."""
    if len(_C.cuda_devices()) < 2:
        pytest.skip("one CUDA device")
    with engine(family, device="cuda", **types) as one, engine(family, device_map=SPLIT, **types) as split:
        expected, found = one.generate(PROMPTS[2], **OPTIONS), split.generate(PROMPTS[2], **OPTIONS)
        again = split.generate([PROMPTS[0], PROMPTS[2]], **OPTIONS)[1]
    np.testing.assert_allclose(found.logprobs[:1], expected.logprobs[:1], atol=0.05)
    np.testing.assert_array_equal(again.logprobs, found.logprobs)


def test_a_large_model_that_cannot_be_split(family: dict[str, Path], tmp_path: Path) -> None:
    if len(_C.cuda_devices()) < 2:
        pytest.skip("one CUDA device")
    mixture = make_model(tmp_path / "mixture", "mixtral", seed=1)
    with pytest.raises(ValueError, match="routed experts cannot be split over several devices"):
        dlf.Engine(mixture, device_map={"large": ["cuda:0", "cuda:1"]})


def test_long_prompts_go_through_in_pieces(tmp_path: Path) -> None:
    path = make_model(tmp_path / "long", "mistral", seed=3, max_position_embeddings=2048, num_hidden_layers=1)
    prompt = [2 + (7 * i) % 300 for i in range(1100)]
    with dlf.Engine(path, threads=2, max_batch=1, max_context=1200) as host:
        theirs = host.generate(prompt, **OPTIONS)
    with dlf.Engine(path, device="cuda", max_batch=1, max_context=1200) as device:
        ours = device.generate(prompt, **OPTIONS)
    assert ours.tokens == theirs.tokens


def test_models_that_do_not_fit_are_refused_before_they_are_loaded(family: dict[str, Path]) -> None:
    experts = [dlf.Expert(family["expert-a"], base=family["base"])]
    before = _C.cuda_devices()[0].free_bytes
    with pytest.raises(MemoryError, match=r"GiB of cuda:0 .* GiB free"):
        dlf.Engine(make_wide(family), experts, device="cuda", max_batch=256)
    assert abs(_C.cuda_devices()[0].free_bytes - before) < before / 2


def make_wide(family: dict[str, Path]) -> Path:
    """Copy the large model, with a context in its config for which no device has the memory."""
    import json
    import shutil

    path = family["large"].parent / "wide"
    if not path.exists():
        shutil.copytree(family["large"], path)
        config = json.loads((path / "config.json").read_text())
        config["num_hidden_layers"] = 1024
        config["head_dim"] = 512
        (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_device_that_is_not_there(family: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="there is no cuda:77"):
        engine(family, device="cuda:77")


DRAFTERS = ["auto", "expert-a", "base", "prompt_lookup"]


# In float32, step_loop_cuda_test has the same drafters.
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_drafts_change_nothing(family: dict[str, Path], dtype: str) -> None:
    options = {"max_new_tokens": 7, "ignore_eos": True, "temperature": 0.7, "seed": 3, "logprobs": 2}
    with engine(family, device="cuda", dtype=dtype) as device:
        plain = device.generate(PROMPTS, speculate=False, **options)
        for drafter in DRAFTERS if dtype == "float32" else DRAFTERS[::3]:
            together = device.generate(PROMPTS, speculate=dlf.Speculation(drafter, 3, adaptive=False), **options)
            alone = device.generate(PROMPTS[0], speculate=dlf.Speculation(drafter, adaptive=False), **options)
            for found, expected in zip([*together, alone], [*plain, plain[0]], strict=True):
                assert found.tokens == expected.tokens and found.top_logprobs == expected.top_logprobs
                for name in ("logprobs", "alpha", "f", "g"):
                    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            assert alone.drafted > 0


def test_drafts_that_are_right(family: dict[str, Path]) -> None:
    """A separate drafter, here the large model itself, and an expert with a small weight; also stop strings."""
    experts = [dlf.Expert(family["expert-a"], family["base"], alpha=0.05)]
    options = {"max_new_tokens": 24, "ignore_eos": True}
    large = family["large"]
    with dlf.Engine(large, experts, device="cuda", drafter=large, max_batch=2, max_context=128) as device:
        plain = device.generate(PROMPTS[0], speculate=False, **options)
        found = device.generate(PROMPTS[0], speculate=dlf.Speculation("drafter", adaptive=False), **options)
        adaptive = device.generate(PROMPTS[0], **options)
        assert plain.tokens == found.tokens == adaptive.tokens
        assert (plain.passes, plain.drafted) == (24, 0)
        assert found.passes < 12 < found.drafted
        stop = plain.text[9:11]
        assert (
            device.generate(PROMPTS[0], stop_strings=[stop], speculate=dlf.Speculation(adaptive=False), **options).text
            == device.generate(PROMPTS[0], stop_strings=[stop], speculate=False, **options).text
        )


@pytest.mark.parametrize("combine", ["select", "joint"])
def test_lanes_of_every_kind(family: dict[str, Path], combine: str) -> None:
    """In-context experts, templates, an anti-expert, requests with some of the experts, prompts with one prefix."""
    base = family["base"]
    shots = [(f"Question: {i} and {i + 1}?", f"the sum is {2 * i + 1}") for i in range(6)]
    experts = [
        dlf.Expert(family["expert-a"], base, name="a", template="chat", alpha_max=0.5),
        dlf.InContext(base, shots, name="shots"),
        dlf.Expert(family["expert-b"], base, name="toxic", alpha=-0.3),
    ]
    found: list[list[dlf.Completion]] = []
    for device, size in (("cpu", 0), ("cuda", 0), ("cuda", 1 << 24)):
        options: dict[str, Any] = {"device": device, "combine": combine, "prefix_cache_bytes": size, "max_batch": 2}
        with dlf.Engine(family["large"], experts, dtype="float32", threads=2, max_context=192, **options) as engine:
            completions = engine.generate([PROMPTS[0], PROMPTS[1]], max_new_tokens=5, ignore_eos=True)
            for names in (["shots"], ["a", "toxic"], []):
                completions.append(engine.generate(PROMPTS[0], experts=names, max_new_tokens=4, ignore_eos=True))
            engine.remove_expert("a")
            completions.append(engine.generate(PROMPTS[0], examples=shots, max_new_tokens=3, ignore_eos=True))
            found.append(completions)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.tokens == two.tokens
            assert one.experts == two.experts
            np.testing.assert_allclose(one.alpha, two.alpha, atol=3e-3)
    assert [one.cached_tokens > 0 for one in found[2]] == [False, True, True, True, True, False]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters(family: dict[str, Path], dtype: str, tmp_path: Path) -> None:
    base = family["base"]
    experts = [
        dlf.Lora(base, write_adapter(tmp_path / "one", base, 1)),
        dlf.Lora(base, write_adapter(tmp_path / "two", base, 2, rank=9)),
        dlf.InContext(base, [("The quick", "fox")]),
    ]
    found = []
    for device in ("cpu", "cuda"):
        with dlf.Engine(
            family["large"], experts, device=device, dtype=dtype, combine="centroid", max_batch=2, max_context=96
        ) as engine:
            found.append(engine.generate(PROMPTS[:2], max_new_tokens=4, ignore_eos=True))
            found[-1].append(engine.generate(PROMPTS[0], experts=["two"], max_new_tokens=3, ignore_eos=True))
    for host, device in zip(*found, strict=True):
        if dtype == "float32":
            close(device, host)
        else:
            np.testing.assert_allclose(device.alpha[0], host.alpha[0], atol=0.1)
