"""Which class stands behind each `--decode.ranking`; a new method adds its line here."""

from llmrec.decode.config import DecodeConfig, RankingName
from llmrec.decode.rankings.base import ItemFacts, RankingMethod
from llmrec.decode.rankings.beam import BeamRanking
from llmrec.decode.rankings.cascade import CascadeRanking
from llmrec.decode.rankings.dense import DenseRanking
from llmrec.decode.rankings.fusion import FusionRanking
from llmrec.decode.rankings.liger import LigerRanking
from llmrec.decode.rankings.quota import QuotaRanking
from llmrec.decode.rankings.specgr import SpecGRRanking
from llmrec.decode.search import BeamSearch

METHODS: dict[RankingName, type[RankingMethod]] = {
    "beam": BeamRanking,
    "quota": QuotaRanking,
    "dense": DenseRanking,
    "liger": LigerRanking,
    "cascade": CascadeRanking,
    "specgr": SpecGRRanking,
    "fusion": FusionRanking,
}


def make_ranking(
    search: BeamSearch, facts: ItemFacts, config: DecodeConfig, name: RankingName | None = None
) -> RankingMethod:
    """The method of that name; by default the one that `config` asks for.

    Raises:
        UserError: the model or its bundle lacks what the method needs.
    """
    if name is None:
        ready = facts.weights is not None and facts.dense is not None and config.constraint == "trie"
        auto: RankingName = "fusion" if ready else "beam"
        name = auto if config.ranking == "auto" else config.ranking
    return METHODS[name](search, facts, config)
