"""Make `Intentions` (texts that say what people want) from a prepared log and the source in the configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from llmrec.atomic import write_bytes
from llmrec.console import get_logger
from llmrec.data.prepare import Prepared
from llmrec.errors import UserError
from llmrec.intentions.answers import FILE
from llmrec.intentions.intentions import Intentions, IntentionsConfig

log = get_logger(__name__)


def gather(config: IntentionsConfig, prepared: Prepared, folder: Path, earlier: Path | None = None) -> Intentions:
    """The intentions of the items and the preferences of the users, from the source `config.source`.

    Texts for training use no review and no history of the validation and test parts.

    Args:
        config: its source is not none.
        prepared: the catalogue and the split log.
        folder: the answers of a language model are saved here, each as soon as it arrives.
        earlier: folder of an earlier call. Its answers are copied to `folder` for every source, because they may have
            cost money.

    Raises:
        UserError: the input of the source is missing or malformed, the language model cannot be asked, or the source
            has no text for any of these items and users.
    """
    if earlier is not None and (earlier / FILE).exists() and not (folder / FILE).exists():
        write_bytes(folder / FILE, (earlier / FILE).read_bytes())
    found = _from_source(config, prepared, folder)
    if not found.items and not found.users:
        raise UserError(f"--intentions.source {config.source} tells nothing about these items and users; try another")
    users = prepared.split.train.frame["user_id"].n_unique()
    log.info(
        "intentions: %d for %d of %d items, %d preferences for %d of %d users, %d kept to measure with",
        *(_total(found.items), len(found.items), len(prepared.catalog)),
        *(_total(found.users), len(found.users), users, _total(found.held_out)),
    )
    return found


def _from_source(config: IntentionsConfig, prepared: Prepared, folder: Path) -> Intentions:
    if config.source == "extract":
        from llmrec.intentions.reviews import extract

        return extract(config, prepared.catalog, prepared.split.train)
    if config.source == "reviews":
        from llmrec.intentions.reviews import from_reviews

        return from_reviews(config, prepared.catalog, prepared.split)
    if config.source == "file":
        from llmrec.intentions.intentions import read_file

        return read_file(config, prepared.catalog, prepared.split.train)
    from llmrec.intentions.llm import ask

    return ask(config, prepared.catalog, prepared.split.train, folder)


def _total(texts: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, texts.values()))


__all__ = ["Intentions", "IntentionsConfig", "gather"]
