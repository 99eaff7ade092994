"""From what vLLM answered, and what transformers says of it, to the verdicts of `verify`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tccd.decoding.vllm.settings import PREFIX
from tccd.verify.answering import Ask, Reply, Trial, medians, on_gpu
from tccd.verify.asks import Prepared
from tccd.verify.checking import NOTHING, Checked, Compared, difference

#: Largest difference of a log-probability in fp32.
TIGHT = 1e-3
#: Times the plain requests' noise, scaled by the contrast, that a half-precision difference may be.
FACTOR = 1.5
#: Times that allowance by which a broken stream has to stand out, for a pass to mean something.
CLEAR = 2.0
#: Broken streams that have to stand out; others are only told of.
TOLD_APART = ("no contrast", "other centroids")
#: Two centroids nearer to a tie than this share of a row's norm: engines need not choose the same, in fp32 and in
#: half precision (half of bf16's epsilon). There a state takes another centroid now and then, so that some
#: requests may be further off; not many.
TIE, HALF_TIE = 1e-6, 2**-8
MOST_TIED = 0.25


@dataclass(frozen=True)
class Verdict:
    """One line of the report, and more below it.

    Attributes:
        name: what was looked at.
        passed: None for figures that nothing is asked of.
        text: what was found.
        details: further lines.
    """

    name: str
    passed: bool | None
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noise:
    """What plain vLLM differs from transformers by, which TCCD can't be asked to undercut.

    Attributes:
        typical: median over steps of the median difference of a log-probability.
        largest: the largest difference.
        tight: exact figures can be asked for: the dtype is float32, and plain requests keep to `TIGHT`.
    """

    typical: float
    largest: float
    tight: bool

    def allowed(self, alpha_cd: float) -> float:
        """What a difference may be: the largest one where `tight`, else a request's typical one.

        `(1 + a) clean - a erased` of two streams that are each off by the noise is off by `1 + 2 a` times it at
        most; `FACTOR` is for what a sample of steps is off by.
        """
        return TIGHT if self.tight else FACTOR * (1 + 2 * alpha_cd) * self.typical

    def accepts(self, steps: Sequence[Compared], alpha_cd: float) -> bool:
        """Whether a request is as near as can be asked."""
        if self.tight:
            return all(s.equal and s.largest < TIGHT for s in steps)
        return statistics.median(s.typical for s in steps) <= self.allowed(alpha_cd)

    def complaint(self, request: Ask, steps: Sequence[Compared]) -> str:
        """A line about a request that is not accepted."""
        return f"{request.extra or 'plain'}: {off(steps)}; allowed {self.allowed(alpha_cd(request)):.1e}"


def judge(
    prepared: Prepared, found: Trial, mixed: Sequence[Checked], plain: Sequence[Checked], bar: float | None
) -> list[Verdict]:
    """Every verdict, in the report's order.

    Args:
        prepared: what was asked.
        found: what vLLM answered.
        mixed: its mixed batch against transformers.
        plain: its plain batch against transformers.
        bar: most that a phase with TCCD may take, over the plain batch's.
    """
    requests = prepared.requests
    steps = [s for c in plain for s in c.steps]
    steps += [s for r, c in zip(requests, mixed, strict=True) if r.extra is None for s in c.steps]
    if not steps:
        text = "vLLM and transformers see different prompt tokens in every plain request: nothing can be compared"
        return [Verdict("exactness", False, text)]
    largest, typical = max(s.largest for s in steps), statistics.median(s.typical for s in steps)
    noise = Noise(typical, largest, prepared.dtype == "float32" and largest < TIGHT)
    triples = list(zip(requests, found.alone, found.mixed, found.plain, strict=True))
    return [
        Verdict("rule", None, _rule(noise, prepared.dtype)),
        exactness(requests, mixed, noise, steps),
        isolation(
            "isolation: alone, and in the batch", [(r, alone, here) for r, alone, here, _ in triples], noise
        ),
        isolation(
            "isolation: plain beside TCCD, and beside plain",
            [(r, here, there) for r, _, here, there in triples if r.extra is None],
            noise,
        ),
        prefix_cache(prepared.variants, found, noise),
        cost(found, bar),
    ]


def _rule(noise: Noise, dtype: str) -> str:
    if noise.tight:
        return f"every log-probability within {TIGHT}, every token equal"
    rule = (
        f"a request's typical difference at most {FACTOR:g} (1 + 2 alpha_cd) x {noise.typical:.1e}, plain "
        f"vLLM's; broken streams over {CLEAR:g} times that"
    )
    return f"plain vLLM is off by {noise.largest:.1e} in float32, so {rule}" if dtype == "float32" else rule


def exactness(
    requests: Sequence[Ask], mixed: Sequence[Checked], noise: Noise, plain: Sequence[Compared]
) -> Verdict:
    """Judge the mixed batch against transformers.

    Passing also asks that streams broken on purpose, in transformers, would have been told apart: of half of the
    requests without gate (which may be shut) and plausibility (which may leave one token), each has to be off by
    `CLEAR` times what is allowed.
    """
    lines, failed, judged, tied = [], False, [], 0
    spared = MOST_TIED * sum(r.extra is not None for r in requests)
    for i, (request, found) in enumerate(zip(requests, mixed, strict=True)):
        if not found.prompt_equal:
            failed = True
            lines.append(f"request {i}: vLLM and transformers see different tokens of the same prompt")
            continue
        steps = found.steps if request.extra is None else [s for s in found.steps if s.contrasted]
        if noise.tight and found.gap < TIE:
            lines.append(f"request {i}: not judged, a state is as near to two centroids ({found.gap:.0e} of it)")
        elif not noise.accepts(steps, alpha_cd(request)):
            lines.append(f"request {i} {noise.complaint(request, steps)}")
            if not noise.tight and found.gap < HALF_TIE and tied + 1 <= spared:
                tied += 1
                lines[-1] += f"; spared, a state is nearly as near to two centroids ({found.gap:.0e} of it)"
            else:
                failed = True
        elif request.extra is not None and not {PREFIX + "gate", PREFIX + "beta"} & set(request.extra):
            judged.append((steps, CLEAR * noise.allowed(alpha_cd(request))))
    seen: dict[str, int] = {}
    for kind in judged[0][0][0].broken if judged else ():
        shown = [statistics.median(s.broken[kind] for s in steps) for steps, _ in judged]
        seen[kind] = sum(value > clear for value, (_, clear) in zip(shown, judged, strict=True))
        lines.append(
            f"were it broken ({kind}): off by {statistics.median(shown):.1e} typically, told apart in "
            f"{seen[kind]} of {len(shown)} requests"
        )
    hidden = [kind for kind in TOLD_APART if not judged or 2 * seen[kind] < len(judged)]
    if hidden and not failed:
        lines.append(f"not shown: noise would hide a broken stream ({', '.join(hidden)}); try --dtype float32")
    tccd = [s for r, c in zip(requests, mixed, strict=True) if r.extra is not None for s in c.steps]
    return Verdict("exactness", not failed and not hidden, f"TCCD {off(tccd)}; plain {off(plain)}", tuple(lines))


def isolation(name: str, pairs: Sequence[tuple[Ask, Reply, Reply]], noise: Noise) -> Verdict:
    """Judge pairs of replies that have to be the same."""
    lines, every = [], []
    for i, (request, one, other) in enumerate(pairs):
        steps = compare(one, other)
        every += steps
        if not noise.accepts(steps, alpha_cd(request)):
            lines.append(f"pair {i} {noise.complaint(request, steps)}")
    return Verdict(name, not lines and bool(every), off(every), tuple(lines))


def prefix_cache(variants: Sequence[Ask], found: Trial, noise: Noise) -> Verdict:
    """Judge a prompt's variants, answered from what the ones before left in the cache."""
    same = isolation("", list(zip(variants, found.fresh, found.cached, strict=True)), noise)
    lines = list(same.details)
    hits = [reply.cached for reply in found.cached]
    if not all(hits[1:]):
        lines.append("not shown: the cache was not hit (prefix caching is off, or a block longer than the prompt)")
    for i, j in ((0, 1), (1, 2)):
        apart = max(s.typical for s in compare(found.fresh[i], found.fresh[j]))
        if apart <= CLEAR * noise.allowed(alpha_cd(variants[j])):
            lines.append(f"not shown: replies {i} and {j} are {apart:.1e} apart, so a mixed-up cache might pass")
    text = f"{same.text}; tokens from the cache: {', '.join(map(str, hits))}"
    return Verdict("isolation: prefix cache, kept and emptied", not lines, text, tuple(lines))


