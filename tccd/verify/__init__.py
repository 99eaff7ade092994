"""`tccd verify --model ID`: is TCCD inside vLLM exact, isolated and cheap here?"""
