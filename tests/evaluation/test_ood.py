"""OOD scores compared with scikit-learn and with cases by hand, the synthetic OOD sets, and models/cnn on these."""

import os

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from sklearn.neighbors import NearestNeighbors

from classifier.data.splits import load_splits
from classifier.errors import DataError
from classifier.evaluation import ood, ood_scores
from classifier.models import backbone, logit_scores, processor
from classifier.models.predictor import load_predictor
from tests.helpers.paths import ROOT

HUB_MIRROR = os.environ.get("HUB_MIRROR")
FAR = ("gaussian_noise", "uniform_noise", "blobs", "digits", "sample_photographs")
NEAR = ("phase_scrambled", "patches_shuffled", "blended")


@pytest.fixture(scope="module")
def images():
    """Smooth colourful images, uint8 (40, 3, 24, 32)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(256, size=(40, 6, 8, 3), dtype=np.uint8)
    return ood.enlarge(coarse, (24, 32))


@pytest.fixture(scope="module")
def made(images):
    return ood.synthetic_sets(images)


def test_logit_scores_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]) + np.array([[0], [3]])
    assert logit_scores.max_probability(logits) == pytest.approx([0.5, 0.8])
    assert logit_scores.energy(logits) == pytest.approx([0, 3])  # log Σ exp, where the probability forgets the 3
    assert np.isfinite(logit_scores.energy(np.float32([[1e4, -1e4]]))).all()


def test_a_threshold_keeps_its_fraction():
    scores = logit_scores.max_probability(np.random.default_rng(0).normal(0, 2, (1000, 10)))
    assert (scores >= ood.threshold(scores, keep=0.9)).mean() == 0.9


def test_the_best_score_by_hand():
    """The energies of 10 and 20 lie around those of others; the probabilities are above theirs in both cases."""
    known, even, high = np.array([[10.0, 0], [20, 0]]), np.full((2, 2), 15.0), np.full((2, 2), 30.0)
    assert ood.best_score(known, [even]) == "gen"
    assert ood.best_score(known, [even, high]) == "gen"  # 0.25 by the energy, 1 by the others
    assert ood.best_score(known, [-high]) == "energy"  # all scores are perfect
    probable, close = np.array([[4.0, 0], [5.0, 0]]), np.array([[4.0, 3], [4.9, 0]])
    assert ood.best_score(probable, [close]) == "gen"  # 0.75 by the probabilities, 0.5 by the energy


def test_without_images_of_other_things_they_are_made(images):
    """A model with high but equal logits for all that is made: by the energy it looks more known than its images."""
    known, seen = np.tile([10.0, 0], (len(images), 1)), []

    def logits_of(made):
        seen.append(made)
        return np.full((len(made), 2), 15.0)

    assert ood.best_score_on_synthetic(known, images, logits_of) == "gen"
    assert len(seen) == 8 and all(made.shape == images.shape for made in seen)
    assert ood.best_score_on_synthetic(known, images[:1], logits_of) == "energy" and len(seen) == 8


def test_neighbours_rank_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    train, other = rng.normal(1, 1, (300, 16)), rng.normal(0, 1, (50, 16))
    scores = ood_scores.fit_neighbours(train, most=300, k=7).scores(other)
    unit, other_unit = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, other))
    distances = NearestNeighbors(n_neighbors=7).fit(unit).kneighbors(other_unit)[0][:, -1]
    assert scores == pytest.approx(1 - distances**2 / 2, abs=1e-3)  # float16 is kept
    assert (np.abs(scores) <= 1 + 1e-3).all()


def test_neighbours_see_angles_only():
    features = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    fitted = ood_scores.fit_neighbours(features, k=1)
    assert fitted.scores(5 * features) == pytest.approx(fitted.scores(features), abs=1e-6)
    assert fitted.scores(features) == pytest.approx(1, abs=1e-3)  # each is its own neighbour
    assert fitted.scores(np.zeros((1, 8), np.float32)) == 0


def test_neighbours_are_few_and_the_same_on_every_run():
    features = np.random.default_rng(0).normal(size=(5000, 32)).astype(np.float32)
    fitted, again = ood_scores.fit_neighbours(features), ood_scores.fit_neighbours(features)
    assert fitted.features.tobytes() == again.features.tobytes()
    assert fitted.features.shape == (1000, 32) and fitted.features.nbytes == 64_000
    with pytest.raises(DataError, match="4 training images have no 5 nearest neighbours"):
        ood_scores.fit_neighbours(features[:4])


def test_generalized_entropy_by_hand():
    logits = np.log([[0.5, 0.25, 0.25], [0.98, 0.01, 0.01]])
    by_hand = [-(0.25**0.1 + 2 * 0.1875**0.1), -(0.0196**0.1 + 2 * 0.0099**0.1)]
    assert logit_scores.generalized_entropy(logits) == pytest.approx(by_hand)
    assert logit_scores.generalized_entropy(logits, most=1) == pytest.approx([-(0.25**0.1), -(0.0196**0.1)])


def corners() -> ood_scores.Training:
    """Two classes on the axes of a plane that lies in three dimensions: the third one is never used."""
    features = np.array([[3.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 3, 0]])
    weight, bias = np.eye(2, 3), np.zeros(2)
    return ood_scores.Training(features, features @ weight.T + bias, np.array([0, 0, 1, 1]), weight, bias)


def test_distance_to_decision_boundaries_by_hand():
    """The boundary is the line x = y, sqrt(1/2) away from (2, 1); the mean feature is (1, 1, 0)."""
    score = ood_scores.fit_decision_boundaries(corners())
    features = np.array([[2.0, 1, 0], [2, 1, 1]])
    found = score(features, features[:, :2])
    assert found == pytest.approx([0.5**0.5 / 1, 0.5**0.5 / 2**0.5])


def test_guidance_by_hand():
    """One training image beside: the energy of the image times the cosine times the energy of that image."""
    training = corners()
    score = ood_scores.fit_guidance(training, k=1)
    features = np.array([[1.0, 1, 0]])
    energy, of_best = np.log(2 * np.e), np.log(np.exp(3) + 1)
    assert score(features, features[:, :2]) == pytest.approx([energy * of_best * 0.5**0.5], rel=1e-6)


def test_virtual_logit_by_hand():
    """Eight training features along the axes of four dimensions, of which the last two are outside of their space.

    Outside they have a length of 0.1 in four of eight cases, and the highest logits are 3, 2 and six times 0. So the
    scale is (5 / 8) / (0.4 / 8) = 12.5.
    """
    axes = np.diag([3, 2, 0.1, 0.1])
    features = np.concatenate([axes, -axes])
    weight = np.eye(2, 4)
    training = ood_scores.Training(features, features @ weight.T, np.zeros(8, int), weight, np.zeros(2))
    others = np.array([[2.0, 1, 0, 0], [2, 1, 0.3, 0.4]])
    inside, outside = ood_scores.fit_virtual_logit(training)(others, others[:, :2])
    assert inside == pytest.approx(np.log(np.exp(2) + np.exp(1)), abs=1e-9)
    assert outside == pytest.approx(inside - 12.5 * 0.5, abs=1e-9)


def test_mahalanobis_by_hand():
    """Features of two classes that vary by 4 along one axis and by 1 along the other."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50_000)
    features = rng.normal(size=(100_000, 2)) * [2, 1] + np.array([[0, 0], [0, 10]])[labels]
    gaussians = ood_scores.fit_gaussians(features, labels)
    others = np.array([[4.0, 0], [0, 12]])
    assert gaussians.scores(others) == pytest.approx([-4, -4], rel=0.05)
    overall = [16 / 4 + 25 / 26, 49 / 26]  # the variance of all images along the second axis is 1 + 25
    assert gaussians.relative_scores(others) == pytest.approx(np.array([-4, -4]) + overall, rel=0.05)


