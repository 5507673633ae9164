"""What the scheduler inside vLLM is told, as one YAML file, and how it tells who a request is from."""

from collections.abc import Mapping
from typing import Any, Literal

from driftsched_lib.estimators import ESTIMATORS, EstimatorName
from driftsched_lib.estimators.base import BaseTokens
from driftsched_lib.policies import POLICIES, PolicyName
from driftsched_lib.requests import BASE_TOKENS, CATEGORIES, TIERS
from driftsched_lib.validation import Component, FileName, Name, Validated

UNKNOWN_TENANT = "anonymous"
MAX_NAME_LENGTH = 128


class PluginSettings(Validated):
    """The scheduler's settings; `params/plugin.yaml` is a sample.

    Attributes:
        policy, estimator: by name, or a name with arguments.
        classifier: `text` reads any prompt, `keywords` is the paper's.
        base_tokens: what is expected of a category's output before anything is learnt.
        tenants: tiers of known tenants, which no request can change.
        priorities: tiers for clients that can send nothing but vLLM's `priority`.
        default_tier: for all others.
        trust_sent_tier: whether a request may name its own tier; who it is from is its word in any case, unless a
            gateway in front sets it.
        state_file: where what the estimator has learnt is kept from one start to the next (of several data-parallel
            engines, each in a file with its rank in the name); null to begin anew.
    """

    policy: PolicyName = Component("express", POLICIES["express"])
    estimator: EstimatorName = Component("quantiles", ESTIMATORS["quantiles"])
    classifier: Literal["keywords", "text"] = "text"
    base_tokens: BaseTokens = BASE_TOKENS  # type: ignore[assignment]
    tenants: dict[str, Name] = {}
    priorities: dict[int, Name] = {}
    default_tier: Name = "standard"
    trust_sent_tier: bool = True
    state_file: FileName | None = None

    def identify(self, sent: Mapping[str, Any], priority: int) -> tuple[str, str, str]:
        """Tenant, tier and category of a request, the last empty where its prompt has to be read.

        A tenant's tier is the one set here, else the one sent, else its priority's, else the default.  What is sent and
        means nothing counts as not sent: an engine cannot refuse a request that its server has taken.  Of a long name
        the beginning counts.

        Parameters:
            sent: `vllm_xargs` over HTTP, `SamplingParams.extra_args` in process: `tenant`, `tier`, `category`.
            priority: vLLM's.
        """
        name = sent.get("tenant")
        tenant = str(name)[:MAX_NAME_LENGTH] if name and isinstance(name, str | int) else UNKNOWN_TENANT
        tenant = tenant.encode(errors="replace").decode()  # a lone surrogate could be learnt, but not loaded again
        tier = self.tenants.get(tenant) or (sent.get("tier") if self.trust_sent_tier else None)
        if tier not in TIERS:
            tier = self.priorities.get(priority, self.default_tier)
        category = sent.get("category")
        return tenant, tier, category if category in CATEGORIES else ""
