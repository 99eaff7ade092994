"""Contrastive decoding in transformers: three doors to one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from tccd.centroids.bank import CentroidBank
from tccd.decoder import find_decoder
from tccd.decoding.config import Rule, RuleSettings, TCCDConfig, TCCDSettings
from tccd.decoding.logits_processor import TCCDLogitsProcessor, WatchingSession
from tccd.decoding.references import centroid_erasure, text_layer
from tccd.decoding.session import Contrasted, ContrastSession
from tccd.engine.reference import Reference
from tccd.engine.support import check_model
from tccd.errors import ConfigError
from tccd.generation import Door


class Contrast(Door):
    """Contrastive decoding of a transformers vision-language model with any reference, or with several.

    Every token is drawn from `clean + alpha_cd * (clean - reference)`, or from `clean + alpha_cd * (the sum of
    weight * (clean - reference))`. References run inside the clean stream's forward (see `tccd.engine.session`). A
    row without an image is decoded plainly, unless the reference needs none (`early_exit`, `other_prompt`).

    Three doors:

    - `model.generate(**inputs, custom_generate=contrast)`: greedy, sampling, beams, assisted and prompt-lookup
      decoding, streamers included; `scores` and `logits` are the combined ones.
    - `with contrast: ...`: every call of the model in this thread, by whatever calls it (a pipeline).
    - `model.generate(**inputs, logits_processor=[contrast.logits_processor()])`: where only processors are taken.

    Args:
        model: a loaded model with a language-model head, in eval mode.
        reference: what is contrasted with, one or several; made by the functions of `tccd.decoding.references`.
        weights: of each reference, where there are several; 1 each when None. A negative weight adds what the
            reference says where a positive one subtracts it.
        alpha_cd, beta, gate, gate_threshold, gate_ramp, tokens: see `Rule`.
        rule: all of them at once, instead.

    Raises:
        ConfigError: a setting is out of range, or given twice, or a weight is zero or missing.
        UnsupportedModelError: the engine is not exact for this model.

    Example:
        >>> from PIL import Image
        >>> from tccd.decoding.references import no_vision
        >>> from tccd.inputs import encode
        >>> contrast = Contrast(model, no_vision(), alpha_cd=0.5, beta=0.1)
        >>> inputs = encode(processor, [[Image.new("RGB", (64, 64))]], ["what shape is in the image?"])
        >>> model.generate(**inputs, custom_generate=contrast, max_new_tokens=4).shape[0]
        1
    """

    def __init__(
        self,
        model: Any,
        reference: Reference | Sequence[Reference],
        *,
        weights: Sequence[float] | None = None,
        rule: Rule | None = None,
        **settings: Unpack[RuleSettings],
    ) -> None:
        if rule is not None and settings:
            raise ConfigError("settings were given both one by one and as rule; give them once")
        references = (reference,) if isinstance(reference, Reference) else tuple(reference)
        self._set_up(model, references, Rule.from_dict(settings) if rule is None else rule, weights)

    def _set_up(
        self, model: Any, references: tuple[Reference, ...], rule: Rule, weights: Sequence[float] | None = None
    ) -> None:
        Door.__init__(self, model)
        self.decoder = find_decoder(model)
        self.references = tuple(one.bind(self.decoder) for one in references)
        self.weights = _weights(references, weights)
        self.rule = rule
        check_model(self.decoder)

    def __repr__(self) -> str:
        weighted = "" if set(self.weights) == {1.0} else f", weights={self.weights}"
        told = ", ".join(map(repr, self.references))
        return f"{type(self).__name__}({type(self.model).__name__}, {told}{weighted}, {self.rule!r})"

    @property
    def trace(self) -> list[Contrasted]:
        """Where contrast acted in this thread's last generation, one entry a forward."""
        session = getattr(self._local, "last", None)
        return [] if session is None else session.trace

    def session(self, prompt_length: int | None = None) -> ContrastSession:
        """A fresh decoding session; `trace` shows the last one of this thread."""
        session = ContrastSession(self.decoder, self.references, self.rule, self.weights, prompt_length)
        self._local.last = session
        return session

    def logits_processor(self) -> TCCDLogitsProcessor:
        """The processor door: a new processor, for one `generate` call in this thread.

        The model is watched from now until the processor is dropped or closed, so create it in the call:
        `model.generate(**inputs, logits_processor=[tccd.logits_processor()])`. Transformers runs it after its
        own penalties, which therefore see the clean logits; with `custom_generate` they see the combined.
        """
        session = WatchingSession(self.decoder, self.references, self.rule, self.weights)
        self._local.last = session
        return TCCDLogitsProcessor(session)


class TCCD(Contrast):
    """Text-centroid contrastive decoding for a transformers vision-language model.

    A `Contrast` whose reference has its text tail replaced by its nearest centroids at one layer
    (arXiv 2604.14363); its three doors are those of `Contrast`.

    Args:
        model: a loaded model with a language-model head, in eval mode.
        bank: centroids fitted for this model, with a text entry at the layer.
        alpha_cd, alpha_interp, layer, beta, gate, gate_threshold, gate_ramp, tokens: see `TCCDConfig`.
        config: all of them at once, instead.
        fitted_on: the bank's model id, to accept a model that is a quantised or otherwise rewritten copy of it;
            see `CentroidBank.check`.

    Attributes:
        fitted_on: the base's name where the bank passed by it alone; None where it is the model's own.

    Raises:
        ConfigError: a setting is out of range or given twice, or the bank's layer is ambiguous.
        BankMismatchError: the bank was fitted for another model, or has no such layer.
        UnsupportedModelError: the engine is not exact for this model.

    Example:
        >>> from PIL import Image
        >>> from tccd.inputs import encode
        >>> tccd = TCCD(model, bank, alpha_cd=1.0, alpha_interp=0.4)
        >>> inputs = encode(processor, [[Image.new("RGB", (64, 64))]], ["what shape is in the image?"])
        >>> tokens = model.generate(**inputs, custom_generate=tccd, max_new_tokens=4)
        >>> with tccd:
        ...     same = model.generate(**inputs, max_new_tokens=4)
        >>> bool((tokens == same).all())
        True
    """

    def __init__(
        self,
        model: Any,
        bank: CentroidBank,
        *,
        config: TCCDConfig | None = None,
        fitted_on: str | None = None,
        **settings: Unpack[TCCDSettings],
    ) -> None:
        if config is not None and settings:
            raise ConfigError("settings were given both one by one and as config; give them once")
        self.config = TCCDConfig.from_dict(settings) if config is None else config
        self.bank = bank
        self.fitted_on = bank.check(model, fitted_on)
        self.layer = text_layer(bank, self.config.layer)
        self._set_up(model, (centroid_erasure(bank, self.layer, self.config.alpha_interp),), self.config)


def _weights(references: Sequence[Reference], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not references:
        raise ConfigError("no reference to contrast with; give one, such as no_vision()")
    given = (1.0,) * len(references) if weights is None else tuple(weights)
    wrong = [w for w in given if isinstance(w, bool) or not isinstance(w, int | float) or not 0 < abs(w) < 1e30]
    if wrong or len(given) != len(references):
        raise ConfigError(
            f"weights are {given} for {len(references)} reference{'s' * (len(references) > 1)}; expected one "
            "finite number other than 0 for each: leave a reference out rather than give it 0"
        )
    return tuple(float(weight) for weight in given)
