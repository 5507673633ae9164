"""Parameters of the engine."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from driftsched_lib.validation import Count, FileName, NotNegative, Positive, Validated


class ServerParams(Validated):
    """A live server that speaks OpenAI's completions API.

    Attributes:
        url: its address, with or without `/v1`.
        max_in_flight: requests that may be with it at once.
        timeout_s: the longest that one request may take.
        api_key_env: the environment variable that holds its API key.
        extensions: send vLLM's additions (tenant, tier, `min_tokens`).  A strict server takes none; then an output may
            end before its fixed length, and the request fails.
        max_num_batched_tokens: what it was started with; only a profile of it needs that.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$")]
    max_in_flight: Count
    timeout_s: Positive
    api_key_env: Annotated[str, Field(min_length=1)] | None = None
    extensions: bool = True
    max_num_batched_tokens: Count = 2048


class EngineParams(Validated):
    """Which engine serves, and with what.

    Attributes:
        kind: `vllm` loads `model` in this process with `args`; `server` is a live one; `simulated` is `replicas`
            engines of a `profile`, in which `args` replace limits.
        model: a Hugging Face id, or a folder.
        profile: a file as in data/profiles.  Real vLLM runs in virtual time at its costs; null for wall time.
        router: chooses the replica of a request.
        max_outstanding: requests that a replica is given; null for as many as run at once: the policy queues the rest.
        args: vLLM's engine arguments.
        temperature: of the sampling.
    """

    kind: Literal["vllm", "simulated", "server"] = "vllm"
    model: FileName = "Qwen/Qwen1.5-1.8B-Chat"
    profile: FileName | None = None
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    router: Literal["round_robin", "least_requests", "least_estimated_tokens"] = "least_requests"
    max_outstanding: Count | None = None
    server: ServerParams | None = None
    args: dict[str, Any] = {
        "dtype": "float16",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 32,
        "gpu_memory_utilization": 0.70,
        "enable_prefix_caching": False,
    }
    temperature: NotNegative = 0.7

    @model_validator(mode="before")
    @classmethod
    def _own_args(cls, values: Any) -> Any:
        """Let only vLLM in this process start from the default arguments."""
        if isinstance(values, dict) and values.get("kind", "vllm") != "vllm":
            return {"args": {}} | values
        return values

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "EngineParams":
        if self.kind == "simulated" and self.profile is None:
            raise ValueError("the simulated engine needs a profile, a file as in data/profiles")
        if (self.kind == "server" and self.profile is not None) or (self.kind != "simulated" and self.replicas > 1):
            raise ValueError("a server has no profile, and replicas are for the simulated engine")
        if (self.kind == "server") != (self.server is not None):
            raise ValueError("server says where `kind: server` is, and that alone")
        if self.kind == "server" and self.args:
            raise ValueError("a live server was started with its own args, so they may be {} alone")
        return self

    @property
    def can_preempt(self) -> bool:
        """Whether a policy can preempt running requests here."""
        return self.kind == "simulated" and self.replicas == 1
