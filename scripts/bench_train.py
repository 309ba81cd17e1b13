"""Tokens and seconds to learn the same supervision: the classic form, and ours.

    python scripts/bench_train.py [--data data/Beauty] [--users 512] [--rounds 3] [--json]

The supervision is each training item of a user after the first, predicted from the (at most 20) items before it, learnt
once. `expanded` is what people write first on transformers.Trainer: one example per target with its whole prefix, in
random order, padded to the longest of the batch, logits at every position. `llmrec` is `llmrec train`: one example per
user with every item learnt, like lengths together, rows packed, logits where something is learnt. Both train the model
of configs/beauty_cpu.yaml in float32 with as many examples per step, tokenizing left out for `expanded` only; made-up
items in histories as long as those of `--data` (LC-Rec's layout), or as Beauty's. In turn, round after round; the
medians are reported.

    python scripts/bench_train.py --base models/smollm2 --users 16 --batch-size 16 --rounds 1

measures LoRA on a pretrained base. `peft` is the classic form with peft's adapter and its trainable rows; each further
row adds one lever to the row above it.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as llmrec does, before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llmrec.console import plain
from llmrec.data import DataConfig
from llmrec.data.prepare import prepare
from llmrec.data.synthetic import synthetic
from llmrec.model.adapter import add_item_rows, all_linear, embedding_names
from llmrec.model.base import load_base, make_base
from llmrec.model.config import AdapterConfig, BaseConfig
from llmrec.model.tokens import ItemVocabulary
from llmrec.resources import resource_folder
from llmrec.tasks.config import TasksConfig, load_templates, tokenizer_texts
from llmrec.tasks.examples import Sequential
from llmrec.tasks.mixture import IGNORE
from llmrec.tasks.render import Renderer
from llmrec.train.config import TrainConfig
from llmrec.train.finetune import TrainingData, finetune

if TYPE_CHECKING:
    from peft import PeftModel

SHOWN = 20  # items of a history that a prompt shows
ITEMS, LEVEL_SIZES = 300, [256, 256, 256, 16]
BEAUTY = [7162, 4221, 2680, 1811, 1366, 881, 695, 558, 439, 361, 262, 207, 213, 141, 118, 112, 117, 84, 935]
"""Users of Amazon 2014 Beauty with 3, 4, ... 20 training items, and with more."""


class Bench:
    """One model, some users' training items, two ways to learn from them.

    Args:
        options: of the command line.
        config: of the base; its `model` is trained by LoRA, a model made here in full.
        prompts: folder of prompts; default: the shipped ones.
        softmax: of the loss that `llmrec` trains.
    """

    def __init__(
        self, options: argparse.Namespace, config: BaseConfig, prompts: str | None = None, softmax: str = "vocabulary"
    ) -> None:
        self.batch_size, self.config, self.softmax = options.batch_size, config, softmax
        rng = np.random.default_rng(0)
        lengths = rng.choice(history_lengths(options.data), options.users)
        self.sequences = [rng.integers(0, ITEMS, min(n, SHOWN + 1)).astype(np.int32) for n in lengths]
        self.catalog, _ = synthetic(ITEMS, n_users=1)
        templates = load_templates(prompts)
        if config.model is None:
            self.model, tokenizer = make_base(config, tokenizer_texts(self.catalog, templates))
        else:
            kept = {"keep_layers": config.keep_layers, "chat_template": config.chat_template}
            self.model, tokenizer = load_base(config.model, **kept)
        vocabulary = ItemVocabulary.add_to(tokenizer, LEVEL_SIZES)
        add_item_rows(self.model, vocabulary.all_ids, len(tokenizer), seed=0)
        codes = np.stack([rng.integers(0, size, ITEMS) for size in LEVEL_SIZES], axis=1)
        self.renderer = Renderer(tokenizer, vocabulary, codes, templates, SHOWN)
        self.examples = self._expand(rng)
        self.tokens = self.learnt = 0
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    @property
    def targets(self) -> int:
        """Items that are learnt."""
        return sum(len(sequence) - 1 for sequence in self.sequences)

    def _expand(self, rng: np.random.Generator) -> list[dict[str, list[int]]]:
        """One tokenized example per target."""
        task = Sequential(self.renderer, self.sequences, every_item=False)
        examples = [task.example(row, rng) for row in range(len(task))]
        prompts = self.renderer.encode_prompts([example.prompt for example in examples])
        answers = self.renderer.encode_answers(examples)
        return [
            {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _count(self, module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.tokens += named["input_ids"].numel()

    def expanded(self, folder: Path) -> None:
        """transformers.Trainer as it is; 'sdpa', which is its default."""
        trainer = Trainer(
            model=self.model if self.config.model is None else self._adapted(),
            args=TrainingArguments(
                output_dir=str(folder),
                num_train_epochs=1,
                per_device_train_batch_size=self.batch_size,
                learning_rate=TrainConfig.learning_rate,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=self.examples,
            data_collator=DataCollatorForSeq2Seq(self.renderer.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def _adapted(self) -> "PeftModel":
        """The model with an adapter as peft makes it, with the sizes that `llmrec train` gives it."""
        from peft import LoraConfig, get_peft_model

        own = AdapterConfig()
        rows = {name: self.renderer.vocabulary.all_ids.tolist() for name in embedding_names(self.model)}
        sizes = {"r": own.rank, "lora_alpha": own.alpha, "lora_dropout": own.dropout}
        targets = all_linear(self.model)
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, trainable_token_indices=rows, **sizes)
        return get_peft_model(self.model, config)

    def llmrec(self, folder: Path) -> None:
        """What `llmrec train` does, the checkpoint at its end included."""
        tasks = TasksConfig(mixture={"sequential": 1.0}, max_history=SHOWN)
        method = "full" if self.config.model is None else "lora"
        kept = {"method": method, "softmax": self.softmax, "dropout": 0.0, "dtype": "float32"}
        train = TrainConfig(epochs=1, batch_size=self.batch_size, evaluations=1, **kept)
        data = TrainingData(self.catalog, self.sequences)
        finetune(self.model, self.renderer, data, tasks, train, folder)


def measure(bench: Bench, way: str) -> tuple[float, int]:
    """Seconds and tokens, padding included, of one training from the start."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        getattr(bench, way)(Path(folder))
        return time.perf_counter() - start, bench.tokens


