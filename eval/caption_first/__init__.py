"""The claims of "Caption First, VQA Second" (arXiv 2604.13054), tested on scenes whose facts are known."""
