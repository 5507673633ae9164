"""A simulated vLLM: iteration-level continuous batching in virtual time, behind the face that `serving` drives."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import count
from math import ceil, isinf, sqrt

from driftsched_lib.engines.profile import Profile
from driftsched_lib.requests import Output, Request


class _Sequence:
    """A request in the engine.

    Until its first token, and again after a preemption, `computed` of its `prompt_tokens + generated` tokens are in the
    KV cache.  While it decodes, all but the last are, and it has made `iteration - origin` tokens.
    """

    __slots__ = (
        "admitted",
        "blocks",
        "computed",
        "error",
        "first_token_s",
        "generated",
        "origin",
        "output_tokens",
        "prompt_tokens",
        "request",
    )

    def __init__(self, request: Request, prompt_tokens: int, output_tokens: int, blocks: int, error: str | None):
        self.request = request
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.blocks = blocks  # held at its end
        self.error = error
        self.admitted = 0  # greater than that of all admitted before
        self.generated = request.num_output_tokens
        self.computed = 0
        self.origin = 0
        self.first_token_s = request.first_token_s

    @property
    def missing(self) -> int:
        """Tokens yet to compute before it can decode."""
        return self.prompt_tokens + self.generated - self.computed


@lru_cache(maxsize=1000)
def _count_words(text: str) -> int:
    return len(text.split())


class SimulatedEngine:
    """vLLM's v1 scheduler (`vllm/v1/core/sched/scheduler.py`) with a cost function in the place of the model.

    An iteration gives each decoding sequence one token, in the order of admission; what is left of
    `max_num_batched_tokens` goes to prompts, first come first served and in chunks where it must.  The iteration that
    computes the last of a prompt yields the first token.  When KV blocks run out, the sequence admitted last goes back
    to the front of the waiting, and all its tokens are computed again.  There is no prefix caching.

    With `async_scheduling` an iteration is launched before it is known what the one before it made.  So what comes
    waits for one iteration more, and a sequence that has made its last token holds its slot and its blocks for another.
    Meanwhile time passes until the one before it ends, or, where the profile is `launch_bound`, until this one is
    launched; one that would hold nothing takes none.

    While sequences only decode, none ends and blocks suffice, nothing that happens depends on the iteration: such
    iterations are passed in one jump, whose end is the closed form of their summed costs.

    Parameters:
        profile: costs and limits of the engine.
        lengths: prompt and output tokens of a request; None for `count_tokens` of its prompt, and the length at which
            its output is pinned or else its limit.
        log_steps: keep a row an iteration in `steps`, as `VllmEngine` does.  The engine then steps and does not jump,
            which changes its speed and no result.
    """

    def __init__(
        self,
        profile: Profile,
        lengths: Callable[[Request], tuple[int, int]] | None = None,
        log_steps: bool = False,
    ):
        self.profile = profile
        self.max_num_seqs = profile.limits.max_num_seqs
        self.limits, self._cost = profile.limits, profile.step
        self._async_scheduling = profile.limits.async_scheduling
        self._behind = int(profile.limits.async_scheduling and not profile.launch_bound)  # iterations, of the clock
        self._decode_s = profile.decode_costs()
        self.lengths = lengths or self._own_lengths
        self.log_steps = log_steps
        self._in_flight: dict[str, _Sequence] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time zero is now and the step log is empty: a new run begins."""
        if self._in_flight:
            raise RuntimeError(f"{len(self._in_flight)} requests are still in flight")
        self.steps: list[tuple] = []
        self._now = 0.0
        self._iteration, self._end = 0, 0.0  # the last one that was launched, and when it ends
        self._waiting: deque[_Sequence] = deque()
        self._decoding: dict[str, _Sequence] = {}  # in the order of admission
        self._prefilling: _Sequence | None = None  # with a part of its prompt computed: one at most, admitted last
        self._ends: list[tuple[int, int, _Sequence]] = []  # heap: the iterations that make the last tokens
        # What is not known yet of the last iteration: whose first and whose last tokens it made, its row of `steps`.
        self._begun: list[_Sequence] = []
        self._ended: list[_Sequence] = []
        self._row: tuple[int, ...] | None = None
        self._ties = count()
        self._promised = 0  # blocks that all in flight would hold at their ends
        # When the decoding sequences last changed, and the tokens they attended to.  Times are reckoned from there, so
        # that they are the same to the last bit however many iterations a step passes.
        self._since_iteration, self._since_s, self._since_context = 0, 0.0, 0

    def close(self) -> None:
        """It holds nothing."""

    def count_tokens(self, text: str) -> int:
        """A prompt's length in tokens, from its words."""
        return ceil(_count_words(text) * self.profile.tokens_per_prompt_word)

    def now(self) -> float:
        return self._now

    def has_room(self) -> bool:
        return len(self._in_flight) < self.max_num_seqs

    def add(self, request: Request) -> None:
        prompt, wanted = self.lengths(request)
        output = self.fitted(prompt, wanted)
        error = None
        if output < wanted and request.fixed_output_tokens is not None:
            error = f"the context holds {output} of {wanted} pinned tokens"
        sequence = _Sequence(request, prompt, output, self._blocks(prompt + output), error)
        self._in_flight[request.request_id] = sequence
        self._waiting.append(sequence)
        self._promised += sequence.blocks

    def fitted(self, prompt: int, output: int) -> int:
        """The output tokens that the context has room for beside the prompt's.

        Raises:
            ValueError: such a request can never be served.
        """
        limits = self.limits
        if not 1 <= prompt < limits.max_model_len:
            raise ValueError(
                f"the prompt has {prompt} tokens, and a context of {limits.max_model_len} takes 1 to "
                f"{limits.max_model_len - 1}, to leave one for the output"
            )
        if output < 1:
            raise ValueError(f"the output has {output} tokens, it must have at least one")
        output = min(output, limits.max_model_len - prompt)
        if self._blocks(prompt + output - 1) > limits.kv_blocks:
            raise ValueError(
                f"{prompt} prompt and {output} output tokens can never fit the KV cache, "
                f"{limits.kv_blocks} blocks of {limits.block_size} tokens"
            )
        return output

    def abort(self, request_id: str) -> None:
        sequence = self._in_flight.get(request_id)
        if sequence is None:
            return
        self._forget(sequence)
        if request_id in self._decoding:
            self._interrupt(sequence)
        elif sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._ended:
            self._ended.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def num_output_tokens(self) -> dict[str, int]:
        """By id, the output tokens so far of what is here and has more to make."""
        return {i: self._made(sequence) for i, sequence in self._in_flight.items() if sequence not in self._ended}

    def _made(self, sequence: _Sequence) -> int:
        decoding = sequence.request.request_id in self._decoding
        return self._iteration - sequence.origin if decoding else sequence.generated

    def preempt(self, request_id: str) -> None:
        """Drop a request that comes back; its prompt and what it has made will be computed again then."""
        sequence = self._in_flight[request_id]
        sequence.request.num_output_tokens = self._made(sequence)
        sequence.request.first_token_s = sequence.first_token_s
        self.abort(request_id)

    def step(self, until: float) -> list[Output]:
        """Pass iterations up to the first that ends a request, or that ends at or after `until`.

        Raises:
            RuntimeError: nothing is here and `until` is infinite.
        """
        if not self._in_flight:
            if isinf(until):
                raise RuntimeError("no progress: nothing runs, and nothing is due to arrive or to end")
            self._now = max(self._now, until)
            self._end = self._since_s = max(self._end, self._now)
            return []
        while True:
            outputs = self._pass(until)
            if outputs or self._now >= until:
                return outputs

    def _pass(self, until: float) -> list[Output]:
        """Pass one iteration, or all that are alike."""
        preemptions = 0 if self._promised <= self.limits.kv_blocks else self._make_room()
        prefills = self._schedule_prefills(admit=not preemptions) if self._waiting or self._prefilling else []
        started, in_hand = self._now, self._decoding or prefills
        row = self._contents(prefills, preemptions) if self.log_steps and in_hand else None
        if in_hand:
            if preemptions or prefills or self.log_steps or self._begun or self._ended:
                self._iteration += 1
                self._end = self._end_s(self._iteration)
            else:
                self._jump(until)
            before_s = self._end_s(self._iteration - 1) if self._behind else 0.0
        begun = self._complete_prefills(prefills) if prefills else []
        self._now = before_s if in_hand and self._behind else self._end
        ended = self._stop_decoding_what_ends() if self._ends and self._ends[0][0] == self._iteration else []
        if self._async_scheduling:
            begun, self._begun = self._begun, begun
            ended, self._ended = self._ended, ended
            row, self._row = self._row, row
        for sequence in begun:
            if sequence.first_token_s is None:
                sequence.first_token_s = self._now
        outputs = self._outputs(ended) if ended else []
        if row is not None:
            self._log(started, row)
        return outputs

    def _make_room(self) -> int:
        """Preempt those admitted last until the rest can go on in the blocks there are; return how many."""
        preempted = 0
        while not self._fits(1, self._growth()):
            sequence = self._prefilling or next(reversed(self._decoding.values()))
            sequence = max([sequence, *self._ended], key=lambda one: one.admitted if one.computed else -1)
            if sequence not in self._ended:  # which need not come back
                if sequence is self._prefilling:
                    self._prefilling = None
                else:
                    sequence.generated = self._iteration - sequence.origin
                    self._interrupt(sequence)
                self._waiting.appendleft(sequence)
            sequence.computed = 0
            preempted += 1
        return preempted

    def _schedule_prefills(self, admit: bool) -> list[tuple[_Sequence, int]]:
        """The sequences whose prompts this iteration computes, and how many tokens of each.

        A sequence is admitted only when all of it fits (vLLM's `scheduler_reserve_full_isl`), and none in an iteration
        that preempts.
        """
        prefills = []
        budget = self._budget()
        running = len(self._decoding) + len(self._ended)
        claimed = self._growth()
        if self._prefilling is not None and budget:
            running += 1
            prefills.append((self._prefilling, min(self._prefilling.missing, budget)))
            budget -= prefills[-1][1]
        while admit and self._waiting and budget and running < self.max_num_seqs:
            sequence = self._waiting[0]
            claimed += self._blocks(sequence.missing)
            if not self._fits(1, claimed):
                break
            running += 1
            sequence.admitted = next(self._ties)
            prefills.append((self._waiting.popleft(), min(sequence.missing, budget)))
            budget -= prefills[-1][1]
        return prefills

    def _jump(self, until: float) -> None:
        """Pass all iterations before a sequence ends, blocks run out or `until` has come; the one where it happens too,
        unless it is blocks that it lacks."""
        last = self._ends[0][0]
        if not self._fits(last - self._iteration):
            ahead = range(1, last - self._iteration + 1)
            last = self._iteration + bisect_right(ahead, self.limits.kv_blocks, key=self._used_blocks)
        last -= self._behind
        end_s = self._end_s(last)
        if end_s > until:
            # The root of `_end_s`, a quadratic, is near; rounding decides about the last.
            first, decoding = self._iteration + 1 - self._behind, len(self._decoding)
            per_token = self._cost.per_context_token_s
            growth, left = decoding * per_token, max(0.0, until - self._since_s)
            pace = self._decode_s[decoding] + self._since_context * per_token - growth / 2
            near = self._since_iteration + ceil(2 * left / (pace + sqrt(pace * pace + 2 * growth * left)))
            last = max(near, first)
            end_s = self._end_s(last)
            while end_s < until:
                last += 1
                end_s = self._end_s(last)
            while last > first and (before_s := self._end_s(last - 1)) >= until:
                last, end_s = last - 1, before_s
        self._iteration = last + self._behind
        self._end = self._end_s(self._iteration) if self._behind else end_s

    def _end_s(self, iteration: int) -> float:
        """When an iteration ends, if since the last change of the decoding sequences there was nothing but decoding."""
        n, decoding = iteration - self._since_iteration, len(self._decoding)
        context = n * self._since_context + decoding * (n * (n - 1) // 2)
        return self._since_s + n * self._decode_s[decoding] + context * self._cost.per_context_token_s

    def _complete_prefills(self, prefills: list[tuple[_Sequence, int]]) -> list[_Sequence]:
        """Time passes for them; the sequences whose prompts are computed make a token and begin to decode."""
        tokens = sum(computed for _, computed in prefills)
        cost = self._cost
        self._end += tokens * cost.per_prefill_token_s + cost.per_prefill_step_s + len(prefills) * cost.per_prompt_s
        self._reckon_from_here()
        self._prefilling, begun = None, []
        for sequence, computed in prefills:
            sequence.computed += computed
            if sequence.missing:
                self._prefilling = sequence
                continue
            begun.append(sequence)
            sequence.generated += 1
            sequence.origin = self._iteration - sequence.generated
            self._decoding[sequence.request.request_id] = sequence
            self._since_context += sequence.prompt_tokens + sequence.generated
            heappush(self._ends, (sequence.origin + sequence.output_tokens, next(self._ties), sequence))
        return begun

    def _stop_decoding_what_ends(self) -> list[_Sequence]:
        ended = []
        while self._ends and self._ends[0][0] == self._iteration:
            sequence = heappop(self._ends)[2]
            self._stop_decoding(sequence)
            sequence.computed = sequence.prompt_tokens + sequence.output_tokens - 1
            ended.append(sequence)
        return ended

    def words(self, tokens: int) -> int | None:
        """Whitespace words of so many output tokens."""
        words = self.profile.words_per_output_token
        return None if words is None else round(tokens * words)

    def _outputs(self, ended: list[_Sequence]) -> list[Output]:
        outputs = []
        for sequence in ended:
            self._forget(sequence)
            request, tokens = sequence.request, sequence.output_tokens
            outputs.append(
                Output(
                    request,
                    sequence.prompt_tokens,
                    tokens,
                    self.words(tokens),
                    sequence.first_token_s,
                    self._now,
                    sequence.error,
                )
            )
        return outputs

    def _forget(self, sequence: _Sequence) -> None:
        self._promised -= sequence.blocks
        del self._in_flight[sequence.request.request_id]

    def _interrupt(self, sequence: _Sequence) -> None:
        """Take a sequence out before it ends."""
        self._stop_decoding(sequence)
        self._ends = [end for end in self._ends if end[2] is not sequence]
        heapify(self._ends)

    def _stop_decoding(self, sequence: _Sequence) -> None:
        self._reckon_from_here()
        self._since_context -= sequence.prompt_tokens + self._iteration - sequence.origin
        del self._decoding[sequence.request.request_id]

    def _reckon_from_here(self) -> None:
        """The decoding sequences are about to change."""
        self._since_context += len(self._decoding) * (self._iteration - self._since_iteration)
        self._since_iteration, self._since_s = self._iteration, self._end

    def _budget(self) -> int:
        """Tokens of prompts that the iteration may hold."""
        return self.limits.max_num_batched_tokens - len(self._decoding)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _growth(self) -> int:
        """The blocks that the next chunk of the half computed prompt needs on top of its own."""
        if self._prefilling is None:
            return 0
        computed = self._prefilling.computed
        return self._blocks(computed + min(self._prefilling.missing, self._budget())) - self._blocks(computed)

    def _fits(self, ahead: int, extra: int = 0) -> bool:
        """Whether the KV cache holds `extra` blocks and what the running sequences have in it `ahead` iterations on."""
        if self._promised <= self.limits.kv_blocks:
            return True
        running, tokens = len(self._decoding), self._since_context
        tokens += running * (self._iteration - self._since_iteration + ahead - 1)
        for sequence in self._held():
            running, tokens = running + 1, tokens + sequence.computed
        at_most = tokens // self.limits.block_size + running  # no sequence wastes a whole block
        spare = self.limits.kv_blocks - extra
        return at_most <= spare or self._used_blocks(ahead) <= spare

    def _used_blocks(self, ahead: int) -> int:
        """The blocks that the running sequences have `ahead` iterations on, none ending and no prompt computed."""
        made = self._iteration + ahead - 1
        used = sum(self._blocks(running.prompt_tokens + made - running.origin) for running in self._decoding.values())
        return used + sum(self._blocks(sequence.computed) for sequence in self._held())

    def _held(self) -> list[_Sequence]:
        """What runs and does not decode: a prompt half computed, sequences whose last tokens are not known yet."""
        return self._ended if self._prefilling is None else [self._prefilling, *self._ended]

    def _log(self, started: float, row: tuple[int, ...]) -> None:
        """A row of `steps`, with the columns `STEP_COLUMNS`, of an iteration of which it is known what it made."""
        running = len(self._decoding) + len(self._held())
        usage = self._used_blocks(0) / self.limits.kv_blocks
        self.steps.append((self._now, self._now - started, running, len(self._waiting), *row, usage))

    def _contents(self, prefills: list[tuple[_Sequence, int]], preemptions: int) -> tuple[int, ...]:
        """What an iteration holds, of its row; what is computed again counts as output, as in vLLM."""
        prompts = [tokens for sequence, tokens in prefills if sequence.first_token_s is None]
        again = [tokens for sequence, tokens in prefills if sequence.first_token_s is not None]
        decoding = len(self._decoding)
        return len(prompts), sum(prompts), decoding + len(again), decoding + sum(again), preemptions

    def _own_lengths(self, request: Request) -> tuple[int, int]:
        return self.count_tokens(request.prompt), request.fixed_output_tokens or request.max_tokens