FROM_SCRATCH: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {"config": BaseConfig(hidden_size=128, layers=4, vocabulary=2048)}) for name in ("expanded", "llmrec")
}


def levers(options: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of each row -> method of `Bench` and arguments of `Bench`; each row adds a lever to the one before."""
    whole, plain = BaseConfig(model=options.base), BaseConfig(model=options.base, chat_template=False)
    short = {"config": plain, "prompts": str(resource_folder("prompts") / "short")}
    cut = replace(plain, keep_layers=options.keep_layers)
    return {
        "peft": ("expanded", {"config": whole}),
        "llmrec": ("llmrec", {"config": whole}),
        "short prompts, no chat template": ("llmrec", short),
        "softmax of the level": ("llmrec", {**short, "softmax": "level"}),
        f"first {options.keep_layers} layers": ("llmrec", {**short, "softmax": "level", "config": cut}),
    }


def history_lengths(data: Path) -> np.ndarray:
    """Training items of every user, int [U]; of Beauty's if there is no such folder."""
    if not data.is_dir():
        return np.repeat(np.arange(3, 3 + len(BEAUTY)), BEAUTY)
    prepared = prepare(DataConfig(format="lc-rec", path=str(data)))
    return np.array([len(sequence) for sequence in prepared.split.sequences(prepared.catalog).train_sequences()])


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/Beauty"), help="in LC-Rec's layout")
    parser.add_argument("--users", type=int, default=512, help="histories; a multiple of the batch size")
    parser.add_argument("--batch-size", type=int, default=32, help="examples per step, of either way")
    parser.add_argument("--rounds", type=int, default=3, help="timed trainings of each way")
    parser.add_argument("--base", help="a pretrained model to train by LoRA; default: a small one made here, in full")
    parser.add_argument("--keep-layers", type=int, default=8, help="layers of the last row of --base")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    if options.users % options.batch_size:
        parser.error(f"--users {options.users} is not a multiple of --batch-size {options.batch_size}")
    ways = levers(options) if options.base else FROM_SCRATCH
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens = {}
    for _ in range(options.rounds):
        for name, (way, kept) in ways.items():
            bench = Bench(options, **kept)  # a new model, so that each training has the same start
            taken, tokens[name] = measure(bench, way)
            seconds[name].append(taken)
    result = {
        "settings": {
            **vars(options),
            "data": str(options.data) if options.data.is_dir() else "made-up lengths",
            "targets": bench.targets,
            "weights": bench.model.num_parameters(),
            "device": str(bench.model.device),
        },
        "seconds": {name: median(taken) for name, taken in seconds.items()},
        "tokens": tokens,
    }
    if options.json:
        print(json.dumps(result))
        return
    rows = [["", "seconds", "tokens", "tokens per second", "times faster, per token", "times faster, per target"]]
    first = next(iter(ways))
    for name, taken in result["seconds"].items():
        rate, gain = tokens[name] / taken, result["seconds"][first] / taken
        per_token = rate / (tokens[first] / result["seconds"][first])
        rows.append([name, f"{taken:.1f}", f"{tokens[name]}", f"{rate:.0f}", f"{per_token:.1f}", f"{gain:.1f}"])
    print(plain(rows))


if __name__ == "__main__":
    main()
