"""Plain forward passes over prompts and answers, for any language model of transformers.

A decoder-only model reads a prompt and its answer as one sequence. The encoder of an encoder-decoder (T5) reads the
prompt, and its decoder reads a start token and the answer. In both, position t of the answer is scored from the hidden
state that has read the prompt and the t answer tokens before it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llmrec.model.architecture import decoder_of, encoder_of, start_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def right_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and attention mask, int64 [B, T]."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.full(mask.shape, pad_token_id)
    ids[mask.bool()] = torch.tensor([token for prompt in prompts for token in prompt])
    return ids.to(device), mask.to(device)


def started(model: "PreTrainedModel", answers: torch.Tensor) -> torch.Tensor:
    """The decoder's input int64 [n, 1 + A] for answers int64 [n, A]: the start token of an encoder-decoder first."""
    return torch.nn.functional.pad(answers, (1, 0), value=start_token(model))


def answer_logits(model: "PreTrainedModel", prompts: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Logits [n, 1 + A, V] after each prompt and after each token of its answer, in one pass without padding or cache.

    Args:
        model: decoder-only or encoder-decoder.
        prompts: int64 [n, T].
        answers: int64 [n, A].
    """
    if encoder_of(model) is None:
        logits: torch.Tensor = model(torch.cat([prompts, answers], dim=1), use_cache=False).logits
        return logits[:, prompts.shape[1] - 1 :]
    own: torch.Tensor = model(input_ids=prompts, decoder_input_ids=started(model, answers), use_cache=False).logits
    return own


def answer_states(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], answers: torch.Tensor, pad_token_id: int
) -> torch.Tensor:
    """Hidden states [n, 1 + A, H] after each prompt and after each token of its answer, in one pass without cache.

    Args:
        model: decoder-only or encoder-decoder.
        prompts: token ids of n prompts.
        answers: int64 [n, A], on the model's device.
        pad_token_id: pads prompts on the right, where causal attention does not look and an encoder has a mask.
    """
    encoder, device = encoder_of(model), answers.device
    if encoder is not None:
        ids, mask = right_padded(prompts, pad_token_id, device)
        states: torch.Tensor = decoder_of(model)(
            input_ids=started(model, answers),
            encoder_hidden_states=encoder(input_ids=ids, attention_mask=mask).last_hidden_state,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return states.to(device)
    ids, _ = right_padded(
        [[*prompt, *answer] for prompt, answer in zip(prompts, answers.tolist(), strict=True)], pad_token_id, device
    )
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    at = last[:, None] + torch.arange(answers.shape[1] + 1, device=device)
    hidden: torch.Tensor = decoder_of(model)(input_ids=ids).last_hidden_state.to(device)
    return hidden[torch.arange(len(at), device=device)[:, None], at]
