"""LoRA adapters as files: what PEFT writes, read and checked."""
