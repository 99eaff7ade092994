"""What routing costs the default models: by split and fusion, with a trained branch, identity, or no image.

python -m eval.routing --out out/routing
"""
