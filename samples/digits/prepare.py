"""A picture of 8 by 8 points becomes the 784 numbers that the model takes."""

from skep import Swarm, register_bee

SIDE, WIDE = 8, 28
#: How a picture is drawn as text, from white to black: each next character is a ninth darker.
SHADES = " .:-=+*#%@"
#: What is black in a picture of numbers.
BLACK = 16


def points(picture):
    """The picture as 64 numbers from 0, white, to 1, black. ValueError: it is no picture, and why."""
    if not isinstance(picture, list) or len(picture) not in (SIDE, SIDE * SIDE):
        raise ValueError(f"a picture is a list of {SIDE * SIDE} numbers or of {SIDE} lines of text")
    if len(picture) == SIDE * SIDE:
        for at, shade in enumerate(picture):
            if isinstance(shade, bool) or not isinstance(shade, (int, float)) or not 0 <= shade <= BLACK:
                raise ValueError(f"point {at} of the picture is not a number from 0 to {BLACK}")
        return [shade / BLACK for shade in picture]
    found = []
    for at, line in enumerate(picture):
        if not isinstance(line, str) or len(line) > SIDE or line.strip(SHADES):
            raise ValueError(f"line {at} of the picture is not text of at most {SIDE} characters, each of {SHADES!r}")
        found += [SHADES.index(shade) / (len(SHADES) - 1) for shade in line.ljust(SIDE)]
    return found


def enlarged(small):
    """The picture as 28 by 28 points, each the mean of the four nearest ones, weighted by how near they are.

    The same as `scipy.ndimage.zoom(picture, 3.5, order=1)`, by which ../models/train.py made the pictures that the model learned from.
    """
    # Of each point in the large picture: the small one before it, the one after it, and how far it is from the first.
    places = []
    for at in range(WIDE):
        exact = at * (SIDE - 1) / (WIDE - 1)
        before = min(int(exact), SIDE - 2)
        places.append((before, before + 1, exact - before))
    large = []
    for up, down, lower in places:
        for left, right, aside in places:
            above = small[up * SIDE + left] * (1 - aside) + small[up * SIDE + right] * aside
            below = small[down * SIDE + left] * (1 - aside) + small[down * SIDE + right] * aside
            large.append(above * (1 - lower) + below * lower)
    return large


@register_bee(name="prepare")
def prepare(swarm: Swarm, payload):
    if not isinstance(payload, dict) or "picture" not in payload:
        swarm.reject("the message has no `picture`")
    try:
        small = points(payload["picture"])
    except ValueError as error:
        swarm.reject(str(error))
    # Four places are finer than any shade, and make a message of 5 kB rather than 15.
    swarm.publish({"image": [round(point, 4) for point in enlarged(small)]})
