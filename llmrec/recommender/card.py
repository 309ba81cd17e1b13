"""The model card of a bundle, README.md: fields that the Hub reads, then what a reader wants to know."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.model.architecture import says_encoder_decoder
from llmrec.recommender import hub
from llmrec.recommender.bundle import Header, read_header, readable, sizes
from llmrec.resources import is_repo_id

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TITLE = "A recommender made with llmrec"

BODY = """
# {title}

Started from {base}. Every item of the catalogue has a semantic ID of {levels} codes (codes per level:
{sizes}); each code is a token of the tokenizer. {weights}

```python
from llmrec import Recommender

recommender = Recommender.from_pretrained("path/or/hub-id")    # "org/name@REVISION" for one revision
recommender.recommend(prompt="what you look for, in plain words", k=10)
recommender.recommend(history=["an item's id", "the id of a later one"], k=10)
```

`item_index.parquet` holds the items with their codes and text, `prompts/` the prompts it was trained on,
`quantizer/` what turns an embedding into codes, `trie.safetensors` the codes as a trie.

{size} in all, {rows} of it the rows of the item tokens.
{data}
## Measured

{measured}

## Limits

- It recommends only items of its catalogue. Items that are added later get codes from their text, without training;
  nobody has measured how well these are ranked unless a table above says so.
- It has learnt from a log, and repeats its habits: what was shown and bought often comes first.
- Offline measurements say how often the next item of a log is found, not how people like what they are shown.
- The text of the items is a part of the bundle. The log is not, but a model can reveal what it has learnt from.

## Licence

The field `license` above is what its publisher chose. The terms of the base model and of the data apply, too.
"""

DATA = """
## Data

{data}
"""

WEIGHTS = {
    "model": "`{kind}` and `AutoTokenizer` load it as it is.",
    "adapter": "`AutoPeftModelForCausalLM` and `AutoTokenizer` load the adapter onto its base.",
    "cut": "The adapter is for the first {layers} decoder layers of its base; llmrec cuts the base when it loads the "
    "bundle, `AutoPeftModelForCausalLM` does not.",
}


@dataclass(frozen=True)
class Evaluated:
    """What a card says beyond what the bundle itself does.

    Attributes:
        measured: the section with the measurements, in Markdown.
        results: the figures that the Hub shows.
        data: the section on the data, in Markdown; empty: no section.
        datasets: ids of the data sets on the Hub.
    """

    measured: str = "Nothing has been measured yet."
    results: "Sequence[EvalResult]" = ()
    data: str = ""
    datasets: Sequence[str] = ()


def card_text(folder: Path, evaluated: Evaluated | None = None) -> str:
    """The text of README.md for the bundle in `folder`.

    Raises:
        UserError: the folder holds no bundle.
    """
    from huggingface_hub import ModelCardData

    found, header, size = evaluated or Evaluated(), read_header(folder), sizes(folder)
    base, card = header.base_model, folder / hub.CARD
    before = card.stat().st_size if card.is_file() else 0  # a card does not change because there was one before
    fields = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", "semantic-ids", "llmrec"],
        base_model=base if is_repo_id(base) and not Path(base).exists() else None,
        datasets=list(found.datasets) or None,
        model_name=TITLE if found.results else None,
        eval_results=list(found.results) or None,
    )
    body = BODY.format(
        title=TITLE,
        base=base,
        levels=header.levels,
        sizes=", ".join(map(str, header.level_sizes)),
        weights=_weights(folder, header),
        size=readable(size["total"] - before),
        rows=readable(size["item_token_rows"]),
        data=DATA.format(data=found.data) if found.data else "",
        measured=found.measured,
    )
    return f"---\n{fields.to_yaml()}\n---\n{body}"


def _weights(folder: Path, header: Header) -> str:
    """How to load the weights without llmrec."""
    cut = header.weights == "adapter" and header.keep_layers > 0
    kind = "AutoModelForSeq2SeqLM" if says_encoder_decoder(folder) else "AutoModelForCausalLM"
    return WEIGHTS["cut" if cut else header.weights].format(layers=header.keep_layers, kind=kind)
