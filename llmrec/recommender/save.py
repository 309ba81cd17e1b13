"""Write a recommender as a bundle."""

from pathlib import Path

from llmrec import __version__
from llmrec.atomic import make_folder, usual_modes, write_text
from llmrec.model.quantized import bits_of
from llmrec.recommender import bundle, hub
from llmrec.recommender.card import card_text
from llmrec.recommender.trained import Trained
from llmrec.recommender.weights import save_weights
from llmrec.tasks.config import ASKED, save_templates


def save_bundle(recommender: Trained, folder: Path) -> None:
    """Write the bundle into `folder`, which is created if it does not exist; a bundle there is replaced.

    Raises:
        UserError: the folder can't be made, or holds no bundle, but a file with the name of a bundle file.
    """
    make_folder(folder)
    bundle.require_writable(folder)
    item_tokenizer = recommender.item_tokenizer
    save_weights(recommender.model, recommender.tokenizer, folder)
    item_tokenizer.save(folder / bundle.QUANTIZER)
    # The bundle holds the prompts of the tasks that the model was trained on, and of those that requests use.
    asked = recommender.taught.union(ASKED) if recommender.taught else recommender.templates
    templates = {name: template for name, template in recommender.templates.items() if name in asked}
    save_templates(templates, folder / bundle.PROMPTS)
    recommender.store.save(folder)
    if recommender.fusion_weights is not None:
        recommender.fusion_weights.save(folder / bundle.FUSION)
    else:
        (folder / bundle.FUSION).unlink(missing_ok=True)  # of another model, which was saved here before
    adapter = getattr(recommender.model, "peft_config", {}).get("default")
    header = bundle.Header(
        schema=bundle.SCHEMA,
        llmrec=__version__,
        levels=len(item_tokenizer.level_sizes),
        level_sizes=list(item_tokenizer.level_sizes),
        token_prefix=recommender.base.token_prefix,
        scoring=recommender.decode_config.scoring,
        base_model=(adapter and adapter.base_model_name_or_path) or recommender.base_model,
        weights="model" if adapter is None else "adapter",
        max_history=recommender.max_history,
        keep_layers=recommender.base.keep_layers,
        preference=recommender.preference,
        bits=32 if adapter is None else bits_of(recommender.model),
        user_tokens=recommender.user_tokens,
        title_tokens=recommender.title_tokens,
    )
    bundle.write_header(header, folder)
    write_text(folder / hub.CARD, card_text(folder))
    usual_modes(folder)
