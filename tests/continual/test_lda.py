import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from continual.lda import StreamingLDA

SHRINKAGE = 0.05


def samples(offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """600 samples of 12 features that depend on each other, in 4 unequal classes; one feature never varies."""
    generator = torch.Generator().manual_seed(3)
    y = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 600, True, generator=generator)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    centres = torch.randn(4, 12, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(600, 12, generator=generator, dtype=torch.float64) @ mix + offset
    x[:, 5] = offset
    return x, y


def streamed(x: Tensor, y: Tensor, batch_size: int, labels: int = 4) -> StreamingLDA:
    lda = StreamingLDA(x[0].numel(), labels, SHRINKAGE)
    for images, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
        lda.update(images, targets)
    return lda


@pytest.mark.parametrize("batch_size", [1, 7, 600])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_scores_as_scikit_learn(batch_size: int, offset: float) -> None:
    x, y = samples(offset)
    order = y.argsort(stable=True)  # class after class, as a continual stream comes
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(x.numpy(), y.numpy())
    mine = streamed(x[order], y[order], batch_size).scores(x).log_softmax(1)
    assert torch.allclose(mine, torch.from_numpy(known.predict_log_proba(x.numpy())), rtol=1e-6, atol=1e-6)


def test_label_never_seen_is_never_chosen() -> None:
    x, y = samples()
    scores = streamed(x, y, 100, labels=6).scores(x)
    assert torch.isneginf(scores[:, 4:]).all()
    assert torch.isfinite(scores[:, :4]).all()


def test_state_goes_on_exactly() -> None:
    x, y = samples()
    whole, half = streamed(x, y, 300), streamed(x[:300], y[:300], 300)
    resumed = StreamingLDA(12, 4, SHRINKAGE)
    resumed.load_state(half.state())
    resumed.update(x[300:], y[300:])
    assert torch.equal(resumed.scores(x), whole.scores(x))
    half.update(x[300:], y[300:])
    assert torch.equal(half.scores(x), whole.scores(x))


def test_bytes_are_those_of_the_statistics() -> None:
    assert StreamingLDA(12, 4).nbytes == 8 * (4 + 4 * 12 + 12 * 12)


def test_images_are_flattened_and_float32_is_fine() -> None:
    x, y = samples()
    images = x.float().view(-1, 1, 3, 4)
    assert torch.allclose(streamed(images, y, 50).scores(images), streamed(x, y, 50).scores(x), atol=1e-3)


def test_one_sample_a_class_is_nearest_mean() -> None:
    lda = StreamingLDA(2, 2)
    lda.update(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 1]))
    assert lda.scores(torch.tensor([[1.0, 9.0], [3.0, -9.0]])).argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamingLDA(0, 2), "at least 1, got 0 and 2"),
        (lambda: StreamingLDA(2, 2, 0.0), "above 0 and at most 1, got 0.0"),
        (lambda: StreamingLDA(2, 2).update(torch.zeros(1, 3), torch.zeros(1).long()), "2 features, got 3"),
        (lambda: StreamingLDA(2, 2).update(torch.zeros(1, 2), torch.tensor([2])), "from 0 to 1, got 2 to 2"),
        (lambda: StreamingLDA(2, 2).load_state(StreamingLDA(2, 3).state()), r"shape \(2,\), got \(3,\)"),
    ],
)
def test_what_does_not_fit_is_said(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
