"""TCCD inside vLLM: `TCCD_BANK=bank.safetensors vllm serve MODEL`, and `tccd_*` keys in a request's `vllm_xargs`.

vLLM finds the plugin by its entry points; nothing here is imported by hand. Tested with vLLM 0.32.

A request passes through three processes, and so through these files:

1. The front end takes it in. `http`, `guard`, `settings`: bad ones are refused before anything is made of them.
   `metrics` counts.
2. The engine schedules it. `admission`: cached blocks of erased states are told from others.
3. The worker runs it. `runners` hears of each step, `batch` says which rows run twice, `stream` runs them,
   `sampling` contrasts the logits.

`plugin` puts all of it in, at the places that `joints` lists. `promise` and `processor` see to it that no
process runs without it, `refusals`, `banks` and `weights` that the engine and the banks are such as were tested.
"""
