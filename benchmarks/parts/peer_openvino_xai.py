"""stub"""


def measure(context):
    return {"unavailable": "x"}


def section(f):
    return ""
