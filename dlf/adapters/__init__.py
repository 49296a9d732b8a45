"""LoRA adapters as files: reads and checks what PEFT writes."""
