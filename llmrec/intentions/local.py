"""A causal language model of Hugging Face, asked on this machine."""

from typing import TYPE_CHECKING

from llmrec.console import track
from llmrec.errors import UserError
from llmrec.intentions.answers import Answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 256
"""Of an answer at most."""


class LocalModel:
    """Greedy answers in batches.

    Args:
        name: folder or Hub id.
        batch_size: prompts per call of the model.
    """

    def __init__(self, name: str, batch_size: int) -> None:
        self.name = name
        self._batch_size = batch_size

    def answer(self, prompts: list[str], answers: Answers) -> None:
        """Put every answer into `answers`, a batch at a time; raises UserError if the model can't be loaded."""
        import torch

        model, tokenizer = self._load()
        prompts = sorted(prompts, key=len, reverse=True)  # little padding; too large for memory fails at once
        batches = range(0, len(prompts), self._batch_size)
        for start in track(batches, f"asking {self.name}", len(batches)):
            batch = prompts[start : start + self._batch_size]
            texts = [_as_chat(tokenizer, prompt) for prompt in batch]
            inputs = tokenizer(
                texts, padding=True, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None
            ).to(model.device)
            with torch.inference_mode():
                outputs = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            new = outputs[:, inputs["input_ids"].shape[1] :]
            for prompt, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers.keep(prompt, text)

    def _load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llmrec.device import resolve_device, resolve_dtype

        device = resolve_device("auto")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(self.name, dtype=resolve_dtype("auto", device))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--intentions.local_model {self.name}: can't be loaded as a causal language model: {reason}"
            ) from None
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.to(device).eval(), tokenizer


def _as_chat(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> str:
    """The prompt as a user's turn, where the model knows turns; without the thoughts of models that can do without."""
    if tokenizer.chat_template is None:
        return f"{prompt}\n\n"
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False))