def test_gaussians_of_few_images_and_of_a_class_without_any():
    features = np.random.default_rng(0).normal(size=(7, 30))
    gaussians = ood_scores.fit_gaussians(features, np.array([0, 0, 0, 2, 2, 2, 2]))
    assert gaussians.means.shape == (2, 30)
    assert np.isfinite(gaussians.scores(features)).all() and (gaussians.scores(features) <= 0).all()


def test_every_score_is_higher_for_the_known():
    """A blob a class, and features far from all of them in a direction without training images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=600)
    features = rng.normal(size=(600, 8)) * [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1] + 6 * np.eye(3, 8)[labels]
    weight = np.eye(3, 8)
    known, training = features[500:], features[:500]
    strange = rng.normal(size=(100, 8)) * 0.5 + 3 * np.eye(8)[7]
    fitted = ood_scores.fit(ood_scores.Training(training, training @ weight.T, labels[:500], weight, np.zeros(3)))
    assert len(fitted) == 9 and len(ood_scores.fit(None)) == 3
    for name, score in fitted.items():
        of_known, of_strange = (score(x, x @ weight.T) for x in (known, strange))
        assert of_known.shape == (100,) and ood.auroc(of_known, of_strange) > 0.9, name


def test_auroc_and_fpr_by_hand():
    known, strange = np.array([1.0, 2, 3, 4]), np.array([0.0, 2, 2.5])
    # of the 12 pairs the known one is above in 4, 3, 2 - and once they tie
    assert ood.auroc(known, strange) == pytest.approx((4 + 2 + 0.5 + 2) / 12)
    assert ood.threshold(known, keep=0.75) == 2 and ood.fpr_at(known, strange, keep=0.75) == 2 / 3
    assert ood.threshold(known, keep=0.95) == 1  # the least that keeps so many
    assert ood.auroc(known, known - 9) == 1 and ood.fpr_at(known, known - 9) == 0
    assert ood.auroc(known, known) == 0.5 and ood.auroc(known - 9, known) == 0


def test_fpr_is_on_scikit_learns_curve():
    rng = np.random.default_rng(0)
    known, strange = rng.normal(1, 1, 997), rng.normal(0, 1, 300)
    is_known = np.arange(1297) < 997
    false, true, _ = roc_curve(is_known, np.concatenate([known, strange]), drop_intermediate=False)
    for keep in (0.5, 0.9, 0.95, 1.0):
        assert ood.fpr_at(known, strange, keep) == false[np.argmax(true >= keep)]
        assert (known >= ood.threshold(known, keep)).mean() >= keep


def test_scores_may_be_stretched():
    """Both measures depend on the order of the scores alone, and not on that of the images."""
    rng = np.random.default_rng(0)
    known, strange = rng.normal(1, 1, 200), rng.normal(0, 1, 300)
    for measured in (ood.auroc, ood.fpr_at):
        assert measured(np.exp(known), np.exp(strange)) == measured(known, strange)
        assert measured(rng.permutation(known), rng.permutation(strange)) == measured(known, strange)


def test_sets_are_images(images, made):
    assert tuple(made) == (*FAR, *NEAR)
    for name, strange in made.items():
        assert strange.shape == images.shape and strange.dtype == np.uint8, name
        assert strange.std() > 20, name  # not blank
        assert len(np.unique(strange.reshape(len(strange), -1), axis=0)) > 0.8 * len(strange), name


def test_sets_are_the_same_on_every_run(images, made):
    again, other = ood.synthetic_sets(images), ood.synthetic_sets(images, seed=1)
    for name, strange in made.items():
        assert strange.tobytes() == again[name].tobytes(), name
        assert strange.tobytes() != other[name].tobytes(), name


def test_noise_has_the_statistics_that_it_should(images, made):
    uniform = made["uniform_noise"]
    assert uniform.min() == 0 and uniform.max() == 255 and uniform.mean() == pytest.approx(127.5, abs=1)
    normal = made["gaussian_noise"].mean(axis=(0, 2, 3))
    assert normal == pytest.approx(images.mean(axis=(0, 2, 3)), abs=2)


def test_shuffled_patches_keep_every_pixel(images, made):
    ours, theirs = (
        x.reshape(40, 3, 4, 6, 4, 8).transpose(0, 2, 4, 1, 3, 5).reshape(40, 16, -1) for x in (images, made[NEAR[1]])
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert sorted(map(bytes, mine)) == sorted(map(bytes, other))
    odd = ood.patches_shuffled(images[:, :, :23, :31], np.random.default_rng(0))
    assert (odd[:, :, 20:] == images[:, :, 20:23, :31]).all() and (odd[:, :, :, 28:] == images[:, :, :23, 28:31]).all()


@pytest.mark.parametrize("size", [(24, 32), (23, 31), (23, 32)])
def test_scrambled_phases_keep_the_spectrum(size):
    """Grey enough that nothing is clipped: amplitudes stay, to rounding, and so does the mean."""
    smooth = np.random.default_rng(0).integers(118, 138, size=(5, 3, *size), dtype=np.uint8)
    scrambled = ood.phase_scrambled(smooth, np.random.default_rng(0))
    before, after = (np.abs(np.fft.fft2(x.astype(float))) for x in (smooth, scrambled))
    assert np.abs(before - after).max() < 5 * 0.3 * (size[0] * size[1]) ** 0.5  # 0.3: the deviation of rounding
    assert scrambled.mean(axis=(2, 3)) == pytest.approx(smooth.mean(axis=(2, 3)), abs=0.1)
    assert np.abs(smooth.astype(float) - scrambled).mean() > 3


def test_blended_are_means_of_two(images, made):
    pairs = (images[:, None].astype(np.float32) + images[None]) / 2  # (40, 40, 3, 24, 32)
    for blended in made["blended"]:
        i, j = np.unravel_index(np.abs(pairs - blended).max(axis=(2, 3, 4)).argmin(), (40, 40))
        assert i != j and np.abs(pairs[i, j] - blended).max() <= 0.5


@pytest.mark.skipif(not HUB_MIRROR, reason="HUB_MIRROR is not set: no true data")
def test_scratch_cnn_tells_strangers():
    """Held-out images of CIFAR-10 against the sets; 50 each, so bounds are far below what 500 gave."""
    predictor = load_predictor(ROOT / "models/cnn")
    splits = load_splits(f"{HUB_MIRROR}/datasets/uoft-cs/cifar10", validation=0.02)  # as models/cnn was trained

    def seen(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        views = []
        hook = backbone.head(predictor.model).register_forward_pre_hook(lambda module, args: views.append(args[0]))
        with torch.inference_mode():
            logits = predictor.model(processor.process_batch(predictor.processor, torch.tensor(images))).logits
        hook.remove()
        return torch.stack(views).mean(dim=0).numpy(), logits.numpy()

    def pixels(split: str) -> np.ndarray:
        rows = splits[split].select(range(50))
        return np.stack([np.asarray(image) for image in rows["img"]]).transpose(0, 3, 1, 2)

    known = pixels("validation")
    features, logits = seen(known)
    neighbours = ood_scores.fit_neighbours(seen(pixels("train"))[0], k=1)
    for name, images in ood.synthetic_sets(known).items():
        strange_features, strange_logits = seen(images)
        least = 0.9 if name in ("gaussian_noise", "uniform_noise", "blobs") else 0.6
        assert ood.auroc(logit_scores.energy(logits), logit_scores.energy(strange_logits)) > least, name
        assert ood.auroc(logit_scores.max_probability(logits), logit_scores.max_probability(strange_logits)) > least, (
            name
        )
        assert ood.auroc(neighbours.scores(features), neighbours.scores(strange_features)) > least, name
