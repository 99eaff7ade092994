"""Does a bank belong to a model? Equal weights say yes, whatever their names; a rewritten copy only when named."""

from __future__ import annotations

from tccd.decoder import ModelIdentity
from tccd.errors import BankMismatchError


def check_belongs(bank: ModelIdentity, model: ModelIdentity, fitted_on: str | None = None) -> str | None:
    """Make sure that a bank belongs to a model.

    Width and number of layers have to match. Then the fingerprints of the weights decide, where both sides have
    one: equal weights are the same model under any name and revision. Else the hub's names and revisions decide,
    where both know theirs; else the fingerprints of the embeddings; else the model ids.

    Args:
        bank: the model that the bank was fitted on.
        model: the model at hand.
        fitted_on: accept a model of other weights as a quantised or otherwise rewritten copy of this one, which
            has to be the bank's model id.

    Returns:
        `fitted_on` where only it let the model pass; None where the model is the bank's.

    Raises:
        BankMismatchError: says what does not match and what to do.
    """
    if fitted_on is not None and fitted_on != bank.model_id:
        raise BankMismatchError(
            f"the bank was fitted on {bank.model_id!r}, but --fitted-on (fitted_on) says {fitted_on[:200]!r}; "
            "give the name that the bank has, as tccd bank show tells it"
        )
    shape = _shape(bank, model, "bank")
    differ = differences(bank, model)
    if not differ:
        return None
    copy = not shape and bank.model_type == model.model_type
    if fitted_on is not None and copy:
        return fitted_on
    if fitted_on is not None and not shape:
        differ.append(f"model type: bank {bank.model_type!r}, model {model.model_type!r}")
    named = f"; or, for a quantised or rewritten copy of it, say --fitted-on {bank.model_id}" if copy else ""
    raise BankMismatchError(
        f"the bank was fitted for another model ({'; '.join(differ)}). Load the model it was fitted for, with "
        f"that revision, or fit a bank for this one (tccd fit){named}"
    )


def differences(made_for: ModelIdentity, model: ModelIdentity, noun: str = "bank") -> list[str]:
    """What says that a thing was made for another model; nothing where it belongs, by the rule of `check_belongs`.

    Args:
        made_for: the model that it was made for.
        model: the model at hand.
        noun: what the thing is called.
    """
    return _shape(made_for, model, noun) or _weights(made_for, model, noun)


def _shape(bank: ModelIdentity, model: ModelIdentity, noun: str) -> list[str]:
    return [
        f"{name}: {noun} {one}, model {two}"
        for name, one, two in (
            ("width", bank.hidden_size, model.hidden_size),
            ("number of layers", bank.num_layers, model.num_layers),
        )
        if one != two
    ]


def _weights(bank: ModelIdentity, model: ModelIdentity, noun: str) -> list[str]:
    """What says that these are other weights; nothing where they are taken for the same."""
    names = f"model id: {noun} {bank.model_id!r}, model {model.model_id!r}"
    if bank.fingerprint and model.fingerprint:
        if bank.fingerprint == model.fingerprint:
            return []
        found = [_prints("weights", noun, bank, bank.fingerprint, model, model.fingerprint)]
        if bank.revision and (bank.model_id, bank.revision) == (model.model_id, model.revision):
            found.append(
                "the revision is the same, so they were quantised or changed as or after they were loaded"
            )
        return found
    if bank.revision and model.revision:
        found = [names] if bank.model_id != model.model_id else []
        if bank.revision != model.revision:
            found.append(f"revision: {noun} {bank.revision}, model {model.revision}")
        return found
    if bank.embedding and model.embedding:
        if bank.embedding == model.embedding:
            return []
        return [_prints("embeddings", noun, bank, bank.embedding, model, model.embedding)]
    return [names] if bank.model_id != model.model_id else []


def _prints(what: str, noun: str, bank: ModelIdentity, one: str, model: ModelIdentity, two: str) -> str:
    return (
        f"{what}: {noun} {bank.model_id!r} with fingerprint {one[:12]}, model {model.model_id!r} with {two[:12]}"
    )
