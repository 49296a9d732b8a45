"""OpenVINO GenAI: the models decode a token one after the other, without the cost of fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

# int4 as in dlf and llama.cpp: symmetric, one scale for each 32 inputs. int8 has one scale per channel.
COMPRESSION = {"int8": {"bits": 8, "sym": True}, "int4": {"bits": 4, "sym": True, "group_size": 32}}


def prepare(folder: Path, weights: str, scratch: Path) -> Path:
    """Export with optimum-intel, in bfloat16 as the file or compressed by nncf without data."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    target = scratch / f"{folder.name}-openvino-{weights}"
    config = OVWeightQuantizationConfig(**COMPRESSION[weights]) if weights in COMPRESSION else None
    options = {"export": True, "compile": False, "quantization_config": config, "load_in_8bit": False}
    OVModelForCausalLM.from_pretrained(folder, **options).save_pretrained(target)
    return target


def read_bytes(path: Path) -> int:
    """Bytes of a model's weights that a token reads; the larger one of two vocabulary tables is the embedding."""
    import openvino

    model = openvino.Core().read_model(path / "openvino_model.xml")
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    sizes = [node.get_byte_size() for node in constants]
    vocab = model.output("logits").partial_shape[-1].get_length()
    tables = [size for node, size in zip(constants, sizes, strict=True) if vocab in node.get_output_shape(0)[:1]]
    return sum(sizes) - max(tables)


class OpenVino:
    """One model, stepped token by token, on the pipeline that `LLMPipeline` also uses."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = context  # a prompt in one step, as in LLMPipeline
        tokenizer = openvino_genai.Tokenizer(path)  # an empty one: prompts are token ids
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            path, tokenizer, scheduler, "CPU", INFERENCE_NUM_THREADS=threads
        )
        self.context = context
        self.requests = 0

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        import numpy as np
        import openvino
        import openvino_genai

        options = openvino_genai.GenerationConfig()
        options.max_new_tokens = self.context - len(prompt)
        options.ignore_eos = True
        self.requests += 1
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        request = self.pipeline.add_request(self.requests, ids, options)
        try:
            while True:
                self.pipeline.step()
                yield request.read()
        finally:
            request.stop()
            self.pipeline.step()  # frees its place


class Sum:
    """Several models, one after the other."""

    def __init__(self, paths: Sequence[Path], weights: str, threads: int, context: int) -> None:
        self.weight_bytes = sum(read_bytes(path) for path in paths)
        self.models = [OpenVino(path, threads, context) for path in paths]
        self.settings = {"weights": COMPRESSION.get(weights, "as the file"), "pipeline": "ContinuousBatchingPipeline"}

    def tokens(self, prompt: Sequence[int]) -> Iterator[object]:
        return zip(*(model.tokens(prompt) for model in self.models), strict=True)


def load(paths: Sequence[Path], weights: str, threads: int, context: int) -> Sum:
    return Sum(paths, weights, threads, context)
