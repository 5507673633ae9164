"""The prompts of the paper's load: topics and templates are in prompts.yaml beside this file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from driftsched_lib.validation import read_yaml

_TEXTS = read_yaml(Path(__file__).with_suffix(".yaml"))
TOPICS: tuple[str, ...] = tuple(_TEXTS["topics"])
TEMPLATES: dict[str, list[str]] = _TEXTS["templates"]
TEMPLATES_PER_CATEGORY = 5
_FACTORS = np.random.default_rng(59).permutation(np.geomspace(0.6, 1.6, len(TOPICS)))
TOPIC_FACTORS = dict(zip(TOPICS, _FACTORS.tolist(), strict=True))
"""Length of the answers on a topic relative to the median topic's: the embedded model has learnt it."""

STYLES = {"plain": "", "terse": " Be brief.", "verbose": " Go into depth."}
"""An instruction at the end of a prompt that the embedded model has learnt to follow."""


def build_prompt(category: str, topic: str, template: int, style: str = "plain") -> str:
    """Return the text of a prompt, without the label prefix."""
    return TEMPLATES[category][template].format(topic=topic) + STYLES[style]


def label_prefix(request_id: int | str, tenant: str, category: str) -> str:
    """Return the prefix of the paper's load generator; a keyword classifier can read the category in it."""
    return f"Request ID {request_id}. Tenant {tenant}. Job type {category}. "


def category_of(output_tokens: int, max_tokens: Mapping[str, int]) -> str:
    """Return the category with the smallest limit that holds an output, or else the largest."""
    by_limit = sorted(max_tokens, key=max_tokens.__getitem__)
    return next((category for category in by_limit if output_tokens <= max_tokens[category]), by_limit[-1])
