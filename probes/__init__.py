"""Diagnostics: what each modality is worth to a model, and how sure that is."""
