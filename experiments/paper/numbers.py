"""The paper's numbers as printed: (mean, half of the 95 % interval, number of models)."""

COLUMNS = ("1", "3", "10", "30", "all")  # samples per class
FEW, FULL = 15, 5  # models of a cell


def _rows(printed: dict[str, tuple]) -> dict[str, dict[str, tuple[float, float, int]]]:
    """{regularizer: {column: (mean, half, models)}}."""
    count = {column: FULL if column == "all" else FEW for column in COLUMNS}
    return {
        name: {column: (*cell, count[column]) for column, cell in zip(COLUMNS, cells, strict=True)}
        for name, cells in printed.items()
    }


def _full(printed: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float, int]]:
    return {name: (*cell, FULL) for name, cell in printed.items()}


TABLE1 = _rows(
    {
        "none": ((49.2, 1.9), (67.0, 1.7), (83.3, 0.7), (90.4, 0.5), (98.9, 0.1)),
        "L2": ((49.9, 2.1), (68.1, 1.9), (84.3, 0.8), (91.2, 0.5), (99.2, 0.1)),
        "dropout": ((49.7, 1.7), (67.4, 1.7), (83.9, 1.8), (91.6, 0.5), (98.6, 0.1)),
        "Jacobian": ((49.3, 2.1), (68.2, 1.9), (84.5, 0.9), (91.3, 0.4), (99.0, 0.0)),
        "all": ((51.7, 2.1), (69.7, 1.9), (86.3, 0.9), (92.7, 0.4), (99.1, 0.1)),
    }
)
TABLE1_NORM = _full(
    {"none": (32.9, 3.3), "L2": (4.6, 0.2), "dropout": (21.5, 2.3), "Jacobian": (1.1, 0.1), "all": (1.2, 0.0)}
)
TABLE2 = _full(
    {"none": (80.4, 0.7), "L2": (83.3, 0.8), "dropout": (81.9, 1.4), "Jacobian": (81.3, 0.9), "all": (85.7, 1.0)}
)
TABLE3 = _rows(
    {
        "none": ((12.9, 0.7), (15.5, 0.7), (20.5, 1.3), (26.6, 1.0), (76.8, 0.4)),
        "L2": ((13.9, 1.0), (14.6, 1.1), (20.5, 1.0), (26.6, 1.2), (77.8, 0.2)),
        "dropout": ((12.9, 1.4), (17.8, 0.6), (24.4, 1.0), (31.4, 0.5), (80.7, 0.4)),
        "Jacobian": ((14.9, 1.0), (18.3, 1.0), (23.7, 0.8), (30.0, 0.6), (75.4, 0.2)),
        "all": ((15.0, 1.1), (19.6, 0.9), (26.1, 0.6), (33.4, 0.6), (78.6, 0.2)),
    }
)
TABLE3_NORM = _full(
    {"none": (115.1, 1.8), "L2": (29.4, 0.5), "dropout": (184.2, 4.8), "Jacobian": (4.0, 0.0), "all": (5.2, 0.0)}
)
COST = 1.3  # a step with n = 1 over a plain one, LeNet' on one GP100; "about 2" for ResNet-18 on CIFAR-10
