"""LoRA or full fine-tuning on transformers.Trainer, with checkpoints."""
