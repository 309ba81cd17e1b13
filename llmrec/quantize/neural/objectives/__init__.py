"""Terms of a neural quantizer's loss, beside its reconstruction and quantization errors."""
