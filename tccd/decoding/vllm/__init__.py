"""TCCD inside vLLM: `TCCD_BANK=bank.safetensors vllm serve MODEL`, and `tccd_*` keys in a request's `vllm_xargs`.

vLLM finds the plugin by its entry points; nothing here is imported by hand. Tested with vLLM 0.32.
"""
