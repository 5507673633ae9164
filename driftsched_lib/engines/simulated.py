"""A simulated vLLM: continuous batching, iteration by iteration, in virtual time."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from math import ceil

from driftsched_lib.engines.base import check_context, check_idle, check_progress
from driftsched_lib.engines.profile import Profile
from driftsched_lib.requests import Output, Request

Lengths = Callable[[Request], tuple[int, int]]


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request in the engine (lengths in tokens)."""

    request: Request
    prompt_tokens: int
    output_tokens: int  # at its end
    blocks: int  # KV blocks at its end
    num_output_tokens: int  # until it decodes; from then on it has `iteration - origin`
    first_token_s: float | None
    num_computed_tokens: int = 0  # tokens in the KV cache; while it decodes, all but the last
    admitted: int = 0  # grows with each admission
    origin: int = 0

    @property
    def uncomputed_tokens(self) -> int:
        """Tokens that must be computed before it decodes."""
        return self.prompt_tokens + self.num_output_tokens - self.num_computed_tokens


class SimulatedEngine:
    """vLLM's v1 scheduler (`vllm/v1/core/sched/scheduler.py`) with a cost function in place of the model.

    An iteration gives each decoding sequence one token.  The rest of `max_num_batched_tokens` goes to prompts, first
    come first served, in chunks where needed.  The iteration that completes a prompt yields its first output token.
    When KV blocks run out, the sequence admitted last is preempted: it returns to the front of `waiting`, and all its
    tokens are computed again.  There is no prefix caching.

    With `async_scheduling` an iteration is launched before the results of the previous one are known.  Arrivals wait
    one iteration longer, and a finished sequence keeps its slot and blocks for one more iteration.  A step then ends
    with the previous iteration, or with the launch of this one if the profile is `launch_bound`.

    While sequences only decode, none ends and blocks suffice, a step passes many iterations in one jump: their end has
    a closed form.  It counts from the last change of the decoding sequences, so no jump changes a time by rounding.

    Parameters:
        lengths: returns a request's prompt and output tokens; by default those that it gives, or else `count_tokens` of
            its prompt and `max_tokens`.
        log_steps: keep one row per iteration in `steps`.  The engine then never jumps; results stay the same.
    """

    def __init__(self, profile: Profile, lengths: Lengths | None = None, log_steps: bool = False):
        self.profile, self.log_steps = profile, log_steps
        self.limits, self._cost, self.max_num_seqs = profile.limits, profile.step, profile.limits.max_num_seqs
        self._lengths = lengths or self._own_lengths
        self._async_scheduling = profile.limits.async_scheduling
        self._behind = int(self._async_scheduling and not profile.launch_bound)  # iterations that the clock lags
        self._decode_s = [profile.step.decoding_s(n) for n in range(self.max_num_seqs + 1)]
        self._in_flight: dict[str, _Sequence] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Start a new run at time zero with an empty step log."""
        check_idle(self._in_flight)
        self.steps: list[tuple] = []
        self._now = 0.0
        self._iteration, self._end = 0, 0.0  # the last that was launched, and when it ends
        self._waiting: deque[_Sequence] = deque()
        self._decoding: dict[str, _Sequence] = {}  # in order of admission
        self._prefilling: _Sequence | None = None  # its prompt is computed in part; the sequence admitted last
        self._ends: list[tuple[int, int, _Sequence]] = []  # heap: the iterations that make the last tokens
        # Results of the last iteration that are not known yet: first tokens, last tokens, its row of `steps`.
        self._begun: list[_Sequence] = []
        self._ended: list[_Sequence] = []
        self._row: tuple[int, ...] | None = None
        self._ties = count()
        self._promised = 0  # blocks that all requests in flight will hold at their ends
        # The last change of the decoding sequences: its iteration, its time, and the tokens they attended to.
        self._since_iteration, self._since_s, self._since_context = 0, 0.0, 0

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    def count_tokens(self, text: str) -> int:
        """Return a prompt's length in tokens, from its number of words."""
        return ceil(len(text.split()) * self.profile.tokens_per_prompt_word)

    def now(self) -> float:
        return self._now

    def has_room(self) -> bool:
        return len(self._in_flight) < self.max_num_seqs

    def add(self, request: Request) -> None:
        """Take a request, or raise ValueError if it can never be served; an output ends where the context does."""
        prompt, output = self._lengths(request)
        limits = self.limits
        check_context(request, prompt, limits.max_model_len)
        if output < 1:
            raise ValueError(f"the output has {output} tokens, it must have at least one")
        output = min(output, limits.max_model_len - prompt)
        if self._blocks(prompt + output - 1) > limits.kv_blocks:
            held = f"{limits.kv_blocks} blocks of {limits.block_size} tokens"
            raise ValueError(f"{prompt} prompt and {output} output tokens can never fit the KV cache, {held}")
        blocks = self._blocks(prompt + output)
        sequence = _Sequence(request, prompt, output, blocks, request.num_output_tokens, request.first_token_s)
        self._in_flight[request.request_id] = sequence
        self._waiting.append(sequence)
        self._promised += blocks

    def abort(self, request_id: str) -> None:
        if (sequence := self._in_flight.get(request_id)) is not None:
            self._forget(sequence)
            self._take_out(sequence)

    def num_output_tokens(self) -> dict[str, int]:
        """Return the output tokens so far, by id, of each request that has more to make."""
        return {i: self._made(sequence) for i, sequence in self._in_flight.items() if sequence not in self._ended}

    def preempt(self, request_id: str) -> None:
        """Drop a request that will come back; its prompt and output so far will be computed again."""
        sequence = self._in_flight[request_id]
        sequence.request.num_output_tokens = self._made(sequence)
        sequence.request.first_token_s = sequence.first_token_s
        self.abort(request_id)

    def step(self, until: float) -> list[Output]:
        """Pass iterations up to the first that ends a request, or that ends at or after `until`.

        Raises RuntimeError if no request is here and `until` is infinite.
        """
        if not self._in_flight:
            check_progress(until)
            self._now = max(self._now, until)
            self._end = self._since_s = max(self._end, self._now)
            return []
        while not (outputs := self._iterate(until)) and self._now < until:
            continue
        return outputs

    def _iterate(self, until: float) -> list[Output]:
        """Pass one iteration, or all up to the next event where sequences only decode."""
        preemptions = 0 if self._promised <= self.limits.kv_blocks else self._preempt()
        prefills = self._schedule_prefills(admit=not preemptions) if self._waiting or self._prefilling else []
        started, scheduled = self._now, self._decoding or prefills
        row = self._contents(prefills, preemptions) if self.log_steps and scheduled else None
        if scheduled:
            if preemptions or prefills or self.log_steps or self._begun or self._ended:
                self._iteration += 1
                self._end = self._end_s(self._iteration)
            else:
                self._jump(until)
            before_s = self._end_s(self._iteration - 1) if self._behind else 0.0
        begun = self._complete_prefills(prefills) if prefills else []
        self._now = before_s if scheduled and self._behind else self._end
        ended = self._pop_ended() if self._ends and self._ends[0][0] == self._iteration else []
        if self._async_scheduling:
            begun, self._begun = self._begun, begun
            ended, self._ended = self._ended, ended
            row, self._row = self._row, row
        for sequence in begun:
            if sequence.first_token_s is None:
                sequence.first_token_s = self._now
        outputs = [self._output(sequence) for sequence in ended]
        if row is not None:
            running = len(self._decoding) + len(self._not_decoding())
            usage = self._used_blocks(0) / self.limits.kv_blocks
            self.steps.append((self._now, self._now - started, running, len(self._waiting), *row, usage))
        return outputs

    def _preempt(self) -> int:
        """Preempt the sequences admitted last until the others have the blocks to go on; return how many."""
        preempted = 0
        while not self._fits(1, self._next_chunk_blocks()):
            sequence = self._prefilling or next(reversed(self._decoding.values()))
            sequence = max([sequence, *self._ended], key=lambda one: one.admitted if one.num_computed_tokens else -1)
            if sequence not in self._ended:  # which need not come back
                sequence.num_output_tokens = self._made(sequence)
                self._take_out(sequence)
                self._waiting.appendleft(sequence)
            sequence.num_computed_tokens = 0
            preempted += 1
        return preempted

    def _schedule_prefills(self, admit: bool) -> list[tuple[_Sequence, int]]:
        """Return the sequences whose prompts this iteration computes, and how many tokens of each.

        A sequence is admitted only if all of it fits (vLLM's `scheduler_reserve_full_isl`) and `admit` is true: an
        iteration that preempts admits none.
        """
        prefills = []
        budget = self.limits.max_num_batched_tokens - len(self._decoding)
        running = len(self._decoding) + len(self._ended)
        claimed = self._next_chunk_blocks()
        if self._prefilling is not None and budget:
            running += 1
            prefills.append((self._prefilling, min(self._prefilling.uncomputed_tokens, budget)))
            budget -= prefills[-1][1]
        while admit and self._waiting and budget and running < self.max_num_seqs:
            sequence = self._waiting[0]
            claimed += self._blocks(sequence.uncomputed_tokens)
            if not self._fits(1, claimed):
                break
            running += 1
            sequence.admitted = next(self._ties)
            prefills.append((self._waiting.popleft(), min(sequence.uncomputed_tokens, budget)))
            budget -= prefills[-1][1]
        return prefills

    def _jump(self, until: float) -> None:
        """Skip ahead to the next event: a sequence ends, `until` is reached, or KV blocks run out.

        In the last case stop one iteration earlier.
        """
        last = self._ends[0][0]
        if not self._fits(last - self._iteration):
            ahead = range(1, last - self._iteration + 1)
            last = self._iteration + bisect_right(ahead, self.limits.kv_blocks, key=self._used_blocks)
        first, last = self._iteration + 1 - self._behind, last - self._behind
        if self._end_s(last) > until:
            last = first + bisect_left(range(first, last), until, key=self._end_s)
        self._iteration = last + self._behind
        self._end = self._end_s(self._iteration)

    def _end_s(self, iteration: int) -> float:
        """Return when an iteration ends if the decoding sequences have not changed since `_since_iteration`."""
        n, decoding = iteration - self._since_iteration, len(self._decoding)
        context = n * self._since_context + decoding * (n * (n - 1) // 2)
        return self._since_s + n * self._decode_s[decoding] + context * self._cost.per_context_token_s

    def _complete_prefills(self, prefills: list[tuple[_Sequence, int]]) -> list[_Sequence]:
        """Add the time of the prompts; return the sequences whose prompts are whole, which now decode."""
        cost, tokens = self._cost, sum(computed for _, computed in prefills)
        self._end += tokens * cost.per_prefill_token_s + cost.per_prefill_step_s + len(prefills) * cost.per_prompt_s
        self._rebase()
        self._prefilling, begun = None, []
        for sequence, computed in prefills:
            sequence.num_computed_tokens += computed
            if sequence.uncomputed_tokens:
                self._prefilling = sequence
                continue
            begun.append(sequence)
            sequence.num_output_tokens += 1
            sequence.origin = self._iteration - sequence.num_output_tokens
            self._decoding[sequence.request.request_id] = sequence
            self._since_context += sequence.prompt_tokens + sequence.num_output_tokens
            heappush(self._ends, (sequence.origin + sequence.output_tokens, next(self._ties), sequence))
        return begun

    def _pop_ended(self) -> list[_Sequence]:
        """Remove and return the sequences whose last tokens this iteration makes."""
        ended = []
        while self._ends and self._ends[0][0] == self._iteration:
            sequence = heappop(self._ends)[2]
            self._stop_decoding(sequence)
            sequence.num_computed_tokens = sequence.prompt_tokens + sequence.output_tokens - 1
            ended.append(sequence)
        return ended

    def _output(self, sequence: _Sequence) -> Output:
        self._forget(sequence)
        request, tokens, per_token = sequence.request, sequence.output_tokens, self.profile.words_per_output_token
        words = None if per_token is None else round(tokens * per_token)
        return Output(request, sequence.prompt_tokens, tokens, words, sequence.first_token_s, self._now)

    def _made(self, sequence: _Sequence) -> int:
        """Return the output tokens of a sequence so far."""
        decodes = sequence.request.request_id in self._decoding
        return self._iteration - sequence.origin if decodes else sequence.num_output_tokens

    def _own_lengths(self, request: Request) -> tuple[int, int]:
        prompt_tokens = request.prompt_tokens or self.count_tokens(request.prompt)
        return prompt_tokens, request.fixed_output_tokens or request.max_tokens

    def _forget(self, sequence: _Sequence) -> None:
        self._promised -= sequence.blocks
        del self._in_flight[sequence.request.request_id]

    def _take_out(self, sequence: _Sequence) -> None:
        """Remove a sequence, before its end is known, from wherever it is."""
        if sequence.request.request_id in self._decoding:
            self._stop_decoding(sequence)
            self._ends = [end for end in self._ends if end[2] is not sequence]
            heapify(self._ends)
        elif sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._ended:
            self._ended.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def _stop_decoding(self, sequence: _Sequence) -> None:
        self._rebase()
        self._since_context -= sequence.prompt_tokens + self._iteration - sequence.origin
        del self._decoding[sequence.request.request_id]

    def _rebase(self) -> None:
        """Compute times from here on: the decoding sequences are about to change."""
        self._since_context += len(self._decoding) * (self._iteration - self._since_iteration)
        self._since_iteration, self._since_s = self._iteration, self._end

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _next_chunk_blocks(self) -> int:
        """Return how many more blocks the next chunk of a partly computed prompt needs."""
        if self._prefilling is None:
            return 0
        computed = self._prefilling.num_computed_tokens
        chunk = min(self._prefilling.uncomputed_tokens, self.limits.max_num_batched_tokens - len(self._decoding))
        return self._blocks(computed + chunk) - self._blocks(computed)

    def _fits(self, ahead: int, extra: int = 0) -> bool:
        """Return whether the KV cache holds the running sequences `ahead` iterations on, and `extra` blocks."""
        if self._promised <= self.limits.kv_blocks:
            return True
        running, tokens = len(self._decoding), self._since_context
        tokens += running * (self._iteration - self._since_iteration + ahead - 1)
        for sequence in self._not_decoding():
            running, tokens = running + 1, tokens + sequence.num_computed_tokens
        upper_bound = tokens // self.limits.block_size + running  # no sequence wastes a whole block
        spare = self.limits.kv_blocks - extra
        return upper_bound <= spare or self._used_blocks(ahead) <= spare

    def _used_blocks(self, ahead: int) -> int:
        """Return the blocks of the running sequences `ahead` iterations on, if none ends and no prompt is computed."""
        made = self._iteration + ahead - 1
        used = sum(self._blocks(running.prompt_tokens + made - running.origin) for running in self._decoding.values())
        return used + sum(self._blocks(sequence.num_computed_tokens) for sequence in self._not_decoding())

    def _not_decoding(self) -> list[_Sequence]:
        """Return what else holds blocks: a partly computed prompt, and ended sequences whose end is not known yet."""
        return self._ended if self._prefilling is None else [self._prefilling, *self._ended]

    def _contents(self, prefills: list[tuple[_Sequence, int]], preemptions: int) -> tuple[int, ...]:
        """Return an iteration's columns of `steps` from `prompt_requests` to `preemptions`.

        Tokens that are computed again count as output, as in vLLM.
        """
        prompts = [tokens for sequence, tokens in prefills if sequence.first_token_s is None]
        again = [tokens for sequence, tokens in prefills if sequence.first_token_s is not None]
        decoding = len(self._decoding)
        return len(prompts), sum(prompts), decoding + len(again), decoding + sum(again), preemptions
