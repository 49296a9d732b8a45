"""Sampling options as users write them, and stop strings."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlf import _C
from dlf.errors import OptionError
from dlf.sampling import SamplingOptions, StopStrings


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_new_tokens", 0, ValueError),
        ("max_new_tokens", 1.5, TypeError),
        ("max_new_tokens", True, TypeError),
        ("min_new_tokens", 200, ValueError),
        ("temperature", -0.1, ValueError),
        ("temperature", math.nan, ValueError),
        ("temperature", "hot", TypeError),
        ("temperature", True, TypeError),
        ("top_k", -1, ValueError),
        ("top_k", 2.0, TypeError),
        ("top_k", 2**63, ValueError),
        ("top_p", 0.0, ValueError),
        ("top_p", 1.1, ValueError),
        ("min_p", -0.1, ValueError),
        ("repetition_penalty", 0, ValueError),
        ("presence_penalty", math.inf, ValueError),
        ("frequency_penalty", None, TypeError),
        ("logit_bias", [(1, 2.0)], TypeError),
        ("logit_bias", {-1: 2.0}, ValueError),
        ("logit_bias", {2**63: 2.0}, ValueError),
        ("logit_bias", {1: math.inf}, ValueError),
        ("logit_bias", {"a": 1.0}, TypeError),
        ("bad_words", "word", TypeError),
        ("bad_words", [""], ValueError),
        ("bad_words", [3], TypeError),
        ("bad_words_ids", [[]], ValueError),
        ("bad_words_ids", [3], TypeError),
        ("bad_words_ids", [[True]], TypeError),
        ("stop_strings", "", ValueError),
        ("stop_strings", 3, TypeError),
        ("stop_token_ids", 3, TypeError),
        ("stop_token_ids", [-1], ValueError),
        ("stop_token_ids", [2**63], ValueError),
        ("ignore_eos", 1, TypeError),
        ("num_return_sequences", 0, ValueError),
        ("num_return_sequences", 2, ValueError),
        ("seed", -1, ValueError),
        ("seed", 2**64, ValueError),
        ("seed", 1.0, TypeError),
        ("logprobs", -1, ValueError),
        ("logprobs", 2**40, ValueError),
        ("temperature", 10**400, ValueError),
        ("logit_bias", {7: 10**400}, ValueError),
        ("logit_bias", {7: 1e39}, ValueError),
        ("repetition_penalty", 1e-300, ValueError),
        ("repetition_penalty", 1e300, ValueError),
        ("presence_penalty", -1e300, ValueError),
        ("frequency_penalty", 1e38, ValueError),
        ("num_return_sequences", 2**40, ValueError),
        ("stop_strings", ["a"] * 2000, ValueError),
        ("stop_strings", "a" * 100_000, ValueError),
        ("stop_token_ids", range(1 << 20), ValueError),
        ("bad_words", ["a"] * (1 << 15), ValueError),
        ("bad_words", ["a" * (1 << 21)], ValueError),
        ("bad_words_ids", [[1] * 600_000] * 2, ValueError),
    ],
)
def test_impossible_options_are_named(option, value, error):
    with pytest.raises(error, match=option):
        SamplingOptions(**{option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature is -1: give"),
        ({"temperature": math.nan}, r"temperature is nan: give"),
        ({"temperature": math.inf}, r"temperature is inf: give"),
        ({"top_p": 0.0}, r"top_p is 0: give"),
        ({"top_p": 1.5}, r"top_p is 1.5: give"),
        ({"min_p": -0.5}, r"min_p is -0.5: give"),
        ({"min_p": 1.5}, r"min_p is 1.5: give"),
        ({"top_k": -1}, r"top_k is -1: give"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0: give"),
        ({"repetition_penalty": math.inf}, r"repetition_penalty is inf: give"),
        ({"presence_penalty": math.nan}, r"presence_penalty is nan: give"),
        ({"frequency_penalty": math.inf}, r"frequency_penalty is inf: give"),
        ({"repetition_penalty": 1e-300}, r"repetition_penalty is 1e-300: give a number from 1e-06 to 1e\+06"),
        ({"repetition_penalty": 1e300}, r"repetition_penalty is 1e\+300: give a number from 1e-06 to 1e\+06"),
        ({"presence_penalty": -1e300}, r"presence_penalty is -1e\+300: give a number from -1e\+06 to 1e\+06"),
        ({"frequency_penalty": 2e6}, r"frequency_penalty is 2e\+06: give a number from -1e\+06 to 1e\+06"),
        ({"logit_bias": [(1, 3.41e38)]}, r"logit_bias of token 1 is 3.41e\+38: give a number from -3.4e\+38 to 3.4e"),
        ({"logit_bias": [(1, 1e300)]}, r"logit_bias of token 1 is 1e\+300: give"),
        ({"logit_bias": [(1, -1e300)]}, r"logit_bias of token 1 is -1e\+300: give .* or -inf to exclude the token"),
        ({"logit_bias": [(1, math.nan)]}, r"logit_bias of token 1 is nan: give"),
        ({"logit_bias": [(9, 1.0)]}, r"logit_bias names token 9.*from 0 to 7"),
        ({"bad_words": [[1, -1]]}, r"bad_words names token -1"),
        ({"bad_words": [[]]}, r"bad_words holds an empty word: give"),
        ({"stop_token_ids": [8]}, r"stop_token_ids names token 8"),
        ({"logprobs": -1}, r"logprobs is -1: give"),
        ({"logprobs": 9}, r"logprobs is 9: give"),
        ({"min_new_tokens": -1}, r"min_new_tokens is -1: give"),
    ],
)
def test_the_engine_names_impossible_options_too(options, message):
    with pytest.raises(OptionError, match=message) as caught:
        _C.Sampler(_C.SamplingOptions(**options), 8)
    assert caught.value.field in options


def test_python_options_reach_the_sampler():
    options = SamplingOptions(
        temperature=0.5, top_k=3, logit_bias={2: 1.0}, bad_words_ids=[[1, 2]], stop_token_ids=[7], seed=9, logprobs=2
    )
    built = options.build(eos_token_ids=[0], bad_words_ids=[[3]], stream=4)
    assert (built.temperature, built.top_k, built.seed, built.stream, built.logprobs) == (0.5, 3, 9, 4, 2)
    assert built.logit_bias == [(2, 1.0)]
    assert built.bad_words == [[1, 2], [3]]
    assert built.stop_token_ids == [7, 0]
    assert SamplingOptions(ignore_eos=True).build(eos_token_ids=[0], seed=3).stop_token_ids == []
    assert SamplingOptions().build().seed != SamplingOptions().build().seed


def test_errors_quote_the_beginning_of_a_value():
    with pytest.raises(TypeError, match=r"^temperature is 'x{56}\.\.\.: give a number$"):
        SamplingOptions(temperature="x" * 100_000)
    with pytest.raises(ValueError, match=r"^seed is a number of thousands of digits: give an int from 0 to"):
        SamplingOptions(seed=10**5000)


def test_numbers_and_arrays_of_numpy_and_torch_are_values():
    options = SamplingOptions(
        max_new_tokens=np.int64(3),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        logit_bias={np.int32(2): np.float64(-1e300)},
        stop_token_ids=np.array([1, 2]),
        bad_words_ids=torch.tensor([[3, 4]]),
    )
    assert options == SamplingOptions(
        max_new_tokens=3,
        temperature=0.5,
        seed=2**64 - 1,
        logit_bias={2: -math.inf},
        stop_token_ids=(1, 2),
        bad_words_ids=((3, 4),),
    )
    assert _C.Sampler(options.build(), 8) is not None


def test_the_least_and_largest_values_keep_the_logits_finite():
    logits = np.linspace(-30, 30, 8, dtype=np.float32)
    for options in (
        {"repetition_penalty": 1e-6, "presence_penalty": -1e6, "frequency_penalty": -1e6, "logit_bias": {1: 3.4e38}},
        {"repetition_penalty": 1e6, "presence_penalty": 1e6, "frequency_penalty": 1e6, "logit_bias": {1: -3.4e38}},
        {"temperature": 5e-324, "min_p": 5e-324, "top_p": 5e-324},
        {"temperature": 1e300},
    ):
        sampler = _C.Sampler(SamplingOptions(seed=1, **options).build(), 8, [1, 2])
        for step in range(4):
            token = sampler.sample(logits, step)[0]
            assert 0 <= token < 8
            sampler.append(token)


def test_options_are_frozen_and_copied():
    words = [[1, 2]]
    options = SamplingOptions(bad_words_ids=words, stop_strings="\n")
    words[0].append(3)
    assert options.bad_words_ids == ((1, 2),)
    assert options.stop_strings == ("\n",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.top_k = 3


def scan(strings, pieces):
    scanner = StopStrings(strings)
    shown, stopped = "", False
    for piece in pieces:
        text, stopped = scanner.push(piece)
        shown += text
    return shown + scanner.flush(), stopped


def cut_at_first_stop(strings, text):
    """Return the text before the stop string that ends first (the longest of several), and whether there is one."""
    for end in range(1, len(text) + 1):
        found = [len(string) for string in strings if text[:end].endswith(string)]
        if found:
            return text[: end - max(found)], True
    return text, False


def test_text_is_held_back_only_while_it_may_stop():
    scanner = StopStrings(["</s>", "\n\n"])
    assert scanner.push("a<") == ("a", False)
    assert scanner.push("/x\n") == ("</x", False)
    assert scanner.push("b\n") == ("\nb", False)
    assert scanner.push("\nc") == ("", True)
    assert scanner.push("d") == ("", True)
    assert scanner.flush() == ""


def test_without_stop_strings_everything_passes():
    assert StopStrings().push("text") == ("text", False)


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.text("ab", max_size=6), max_size=8),
)
def test_any_pieces_stop_at_the_same_place(strings, pieces):
    expected = cut_at_first_stop(strings, "".join(pieces))
    assert scan(strings, pieces) == expected
    scanner = StopStrings(strings)
    shown = ""
    for piece in pieces:
        shown += scanner.push(piece)[0]
        assert expected[0].startswith(shown)


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.tuples(st.text("ab", max_size=5), st.booleans()), max_size=8),
)
def test_text_that_is_not_shown_counts_for_stop_strings(strings, pieces):
    whole = "".join(text for text, _ in pieces)
    before, stops = cut_at_first_stop(strings, whole)
    visible = "".join(character for text, shown in pieces for character in (text if shown else "." * len(text)))
    scanner = StopStrings(strings)
    found = [scanner.push(text, shown) for text, shown in pieces]
    rest = scanner.flush()
    assert "".join(text for text, _ in found) + rest == visible[: len(before)].replace(".", "")
    assert any(stopped for _, stopped in found) == stops
