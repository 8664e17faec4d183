"""Names of the classes, in the order of the model's outputs; "fake" is the positive class everywhere."""

LABELS = ("real", "fake")
ID2LABEL = dict(enumerate(LABELS))
LABEL2ID = {name: index for index, name in ID2LABEL.items()}
