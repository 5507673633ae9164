"""The corpus that the embedded model learns from: the project's prompts, and answers from a small sentence grammar.

What matters is how long the answers are.  Each is a number of points that the opening words commit to; the number is
drawn around a median that depends on category, topic and style, so lengths differ by all three and spread within.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from driftsched_lib.requests import CATEGORIES
from driftsched_lib.workloads.prompts import STYLES, TEMPLATES, TOPIC_GROUPS, TOPICS, build_prompt, label_prefix

MEDIAN_POINTS = {"short_qa": 2.0, "summary": 3.0, "technical": 4.6, "report": 6.2}
STYLE_FACTORS = {"plain": 1.0, "terse": 0.5, "verbose": 1.6}
STYLE_SHARES = {"plain": 0.6, "terse": 0.2, "verbose": 0.2}
SPREAD = 0.3
"""Standard deviation of the log of the number of points, at a given category, topic and style."""

_GROUP_OF = {topic: group for group, topics in TOPIC_GROUPS.items() for topic in topics}
_FACTORS = np.random.default_rng(59).permutation(np.geomspace(0.6, 1.6, len(TOPICS)))
TOPIC_FACTORS = dict(zip(TOPICS, _FACTORS.tolist(), strict=True))
"""How much longer than the median the answers on a topic are, 0.6 to 1.6."""

_THINGS = {
    "network": ("routes", "packets", "links", "the edge", "neighbours", "the resolver", "paths", "name servers"),
    "platform": ("services", "clusters", "containers", "the control plane", "releases", "nodes", "teams", "workloads"),
    "data": ("records", "partitions", "indexes", "replicas", "the log", "queries", "consumers", "hot keys"),
    "security": (
        "tokens",
        "keys",
        "sessions",
        "certificates",
        "policies",
        "attackers",
        "the audit trail",
        "identities",
    ),
    "operations": (
        "alerts",
        "metrics",
        "traces",
        "dashboards",
        "error budgets",
        "labels",
        "incidents",
        "on-call staff",
    ),
    "inference": ("batches", "kernels", "prompts", "the decoder", "memory blocks", "requests", "tensors", "the queue"),
}
_VERBS = ("protects", "moves", "groups", "limits", "checks", "feeds", "watches", "balances", "isolates", "shapes")
_GOALS = (
    "under heavy load",
    "when a node fails",
    "without manual work",
    "at low cost",
    "across regions",
    "before users notice",
    "with little delay",
    "in small steps",
    "for every tenant",
    "during an upgrade",
)
_ADVICE = ("measure", "document", "test", "automate", "review", "cache", "split", "simplify")
_QUALITIES = ("latency", "cost", "safety", "throughput", "recovery", "capacity", "clarity", "isolation")
_NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
_OPENINGS = {"summary": "{n} points sum it up.", "technical": "{n} parts matter.", "report": "{n} findings follow."}


@dataclass(frozen=True)
class Document:
    """A prompt with its answer."""

    category: str
    topic: str
    style: str
    prompt: str
    answer: str


def documents(seed: int) -> Iterator[Document]:
    """An endless stream of documents; categories, topics and templates are uniform, half have the label prefix."""
    rng = np.random.default_rng(seed)
    while True:
        category, topic = str(rng.choice(CATEGORIES)), str(rng.choice(TOPICS))
        style = str(rng.choice(list(STYLES), p=[STYLE_SHARES[style] for style in STYLES]))
        prompt = build_prompt(category, topic, int(rng.integers(len(TEMPLATES[category]))), style)
        if rng.random() < 0.5:
            tenant = str(
                rng.choice(["tenant-premium", "tenant-standard", "tenant-batch", f"tenant-{rng.integers(300)}"])
            )
            prompt = label_prefix(int(10 ** rng.uniform(0, 5)), tenant, category) + prompt
        yield Document(category, topic, style, prompt, answer(rng, category, topic, style))


def answer(rng: np.random.Generator, category: str, topic: str, style: str) -> str:
    """One answer; its number of points is log-normal around `MEDIAN_POINTS`, scaled by topic and style."""
    median = MEDIAN_POINTS[category] * TOPIC_FACTORS[topic] * STYLE_FACTORS[style]
    points = int(np.clip(round(rng.lognormal(np.log(median), SPREAD)), 1, len(_NUMBERS)))
    if category == "short_qa":
        return _short_answer(rng, topic, points)
    opening = _OPENINGS[category].format(n=_NUMBERS[points - 1])
    return " ".join([opening, *(f"{i}. {_sentence(rng, topic)}" for i in range(1, points + 1))])


def _short_answer(rng: np.random.Generator, topic: str, points: int) -> str:
    """A sentence with one more part a point."""
    thing, verb, goal, quality = _words(rng, topic)
    parts = [f"It {verb} {thing}", goal, f"and improves {quality}", *(_advice(rng, topic) for _ in range(points - 3))]
    return " ".join(parts[:points]) + "."


def _advice(rng: np.random.Generator, topic: str) -> str:
    thing, _, _, _ = _words(rng, topic)
    return f"if you {rng.choice(_ADVICE)} {thing}"


def _sentence(rng: np.random.Generator, topic: str) -> str:
    thing, verb, goal, quality = _words(rng, topic)
    other = rng.choice(_THINGS[_GROUP_OF[topic]])
    return str(
        rng.choice(
            (
                f"{topic} {verb} {thing} {goal}.",
                f"Good {quality} needs {thing} that stay simple {goal}.",
                f"First {rng.choice(_ADVICE)} {thing}, then {rng.choice(_ADVICE)} {other}.",
                f"{topic} trades {quality} for {rng.choice(_QUALITIES)} {goal}.",
                f"When {thing} grow, {topic} {verb} {other}.",
                f"Teams {rng.choice(_ADVICE)} {thing} because {quality} drops {goal}.",
            )
        )
    )


def _words(rng: np.random.Generator, topic: str) -> tuple[str, ...]:
    lists = (_THINGS[_GROUP_OF[topic]], _VERBS, _GOALS, _QUALITIES)
    return tuple(str(rng.choice(words)) for words in lists)
