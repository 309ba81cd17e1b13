"""From a catalogue and a log to recommendations, in one screen: python examples/end_to_end.py

Replace `synthetic` by `Catalog.from_file("items.csv")` and `Interactions.from_file("events.csv")` for data of your own.
"""

from llmrec import BaseConfig, EmbedConfig, ItemTokenizer, Recommender, TrainConfig, evaluate
from llmrec.data.synthetic import synthetic


def main() -> None:
    catalog, log = synthetic(n_items=200, n_users=300)
    split = log.leave_one_out()  # the last event of a user tests, the one before validates

    # Items become semantic IDs: text -> vectors -> codes.
    tokenizer = ItemTokenizer(levels=3, codes=16, embed=EmbedConfig(encoder="tfidf-svd", dim=64)).fit(catalog)

    # A small language model is made here; name a Hub id, such as "Qwen/Qwen3-0.6B", to start from that.
    recommender = Recommender.from_base(None, tokenizer, config=BaseConfig(hidden_size=64, layers=2))
    recommender.fit(split.train, train=TrainConfig(epochs=3))

    history = log.frame["item_id"][:4].to_list()
    print("after", ", ".join(history))
    for item in recommender.recommend(history=history, k=3):
        print(f"  {item.rank}. {item.title} ({item.score:.2f})")
    print('for "a mug for tea"')
    for item in recommender.recommend(prompt="a mug for tea", k=3):
        print(f"  {item.rank}. {item.title} ({item.score:.2f})")

    figures = evaluate(recommender, split).metrics["systems"]
    for name, slices in figures.items():
        print(f"{name:<12} recall@10 {slices['all']['recall@10']:.3f}")


if __name__ == "__main__":
    main()
