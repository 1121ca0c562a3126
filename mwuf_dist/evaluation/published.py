"""The figures that MWUF was published with, as data: the AUC table of research question 1.

Source: Y. Zhu, R. Xie, F. Zhuang, K. Ge, Y. Sun, X. Zhang, L. Lin, J. Cao, "Learning to Warm Up Cold Item Embeddings
for Cold-start Recommendation with Meta Scaling and Shifting Networks", SIGIR 2021 (arXiv:2105.04790), overall results.
They follow the next-set scoring: cold on warm_a, warm-a on warm_b, warm-b on warm_c, warm-c on test. RelaImpr is not
repeated here because it follows from the AUCs (one published figure does not: Taobao, MWUF(AFN), warm-c says 45.3 %
where its AUC gives 52.2 %).
"""

from __future__ import annotations

CITATION = "Zhu et al., SIGIR 2021, overall results (next-set scoring)"

# data set -> the paper's row -> AUC in the phases cold, warm-a, warm-b, warm-c
AUC: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "movielens-1m": {
        "FM": (0.5250, 0.5296, 0.5406, 0.5525),
        "Wide & Deep": (0.5968, 0.5987, 0.6247, 0.6523),
        "PNN": (0.5920, 0.5949, 0.6240, 0.6493),
        "DCN": (0.6027, 0.6046, 0.6312, 0.6612),
        "AFN": (0.5862, 0.5966, 0.6541, 0.7029),
        "DropoutNet": (0.6432, 0.6499, 0.6565, 0.6628),
        "MeLU": (0.6434, 0.6400, 0.6643, 0.6760),
        "MetaEmb": (0.6369, 0.6349, 0.6686, 0.6983),
        "GRU4Rec": (0.6032, 0.6784, 0.6799, 0.6872),
        "DIN": (0.6077, 0.6632, 0.6747, 0.6895),
        "MWUF(Wide & Deep)": (0.6339, 0.6569, 0.6999, 0.7273),
        "MWUF(GRU4Rec)": (0.6298, 0.6962, 0.7033, 0.7160),
        "MWUF(AFN)": (0.6370, 0.6913, 0.7261, 0.7447),
    },
    "taobao-ad": {
        "FM": (0.5020, 0.5064, 0.5096, 0.5126),
        "Wide & Deep": (0.5233, 0.5326, 0.5474, 0.5634),
        "PNN": (0.5156, 0.5264, 0.5401, 0.5515),
        "DCN": (0.5206, 0.5296, 0.5446, 0.5574),
        "AFN": (0.5241, 0.5465, 0.5703, 0.5810),
        "DropoutNet": (0.5214, 0.5318, 0.5515, 0.5655),
        "MeLU": (0.5226, 0.5223, 0.5256, 0.5360),
        "MetaEmb": (0.5250, 0.5345, 0.5506, 0.5633),
        "GRU4Rec": (0.5211, 0.5271, 0.5394, 0.5494),
        "DIN": (0.5197, 0.5281, 0.5448, 0.5580),
        "MWUF(Wide & Deep)": (0.5255, 0.5718, 0.5890, 0.5919),
        "MWUF(GRU4Rec)": (0.5208, 0.5626, 0.5842, 0.5867),
        "MWUF(AFN)": (0.5302, 0.5872, 0.5958, 0.5965),
    },
    "cikm2019": {
        "FM": (0.5386, 0.5420, 0.5510, 0.5598),
        "Wide & Deep": (0.6479, 0.6657, 0.6730, 0.7010),
        "PNN": (0.6512, 0.6665, 0.6723, 0.7022),
        "DCN": (0.6596, 0.6710, 0.6771, 0.7008),
        "AFN": (0.6693, 0.6909, 0.7038, 0.7363),
        "DropoutNet": (0.6555, 0.6719, 0.6854, 0.6980),
        "MeLU": (0.6595, 0.6697, 0.6762, 0.7032),
        "MetaEmb": (0.6642, 0.6746, 0.6795, 0.7095),
        "GRU4Rec": (0.6378, 0.7266, 0.7337, 0.7635),
        "DIN": (0.6428, 0.7168, 0.7250, 0.7545),
        "MWUF(Wide & Deep)": (0.6637, 0.6855, 0.7097, 0.7236),
        "MWUF(GRU4Rec)": (0.6540, 0.7381, 0.7404, 0.7672),
        "MWUF(AFN)": (0.6741, 0.7126, 0.7320, 0.7556),
    },
}

# (backbone, method) -> the paper's row. The three cold-start methods stand on Wide & Deep there.
ROWS: dict[tuple[str, str], str] = {
    ("fm", "base"): "FM",
    ("wide_deep", "base"): "Wide & Deep",
    ("pnn", "base"): "PNN",
    ("dcn", "base"): "DCN",
    ("afn", "base"): "AFN",
    ("gru4rec", "base"): "GRU4Rec",
    ("din", "base"): "DIN",
    ("wide_deep", "dropoutnet"): "DropoutNet",
    ("wide_deep", "melu"): "MeLU",
    ("wide_deep", "metaemb"): "MetaEmb",
    ("wide_deep", "mwuf"): "MWUF(Wide & Deep)",
    ("gru4rec", "mwuf"): "MWUF(GRU4Rec)",
    ("afn", "mwuf"): "MWUF(AFN)",
}


def published_auc(dataset: str, backbone: str, method: str) -> tuple[float, float, float, float] | None:
    """Returns the paper's AUC in the four phases, or None when it has no such row."""
    row = ROWS.get((backbone, method))
    return None if row is None else AUC.get(dataset, {}).get(row)
