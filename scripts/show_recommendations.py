"""Three worked recommendations from a finished run: for a user's history, for a sentence, for both.

python scripts/show_recommendations.py --run runs/quickstart [--prompt "a red mug"]
"""

import argparse

from llmrec import Recommender
from llmrec.console import say
from llmrec.data import TEST, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--prompt", default="something to grind coffee")
    parser.add_argument("--k", type=int, default=3)
    options = parser.parse_args()
    recommender = Recommender.from_pretrained(f"{options.run}/model")
    prepared = load(f"{options.run}/data")
    catalog = prepared.catalog
    cases = prepared.split.sequences(catalog).cases(TEST)
    history = [catalog.ids[item] for item in cases.histories[0]]

    def show(title: str, **request: object) -> None:
        say("", title)
        for item in recommender.recommend(k=options.k, **request):  # type: ignore[arg-type]
            say(f"  {item.rank}. {item.title}  ({item.item_id}, {item.score:.2f})")

    say("", "A user bought, oldest first:")
    for item_id in history:
        say(f"  - {catalog.row(item_id)['title']}")
    show("Next for this user:", history=history)
    show(f'For the words "{options.prompt}":', prompt=options.prompt)
    show("For this user and these words:", history=history, prompt=options.prompt)
    say("", f"(The user did take next: {catalog.row(catalog.ids[cases.targets[0]])['title']})")


if __name__ == "__main__":
    main()
