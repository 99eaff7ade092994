"""Every reference and its peers in one harness: `python -m eval.peers`.

The answers of the default models are one token. So each stream (the clean one, each reference, each peer) runs
once a question and its next-token logits are kept (`kept`); every setting of a method is then a pure function of
rows of logits (`outcomes`). Settings are chosen on half of the test pictures by one rule for all methods, and
reported on the other half (`table`).

In the order to read it: `questions`, `streams` and `outside` (what is run), `methods` (what is compared),
`outcomes`, `table`, `page`.
"""
