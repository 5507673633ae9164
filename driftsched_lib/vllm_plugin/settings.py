"""Settings of the scheduler inside vLLM, from one YAML file, and the rule that says who sent a request."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from driftsched_lib.estimators import ESTIMATORS, EstimatorName
from driftsched_lib.estimators.base import BaseTokens
from driftsched_lib.policies import POLICIES, PolicyName
from driftsched_lib.requests import BASE_TOKENS, CATEGORIES, TIERS, Tier
from driftsched_lib.validation import Component, FileName, Name, Validated, choice

UNKNOWN_TENANT = "anonymous"
MAX_NAME_LENGTH = 128


class PluginSettings(Validated):
    """The scheduler's settings; `params/plugin.yaml` is a sample with the defaults.

    Attributes:
        policy, estimator: a name, a name with arguments, or a class of your own as `module:Class`.
        classifier: `text` reads any prompt; `keywords` is the paper's.
        base_tokens: expected output tokens per category, before anything is learnt.
        tiers: weights, safety factors and objectives by name, the best tier first.
        tenants: tiers of known tenants, which no request can change.
        priorities: tiers of clients that can send only vLLM's `priority`.
        default_tier: the tier of all other requests.
        trust_sent_tier: whether a request may name its own tier.  Nothing checks the tenant that a request names,
            unless a gateway in front sets it.
        state_file: keeps what the estimator has learnt from one start to the next; null to start anew.  Each of several
            data-parallel engines adds its rank to the name.
    """

    policy: PolicyName = Component("express", POLICIES["express"])
    estimator: EstimatorName = Component("quantiles", ESTIMATORS["quantiles"])
    classifier: Literal["keywords", "text"] = "text"
    base_tokens: BaseTokens = BASE_TOKENS  # type: ignore[assignment]
    tiers: Annotated[dict[Name, Tier], Field(min_length=1)] = TIERS  # type: ignore[assignment]
    tenants: dict[str, Name] = {}
    priorities: dict[int, Name] = {}
    default_tier: Name = "standard"
    trust_sent_tier: bool = True
    state_file: FileName | None = None

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        """Refuse a tier without an entry in `tiers`, and an estimator that could not estimate the first request."""
        named = {f"tenants.{tenant}": tier for tenant, tier in self.tenants.items()}
        named |= {f"priorities.{priority}": tier for priority, tier in self.priorities.items()}
        for field, tier in (named | {"default_tier": self.default_tier}).items():
            if tier not in self.tiers:
                raise ValueError(f"{field}: {choice(tier, self.tiers)}")
        if issubclass(self.estimator.kind, ESTIMATORS["oracle"]):
            raise ValueError(f"estimator: {self.estimator} knows only fixed output lengths, and a server has none")
        return self

    def identify(self, sent: Mapping[str, Any], priority: int) -> tuple[str, str, str]:
        """Return a request's tenant, tier and category; the category is empty if the prompt has to be read.

        The tier is the one set for the tenant, else the one sent, else the one of the priority, else the default.  A
        value that means nothing counts as not sent, because an engine cannot refuse what its server has accepted.  A
        long name is cut.

        Parameters:
            sent: `vllm_xargs` over HTTP, `SamplingParams.extra_args` in process: `tenant`, `tier`, `category`.
            priority: vLLM's.
        """
        name = sent.get("tenant")
        tenant = str(name)[:MAX_NAME_LENGTH] if name and isinstance(name, str | int) else UNKNOWN_TENANT
        tenant = tenant.encode(errors="replace").decode()  # a lone surrogate could be saved, but not loaded again
        tier = self.tenants.get(tenant) or (sent.get("tier") if self.trust_sent_tier else None)
        if not isinstance(tier, str) or tier not in self.tiers:
            tier = self.priorities.get(priority, self.default_tier)
        category = sent.get("category")
        return tenant, tier, category if category in CATEGORIES else ""
