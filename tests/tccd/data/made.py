"""Pictures and rows that tests of data sources share."""

from PIL import Image

RED = (255, 0, 0)
ROW = {"image": "images/a.png", "prompt": "What color?", "answer": "red", "choices": ["red", "blue"]}


def picture(path, color=RED, mode="RGB"):
    """Save a picture of 6 x 4 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), color).save(path)
    return path
