"""The model card of a bundle, written from what the run measured."""

from pathlib import Path
from typing import Any

from llmrec.evaluate.report import markdown_table, protocol_line, text_queries_line
from llmrec.serve.bundle import read_header
from llmrec.serve.size import readable, sizes

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [recommendation, semantic-ids, llmrec]
---

# A recommender made with llmrec

Started from {base}. Every item of the catalogue has a semantic ID of {levels} codes (codes per level:
{sizes}); each code is a token of the tokenizer. {weights}

```python
from llmrec import Recommender

recommender = Recommender.from_pretrained("path/or/hub-id")
recommender.recommend(prompt="what you look for, in plain words", k=10)
```

`item_index.parquet` holds the items with their codes and text, `prompts/` the prompts it was trained on,
`quantizer/` what turns an embedding into codes, `trie.safetensors` the codes as a trie.

{size} in all, {rows} of it the rows of the item tokens.

## Measured

{protocol}.

{table}

{cold}{asked}Decoding: {decode}.
"""

COLD = """Users with a warm target (with training events), and with a cold one:

{warm}

{cold}

"""

ASKED = """Asked in plain words: {line}.

{table}

"""

WEIGHTS = {
    "model": "`AutoModelForCausalLM` and `AutoTokenizer` load it as it is.",
    "adapter": "`AutoPeftModelForCausalLM` and `AutoTokenizer` load the adapter onto its base.",
}


def model_card(folder: Path, metrics: dict[str, Any], text_queries: dict[str, Any] | None = None) -> str:
    """README.md of the bundle in `folder`, with the evaluation's `metrics` and, if measured, those of text queries."""
    header = read_header(folder)
    decode, size = metrics["decode"], sizes(folder)
    asked = cold = ""
    if "cold_candidates" in metrics:
        cold = COLD.format(warm=markdown_table(metrics, "warm"), cold=markdown_table(metrics, "cold"))
    if text_queries is not None:
        asked = ASKED.format(line=text_queries_line(text_queries), table=markdown_table(text_queries))
    return CARD.format(
        base=header.base_model,
        levels=header.levels,
        sizes=", ".join(map(str, header.level_sizes)),
        weights=WEIGHTS[header.weights],
        size=readable(size["total"]),
        rows=readable(size["item_token_rows"]),
        protocol=protocol_line(metrics).capitalize(),
        table=markdown_table(metrics),
        cold=cold,
        asked=asked,
        decode=f"ranking {decode['ranking']}, {decode['beams']} beams, scoring {decode['scoring']}, constraint "
        f"{decode['constraint']}, invalid answers {decode['invalid_rate']:.1%}",
    )