def cost(found: Trial, bar: float | None) -> Verdict:
    """The figures, judged where a bar is given."""
    table, lines = medians(found.cost), []
    for way, name in (("plain", "plain"), ("one", "1 of 4 TCCD"), ("all", "4 of 4 TCCD")):
        cells = [f"{p} {c['seconds'] * 1e3:.2f} ms (x{c['ratio']:.3f})" for p, c in table[way].items()]
        lines.append(f"{name + ':':13}{', '.join(cells)}")
    blocks, size = (found.about[f"kv_{name}"] for name in ("blocks", "block_size"))
    lines.append(f"KV cache: {blocks:,} blocks of {size} tokens; the plugin itself takes none")
    worst = max(c["ratio"] for phases in table.values() for c in phases.values())
    kind = "wall time" if on_gpu() else "CPU time"
    text = f"{kind}, medians of interleaved rounds; to the first token of all, and a step after it"
    return Verdict("cost", None if bar is None else worst <= bar, text, tuple(lines))


def compare(one: Reply, other: Reply) -> list[Compared]:
    """Two replies to a request, step by step, up to the first token that differs."""
    steps = []
    for a, b, mine, theirs in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=True):
        common = [token for token in mine if token in theirs]
        steps.append(Compared(*difference([mine[t] for t in common], [theirs[t] for t in common]), a == b, True))
        if a != b:
            break
    return steps


def alpha_cd(request: Ask) -> float:
    """Strength of a request's contrast; 0 for a plain one."""
    return 0.0 if request.extra is None else float(request.extra.get(PREFIX + "alpha_cd", 1.0))


def off(steps: Sequence[Compared]) -> str:
    """Differences in words; a step at which one side alone takes a token for plausible is only counted."""
    if not steps:
        return "not compared"
    both = [s.largest for s in steps if s.largest < -NOTHING / 2]
    text = (
        f"off by {max(both, default=0.0):.1e} at most, "
        f"{statistics.median(s.typical for s in steps):.1e} typically, "
        f"{sum(s.equal for s in steps)} of {len(steps)} tokens equal"
    )
    return text if len(both) == len(steps) else f"{text}, other plausible tokens at {len(steps) - len(both)} steps"
