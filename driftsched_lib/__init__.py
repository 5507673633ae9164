"""QoS-aware scheduling for multi-tenant LLM inference on vLLM, as a research notebook project."""
