"""How the model is aligned with preferences: section `preference` of the configuration."""

from dataclasses import dataclass
from typing import Literal

from llmrec.checks import check_fields
from llmrec.errors import UserError

PreferenceMethod = Literal["none", "s-dpo", "grpo"]


@dataclass
class PreferenceConfig:
    """Preference alignment: training on the model's own lists, after the training on the log."""

    method: PreferenceMethod = "none"
    """none: no alignment. s-dpo (arXiv 2406.09215): the item that the user took is preferred to items of the model's
    own list, drawn once before the alignment. grpo (as MiniOneRec, arXiv 2510.24431): the model's current lists are
    rewarded for the item that the user took."""
    feedback: str | None = None
    """Method s-dpo: a file with columns user_id, item_id and liked (0 or 1). A liked item is preferred to the items
    that the same user disliked, and then to those of the model's own list. With a column position (1 for the top of the
    list that the user saw), only the disliked items above the liked one count. Without a file, the items that users
    took in the training part are preferred."""
    examples: int = 20_000
    """Most events of the training part (or liked items) to learn from, a random sample drawn once."""
    epochs: int = 1
    """Passes over the examples."""
    batch_size: int = 32
    """Prompts per optimizer step and process."""
    accumulation: int = 1
    """Forward passes per optimizer step; each takes batch_size / accumulation prompts."""
    learning_rate: float = 1e-5
    """Peak learning rate of the cosine schedule; the first tenth of the steps rises to it."""
    beta: float = 1.0
    """Method s-dpo: scale of the log-probabilities; a larger value keeps the model closer to where it started."""
    negatives: int = 5
    """Method s-dpo: rejected items per prompt."""
    easy: float = 0.25
    """Method s-dpo: share of the steps, at the start, whose rejected items are drawn at random in proportion to their
    training events, not from the model's list (progressive difficulty, Align3GR, arXiv 2511.11255)."""
    group: int = 16
    """Method grpo: items per prompt (G)."""
    draw: Literal["beams", "samples"] = "beams"
    """How the items of a group (grpo), or the rejected items of the model's own list (s-dpo), are drawn. beams: the
    best ones. samples: at random from the model's distribution; a group has different items (stochastic beam search),
    rejected items are drawn one by one and may be equal. s-dpo on beams lowers what stands at the top of a list, right
    or wrong; on samples it ends where the model has the distribution of the preferred items."""
    session: int = 1
    """Method grpo: items of a list that is generated in one go, each given those before it, and rewarded as a whole
    (OneRec, arXiv 2502.18965). 1: single items. Answers come from such lists with --decode.ranking session."""
    reward: Literal["hit", "ranked-hit", "experts"] = "ranked-hit"
    """Method grpo: hit gives 1 for the item that the user took. ranked-hit also takes off something for each other item
    of a group with a hit, more at the top of the list (MiniOneRec). For lists of `session` items: 1 for a list that has
    that item, or its NDCG. experts: the logarithm of the probability that the experts of train.distill give an item,
    without the user's own events. In Python, any function can be the reward."""
    kl: float | None = None
    """Method grpo: weight of the divergence from the model before the alignment. Default: 1 with reward experts, which
    have something to say against every item, else 0.001."""
    updates: int = 1
    """Method grpo: optimizer steps for which groups are drawn together, each with prompts of its own."""
    clip: float = 0.0
    """Method grpo with updates above 1: limits how far one group moves the probability of an item, by a factor of
    1 - clip to 1 + clip (ECPO, OneRec, arXiv 2506.13695). 0: no limit."""
    evaluations: int = 5
    """Number of times that the validation metrics are computed and a checkpoint is written, at regular intervals."""
    best_by: Literal["ndcg@10", "recall@10", "recall@50"] = "ndcg@10"
    """The metric that says which model is the best: recall@10 or recall@50 if a ranker will order the list again."""
    patience: int = 2
    """Stop after this many evaluations without a better model. 0: train to the end. The best model is kept. It has to
    exceed the metric before the alignment by more standard errors of the difference than chance reaches in one of six
    alignments: 1 with one evaluation, 1.8 with five."""
    recall_lost: float = 0.02
    """An evaluation is only better if its recall@50 is at least 1 - recall_lost of that before the alignment."""
    validation_users: int = 1000
    """Most validation events in an evaluation, a random sample drawn once."""
    seed: int = 0
    """Random seed of the sample, its order, the easy negatives and the draws."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "preference",
            at_least={
                0: ("kl", "patience", "seed"),
                1: (
                    *("examples", "epochs", "batch_size", "accumulation", "negatives", "updates", "evaluations"),
                    *("validation_users", "session"),
                ),
                2: ("group",),
            },
            positive=("learning_rate", "beta"),
            shares=("easy", "clip", "recall_lost"),
        )
        if self.batch_size % self.accumulation:
            raise UserError(
                f"--preference.batch_size {self.batch_size} is not a multiple of --preference.accumulation "
                f"{self.accumulation}."
            )
        if self.clip and self.updates == 1:
            raise UserError(
                f"--preference.clip {self.clip} limits nothing with --preference.updates 1: each group is drawn by the "
                "model that learns from it; set updates to 2 or more, or clip to 0."
            )
        if self.reward == "experts" and self.method == "s-dpo":
            raise UserError("--preference.reward experts: --preference.method s-dpo has no reward; set it to grpo.")
        if self.session > 1 and self.reward == "experts":
            raise UserError(
                f"--preference.reward experts judges items, but --preference.session {self.session} rewards lists; set "
                "it to 1."
            )
        if self.session > 1 and self.method == "s-dpo":
            raise UserError(
                f"--preference.session {self.session} rewards lists, which --preference.method s-dpo does not; set "
                "it to 1, or the method to grpo."
            )
        if self.feedback is not None and self.method != "s-dpo":
            raise UserError(
                f"--preference.feedback {self.feedback} needs --preference.method s-dpo; set it, or leave the file out."
            )

    def check_encoder_decoder(self, subject: str) -> None:
        """Raise UserError if an encoder-decoder would be aligned; `subject`: what it is, in the message."""
        if self.method != "none":
            raise UserError(
                f"--preference.method {self.method} aligns decoders, and {subject} is an encoder-decoder; set it to "
                "none."
            )

    @property
    def by_experts(self) -> bool:
        """Whether the experts reward the model's items."""
        return self.method == "grpo" and self.reward == "experts"

    @property
    def kl_weight(self) -> float:
        """`kl`, or its default."""
        return self.kl if self.kl is not None else 1.0 if self.reward == "experts" else 1e-3
