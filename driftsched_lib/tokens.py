"""Token accounting: by whitespace words, as the paper's first variant, or by the model's own tokenizer."""

from collections.abc import Callable
from typing import Protocol

from driftsched_lib.requests import Output


class TokenCounter(Protocol):
    """Token counter interface: one unit for prompts and outputs, so that estimates and observations compare."""

    def prompt(self, text: str) -> int: ...

    def output(self, output: Output) -> int: ...


class WhitespaceCounter:
    """Count `split()` words, for prompts and outputs alike (the paper's `whitespace` accounting)."""

    def prompt(self, text: str) -> int:
        return len(text.split())

    def output(self, output: Output) -> int:
        if output.words is None:
            raise ValueError("whitespace accounting needs the generated text, and this engine gives none")
        return output.words


class TokenizerCounter:
    """Count by the model's tokenizer without special tokens, and generated ids (the paper's `tokenizer` accounting).

    Parameters:
        count_tokens: an engine's count of the tokens of a text.
    """

    def __init__(self, count_tokens: Callable[[str], int]):
        self.prompt = count_tokens

    def output(self, output: Output) -> int:
        return output.tokens
