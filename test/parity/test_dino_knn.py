"""Our nearest neighbour classifier against DINO's (section 4, `knn`, of the parity kit)."""

import pytest

from v2r_core.evaluate.probe import knn_classify, topk_accuracy

TOLERANCE = 1e-9


@pytest.mark.parametrize("number", range(2))
def test_accuracies(parity_file, number):
    stored = parity_file("dino.npz")
    scores = knn_classify(
        stored["knn/train_features"],
        stored["knn/train_labels"],
        stored["knn/test_features"],
        k=int(stored["knn/ks"][number]),
        temperature=float(stored["knn/T"]),
        num_classes=int(stored["knn/num_classes"]),
    )
    labels = stored["knn/test_labels"]
    assert topk_accuracy(scores, labels, 1) == pytest.approx(stored["knn/expected_top1"][number], abs=TOLERANCE)
    assert topk_accuracy(scores, labels, 5) == pytest.approx(stored["knn/expected_top5"][number], abs=TOLERANCE)
