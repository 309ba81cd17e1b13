"""Base models, LoRA or full fine-tuning on transformers.Trainer, checkpoints."""
