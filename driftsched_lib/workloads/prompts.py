"""The prompts of the paper's load, in this project's own words.

The paper (arXiv 2606.02982) gives the structure that its keyword classifier meets: each summary prompt says
"summarize", each report prompt names a report or an analysis, and one technical template in five has a keyword.
"""

from collections.abc import Mapping

import numpy as np

TOPICS = (
    "DNS", "BGP", "OSPF", "MPLS", "VPN", "SD-WAN", "CDN", "Load Balancing", "API Gateway", "Edge Computing",
    "Kubernetes", "Docker", "AWS", "Azure", "Serverless", "Terraform", "Ansible", "Microservices", "Service Mesh",
    "CI/CD", "Autoscaling", "Multi-Tenant Systems", "Kafka", "Redis", "PostgreSQL", "MongoDB", "Caching",
    "Data Pipelines", "Event Streaming", "Vector Databases", "Embeddings", "RAG", "JWT", "OAuth", "TLS", "Zero Trust",
    "Cloud Security", "Network Security", "Firewalls", "IDS/IPS", "Rate Limiting", "SRE", "Observability",
    "Distributed Tracing", "Prometheus", "Grafana", "OpenTelemetry", "LLM Inference", "TensorRT", "CUDA",
    "GPU Scheduling", "GPU Memory Management", "KV Cache", "PagedAttention", "Continuous Batching",
    "Model Quantization", "Inference Optimization", "Queue Scheduling", "Token Estimation",
)  # fmt: skip
_FACTORS = np.random.default_rng(59).permutation(np.geomspace(0.6, 1.6, len(TOPICS)))
TOPIC_FACTORS = dict(zip(TOPICS, _FACTORS.tolist(), strict=True))
"""Length of the answers on a topic relative to the median topic's: the embedded model has learnt it."""

TEMPLATES = {
    "short_qa": (
        "What is {topic} and who needs it?",
        "How does {topic} work?",
        "Which problem is solved by {topic}?",
        "When is {topic} the right choice?",
        "What does a team gain from {topic}?",
    ),
    "summary": (
        "Summarize the architecture of {topic} and its main parts.",
        "Summarize what {topic} changes in daily operations.",
        "Summarize how to keep {topic} secure.",
        "Summarize what limits {topic} at scale.",
        "Summarize the proven ways to introduce {topic}.",
    ),
    "technical": (
        "Explain the inner architecture of {topic}.",
        "Explain which performance trade-offs come with {topic}.",
        "Explain how {topic} is implemented.",
        "Explain where the bottlenecks of {topic} lie.",
        "Explain how to monitor {topic} in production.",
    ),
    "report": (
        "Write a detailed report on {topic}: architecture, performance, scaling, security and operations.",
        "Write a comprehensive analysis of how {topic} is deployed and run well.",
        "Write a report that compares the approaches to {topic}.",
        "Write a report on the reliability, resilience and risks of {topic}.",
        "Write a report on where {topic} is heading.",
    ),
}
TEMPLATES_PER_CATEGORY = 5

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
