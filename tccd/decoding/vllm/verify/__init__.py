"""`python -m tccd.decoding.vllm.verify --model ID`: is TCCD inside vLLM exact, isolated and cheap here?"""
