"""TCCD inside vLLM: `TCCD_BANK=bank.safetensors vllm serve MODEL`, and `tccd_*` keys in a request's `vllm_xargs`.

vLLM finds the plugin by its entry points; nothing here is imported by hand. Tested with vLLM 0.32.

A request passes through three processes, and so through these files:

1. The front end takes it in. `http`, `guard`, `settings`: bad ones are refused before anything is made of them.
   `prompts` makes the tokens of another prompt, `blank` asks the image processor what grey is, `admission` refuses
   what can never fit, `metrics` counts.
2. The engine schedules it. `pairs` makes a second sequence of it, its shadow; `scheduler` keeps the two in step.
3. The worker runs both. `worker` hears of each step, `erasure` moves a shadow's rows to centroids, `sampling`
   contrasts the logits of the two.

`plugin` puts all of it in, at the places that `joints` lists. `promise` and `processor` see to it that no
process runs without it, `refusals`, `banks` and `weights` that the engine and the banks are such as were tested.
"""
