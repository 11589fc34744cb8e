"""Made-up prompts with the scores and prices of four made-up language models, in RouterBench's layout.

Nothing here was said by a person or answered by a model: sentences are drawn from patterns, scores and lengths of
answers from the models' known skills. The words of a prompt show how hard it is (large numbers, many steps, rare
languages), and a longer answer costs more. So what routing by text and by price should do is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from l2d.data.cache import store
from l2d.data.errors import DataError

ROWS, NEW_ROWS = 4_000, 200
KINDS = ("sums", "code", "facts", "translation", "logic", "summary")
README = """Made-up prompts and models

Made by l2d (data/sources/made_up_prompts.py): {rows:,} prompts in prompts.csv, 200 more in new_prompts.csv;
seed {seed}.

Nobody wrote or answered these: prompts are drawn from patterns, scores and prices from made-up skills and rates. An id
begins with the kind of its prompt. Columns are RouterBench's: a score for each model, and NAME|total_cost in USD.
"""


@dataclass(frozen=True)
class Model:
    """A made-up model.

    Attributes:
        skill: kind of prompt -> log-odds of a right answer to a prompt of middling difficulty.
        paid_in, paid_out: USD for a million tokens.
        words: of its answers, as a multiple of the kind's usual.
    """

    name: str
    skill: tuple[float, ...]  # in the order of KINDS
    paid_in: float
    paid_out: float
    words: float


MODELS = (
    Model("small", (0.8, -0.8, 1.6, 1.2, -1.4, 1.8), 0.10, 0.40, 0.8),
    Model("coder", (1.8, 2.4, 0.2, -0.6, 0.2, 0.4), 0.30, 0.90, 1.0),
    Model("medium", (1.6, 0.8, 2.2, 2.2, 0.2, 2.6), 0.60, 2.40, 1.0),
    Model("large", (2.8, 2.4, 2.8, 3.0, 2.2, 3.0), 5.00, 15.00, 1.3),
)
ANSWER_WORDS = (40, 160, 25, 60, 220, 90)  # usual length of an answer, in the order of KINDS
TOKENS_PER_WORD = 1.3

NAMES = ("Ada", "Bruno", "Chen", "Dalia", "Emeka", "Farah", "Goran", "Hana", "Ivo", "Jaya")
THINGS = ("apples", "tickets", "bricks", "stamps", "bottles", "seeds", "coins", "books")
PLACES = ("Peru", "Ghana", "Norway", "Vietnam", "Canada", "Jordan", "Chile", "Kenya", "Nepal", "Portugal", "Laos",
          "Mali", "Cuba", "Oman", "Fiji", "Latvia", "Malta", "Qatar", "Samoa", "Togo")  # fmt: skip
TASKS = ("reverses a list", "counts the words of a text", "finds prime numbers", "merges two sorted lists",
         "parses a date", "removes duplicates", "validates an email address", "flattens a nested list",
         "rotates an image", "reads a CSV file", "rounds prices", "sorts people by age")  # fmt: skip
HARDER = ("in linear time", "without recursion", "with constant memory", "handling malformed input",
          "safe with several threads")  # fmt: skip
ASKED = ("the capital", "the longest river", "the currency", "the highest mountain", "the national anthem",
         "the largest lake", "the main export", "the oldest university")  # fmt: skip
OBSCURE = ("under its second president", "before the reform of the calendar", "as the atlas of that time has it")
COMMON, RARE = ("French", "Spanish", "German", "Italian"), ("Basque", "Amharic", "Khmer", "Quechua")
SENTENCES = ("The meeting was moved to Friday", "Our train leaves at noon", "She has never seen the sea",
             "The garden needs rain", "He forgot his keys again", "We would like two tickets", "Dinner is ready",
             "The bridge is closed", "My brother lives abroad", "It will snow tonight",
             "I lost my umbrella")  # fmt: skip
TOPICS = ("a council's debate on parking", "a study of bees", "a football match", "a new bridge", "the history of tea",
          "a company's results", "a strike of pilots", "a recipe for bread", "an election", "a museum")  # fmt: skip


def write_prompts(folder: Path, *, rows: int = ROWS, seed: int = 0) -> bool:
    """Write ``prompts.csv``, ``new_prompts.csv`` and a README. The folder appears whole or not at all.

    Args:
        folder: not there yet.
        rows: prompts with scores and prices.
        seed: another one draws others.

    Returns:
        Whether it was written; False where the folder is there already and its README says it is of these arguments.

    Raises:
        DataError: the folder is there already and something else, or cannot be written.
    """
    readme = README.format(rows=rows, seed=seed).encode()
    if folder.exists():
        if (folder / "README.txt").is_file() and (folder / "README.txt").read_bytes() == readme:
            return False
        raise DataError("this folder is there already", where=folder, hint="name another one, or remove it")

    def fill(temporary: Path) -> None:
        store.commit_bytes(temporary / "README.txt", readme)
        store.commit_bytes(temporary / "prompts.csv", prompts(rows, seed).write_csv().encode())
        new = prompts(NEW_ROWS, seed + 1_000_003).select(pl.concat_str(pl.lit("new-"), "id").alias("id"), "prompt")
        store.commit_bytes(temporary / "new_prompts.csv", new.write_csv().encode())

    store.commit_folder(folder, fill)
    return True


def prompts(rows: int, seed: int) -> pl.DataFrame:
    """``id, prompt``, a score for each of :data:`MODELS`, and ``NAME|total_cost``."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(len(KINDS), size=rows)
    written = [_WRITERS[kind](generator) for kind in kinds]
    texts, hard = [text for text, _ in written], np.array([difficulty for _, difficulty in written])
    words_in = np.array([len(text.split()) for text in texts])
    usual = np.array(ANSWER_WORDS)[kinds] * np.exp(0.35 * generator.normal(size=rows) + 0.4 * hard)
    table: dict[str, object] = {"id": [f"{KINDS[kind]}-{row:05d}" for row, kind in enumerate(kinds)], "prompt": texts}
    luck = generator.normal(size=rows)  # what makes a prompt hard and its words do not show
    for model in MODELS:
        odds = np.array(model.skill)[kinds] - 2.2 * hard + 0.3 * luck
        table[model.name] = (generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    for model in MODELS:
        words_out = usual * model.words * np.exp(0.15 * generator.normal(size=rows))
        paid = TOKENS_PER_WORD * (words_in * model.paid_in + words_out * model.paid_out) / 1e6
        table[f"{model.name}|total_cost"] = paid.round(9)
    return pl.DataFrame(table)


# --- patterns: a generator to a text, and how hard it is, from -1 to 1 ------------------------------------------------


def _one(generator: np.random.Generator, among: tuple[str, ...]) -> str:
    return among[int(generator.integers(len(among)))]


def _sums(generator: np.random.Generator) -> tuple[str, float]:
    digits, steps = int(generator.integers(1, 6)), int(generator.integers(1, 4))
    numbers = [int(generator.integers(10 ** (digits - 1), 10**digits)) for _ in range(steps + 1)]
    bought = " and ".join(f"{number} {_one(generator, THINGS)}" for number in numbers)
    verb = _one(generator, ("add", "multiply", "subtract"))
    return f"{_one(generator, NAMES)} has {bought}. How many are left if you {verb} them?", (digits + steps - 5) / 3.5


def _code(generator: np.random.Generator) -> tuple[str, float]:
    extra = [HARDER[k] for k in generator.permutation(len(HARDER))[: int(generator.integers(0, 4))]]
    language = _one(generator, ("Python", "Rust", "SQL", "JavaScript"))
    does = f"{_one(generator, TASKS)} and {_one(generator, TASKS)}"
    return ", ".join([f"Write a {language} function that {does}", *extra]) + ".", (len(extra) - 1.5) / 1.5


def _facts(generator: np.random.Generator) -> tuple[str, float]:
    is_hard = bool(generator.random() < 0.4)
    when = f" {_one(generator, OBSCURE)}" if is_hard else ""
    year = int(generator.integers(1850, 2020))
    asked = f"{_one(generator, ASKED)} of {_one(generator, PLACES)} in {year}{when}"
    return f"What was {asked}?", 0.8 if is_hard else -0.7


def _translation(generator: np.random.Generator) -> tuple[str, float]:
    is_hard = bool(generator.random() < 0.4)
    said = ". ".join(_one(generator, SENTENCES) for _ in range(int(generator.integers(2, 5))))
    return f'Translate into {_one(generator, RARE if is_hard else COMMON)}: "{said}."', 0.9 if is_hard else -0.6


def _logic(generator: np.random.Generator) -> tuple[str, float]:
    count = int(generator.integers(3, 7))
    people = [NAMES[k] for k in generator.permutation(len(NAMES))[:count]]
    clues = [f"{a} sits left of {b}." for a, b in itertools.pairwise(people)]
    return f"{count} people sit in a row. {' '.join(clues)} Who sits in seat {count // 2 + 1}?", (count - 4.5) / 1.5


def _summary(generator: np.random.Generator) -> tuple[str, float]:
    parts = int(generator.integers(2, 7))
    report = " ".join(f"Part {k + 1} is about {_one(generator, TOPICS)}." for k in range(parts))
    return f"Summarise this report in {_one(generator, ('one', 'two', 'three'))} sentences: {report}", (parts - 4) / 2


_WRITERS: tuple[Callable[[np.random.Generator], tuple[str, float]], ...] = (
    _sums, _code, _facts, _translation, _logic, _summary,
)  # fmt: skip
