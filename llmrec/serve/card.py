"""The model card of a bundle, written from what the run measured."""

from pathlib import Path
from typing import Any

from llmrec.evaluate.report import markdown_table, protocol_line
from llmrec.serve.bundle import read_header

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

## Measured

{protocol}.

{table}

Decoding: {decode}.
"""

WEIGHTS = {
    "model": "`AutoModelForCausalLM` and `AutoTokenizer` load it as it is.",
    "adapter": "`AutoPeftModelForCausalLM` and `AutoTokenizer` load the adapter onto its base.",
}


def model_card(folder: Path, metrics: dict[str, Any]) -> str:
    """README.md of the bundle in `folder`, with the evaluation's `metrics`."""
    header = read_header(folder)
    decode = metrics["decode"]
    return CARD.format(
        base=header.base_model,
        levels=header.levels,
        sizes=", ".join(map(str, header.level_sizes)),
        weights=WEIGHTS[header.weights],
        protocol=protocol_line(metrics).capitalize(),
        table=markdown_table(metrics),
        decode=f"{decode['beams']} beams, scoring {decode['scoring']}, constraint {decode['constraint']}, "
        f"invalid answers {decode['invalid_rate']:.1%}",
    )
