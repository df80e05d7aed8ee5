"""Probes: what few pictures teach, what the words hold against it, and what is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests import tiny
from tests.checkpoints import full_disk
from tests.support import drawing
from torch.nn import functional as F

from opencoca.errors import CheckpointError, DataError
from opencoca.infer.probe import UNTESTED, Probe

WIDTH, SCALE = 24, 10.0
NAMES = ("ape", "bee", "cow")
WORDS = F.normalize(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5)), dim=1)


def examples(count, spread, seed=0, around=WORDS):
    """`count` embeddings per label, scattered around a centre each."""
    draw = torch.Generator().manual_seed(seed)
    embeds = around[:, None] + spread * torch.randn(len(around), count, WIDTH, generator=draw)
    return F.normalize(embeds.flatten(0, 1), dim=1), [name for name in NAMES[: len(around)] for _ in range(count)]


def accuracy(probe, embeds, labels):
    best = probe.probabilities(embeds).argmax(dim=1).tolist()
    return sum(probe.labels[i] == label for i, label in zip(best, labels, strict=True)) / len(labels)


def nll(probe, embeds, labels):
    rows = [probe.labels.index(label) for label in labels]
    return -probe.probabilities(embeds)[torch.arange(len(rows)), rows].log().mean().item()


def test_a_probe_learns_what_its_examples_say():
    centres = F.normalize(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    probe = Probe.fit(*examples(8, 0.2, around=centres))
    fresh = examples(50, 0.2, seed=1, around=centres)
    assert accuracy(probe, *fresh) > 0.9
    found = probe.probabilities(fresh[0])
    assert found.shape == (150, 3) and found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=1), torch.ones(150))
    assert probe.labels == NAMES and probe.pictures == 24
    assert probe.held_out_nll == pytest.approx(nll(probe, *fresh), abs=0.2)


def test_words_that_fit_help_and_words_that_mislead_are_overruled():
    """Measured accuracies: 0.60 without words, 0.79 with them; 0.95 from 20 examples with all words exchanged."""
    few, fresh = examples(2, 0.35), examples(100, 0.35, seed=1)
    assert accuracy(Probe.fit(*few, prior=WORDS, scale=SCALE), *fresh) > accuracy(Probe.fit(*few), *fresh)
    many, fresh = examples(20, 0.15), examples(100, 0.15, seed=1)
    misled = Probe.fit(*many, prior=WORDS.roll(1, 0), scale=SCALE)
    assert accuracy(misled, *fresh) > 0.9


def test_examples_that_contradict_the_words_at_random_cant_overrule_them():
    """Labels at random: held-out pictures tell to trust the words less, yet they still decide."""
    embeds, labels = examples(6, 0.1)
    labels = [labels[i] for i in torch.randperm(18, generator=torch.Generator().manual_seed(3)).tolist()]
    probe = Probe.fit(embeds, labels, prior=WORDS, scale=SCALE)
    fresh, _ = examples(30, 0.1, seed=3)
    zero_shot = (SCALE * fresh @ WORDS.T).argmax(dim=1)
    assert (probe.probabilities(fresh).argmax(dim=1) == zero_shot).float().mean() > 0.95


def test_the_weights_are_where_the_gradient_vanishes():
    """Loss plus penalty, written out anew. Measured largest component of the gradient 3e-7."""
    embeds, labels = examples(5, 0.3)
    labels[:2] = ["bee", "cow"]
    probe = Probe.fit(embeds, labels, prior=WORDS, scale=SCALE)
    weights = probe.weights.double().requires_grad_()
    targets = torch.tensor([NAMES.index(label) for label in labels])
    losses = F.cross_entropy(embeds.double() @ weights.T, targets, reduction="none")
    mean = torch.stack([losses[targets == label].mean() for label in range(3)]).mean()
    pull = (weights - probe.trust * SCALE * WORDS.double()).square().sum()
    (mean + probe.strength / 2 * pull).backward()
    assert weights.grad is not None and weights.grad.abs().max() < 1e-4


def test_order_and_copies_change_nothing():
    embeds, labels = examples(4, 0.3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2)).tolist()
    once = Probe.fit(embeds, labels, prior=WORDS, scale=SCALE)
    shuffled = Probe.fit(embeds[order], [labels[i] for i in order], prior=WORDS, scale=SCALE)
    assert torch.equal(once.weights, shuffled.weights) and once.strength == shuffled.strength
    twice = Probe.fit(torch.cat([embeds, embeds[:5]]), labels + labels[:5], prior=WORDS, scale=SCALE)
    assert torch.equal(once.weights, twice.weights) and twice.pictures == 12


def test_labels_with_more_pictures_dont_win_by_their_number():
    """60 pictures of one label and 3 of another, alike but for noise: neither is favoured."""
    draw = torch.Generator().manual_seed(0)
    embeds = F.normalize(WORDS[0] + 0.3 * torch.randn(63, WIDTH, generator=draw), dim=1)
    probe = Probe.fit(embeds, ["many"] * 60 + ["few"] * 3)
    fresh, _ = examples(200, 0.3, seed=4, around=WORDS[:1])
    assert 0.3 < probe.probabilities(fresh)[:, 0].mean() < 0.7


def test_one_picture_per_label_is_enough():
    embeds, labels = examples(1, 0.1)
    probe = Probe.fit(embeds, labels, prior=WORDS, scale=SCALE)
    assert (probe.strength, probe.trust) == UNTESTED and probe.held_out_nll != probe.held_out_nll
    assert accuracy(probe, embeds, labels) == 1
    embeds, labels = examples(3, 0.1)
    mixed = Probe.fit(embeds[:-2], labels[:-2])  # the last label has one picture, the others three
    assert mixed.pictures == 7 and mixed.held_out_nll == mixed.held_out_nll


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["ape"] * 6, r"two labels or more .* got \['ape'\]"),
        (["ape", "bee"], "2 labels for embeddings"),
        (["ape"] * 5 + [" "], "aren't empty"),
        (["ape"] * 5 + [None], "must be strings"),
    ],
)
def test_bad_labels_are_refused(labels, words):
    with pytest.raises(DataError, match=words):
        Probe.fit(examples(2, 0.1)[0], labels)


def test_bad_embeddings_are_refused():
    embeds, labels = examples(2, 0.1)
    embeds[3, 0] = float("nan")
    with pytest.raises(DataError, match=r"rows \[3\] are not finite"):
        Probe.fit(embeds, labels)
    embeds, labels = examples(2, 0.1)
    with pytest.raises(DataError, match="one picture is an example of both 'ape' and 'cow'"):
        Probe.fit(torch.cat([embeds, embeds[:1]]), [*labels, "cow"])
    with pytest.raises(DataError, match=r"prior is \[2, 24\]; give \[3, 24\]"):
        Probe.fit(embeds, labels, prior=WORDS[:2])
    probe = Probe.fit(embeds, labels)
    with pytest.raises(DataError, match=r"embeddings are \[2, 3\] and the probe reads \[I, 24\]"):
        probe.probabilities(torch.zeros(2, 3))
    assert probe.probabilities(torch.zeros(0, WIDTH)).shape == (0, 3)


def test_a_probe_comes_back_from_its_file_and_only_for_its_model(tmp_path):
    probe = Probe.fit(*examples(3, 0.2), prior=WORDS, scale=SCALE, model="a" * 64)
    probe.save(tmp_path / "my.probe")
    again = Probe.load(tmp_path / "my.probe", "a" * 64)
    assert torch.equal(again.weights, probe.weights) and again.labels == NAMES
    assert (again.strength, again.trust, again.pictures) == (probe.strength, probe.trust, 9)
    assert [path.name for path in tmp_path.iterdir()] == ["my.probe"]
    with pytest.raises(CheckpointError, match=r"another model \(aaaaaaaaaaaa, not bbbbbbbbbbbb\).*fit the probe again"):
        Probe.load(tmp_path / "my.probe", "b" * 64)
    with pytest.raises(CheckpointError, match="does not exist"):
        Probe.load(tmp_path / "none", "a" * 64)
    with pytest.raises(CheckpointError, match=r"can't write .*my.probe \(No such file.*\); choose another folder$"):
        probe.save(tmp_path / "no folder" / "my.probe")
    with full_disk(), pytest.raises(CheckpointError, match=r"\(No space left on device\); free some space or choose"):
        probe.save(tmp_path / "my.probe")
    assert torch.equal(Probe.load(tmp_path / "my.probe", "a" * 64).weights, probe.weights)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "labels", "nan"])
def test_a_damaged_probe_is_refused(tmp_path, damage):
    file = tmp_path / "my.probe"
    Probe.fit(*examples(3, 0.2), model="a").save(file)
    with safe_open(file, framework="pt") as opened:
        metadata, weights = opened.metadata(), opened.get_tensor("weights")
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "foreign":
        save_file({"weights": weights}, file)
    elif damage == "labels":
        facts = json.loads(metadata["facts"]) | {"labels": ["ape"]}
        save_file({"weights": weights}, file, metadata | {"facts": json.dumps(facts)})
    else:
        save_file({"weights": weights * float("nan")}, file, metadata)
    with pytest.raises(CheckpointError, match="holds no probe") as caught:
        Probe.load(file, "a")
    assert "\n" not in str(caught.value)


def test_a_predictor_fits_a_probe_on_pictures(tmp_path):
    predictor = tiny.predictor(seed=2)
    pictures = [drawing(colour, shape) for colour in ("red", "blue") for shape in ("square", "circle", "bar")]
    labels = ["red"] * 3 + ["blue"] * 3
    probe = predictor.fit_probe(pictures, labels)
    assert probe.model == predictor.fingerprint() and probe.labels == ("blue", "red")
    assert accuracy(probe, predictor.embed_images(pictures), labels) == 1
    first = predictor.fit_probe(pictures[::3], labels[::3])
    without = predictor.fit_probe(pictures[::3], labels[::3], templates=None)
    assert (first.trust, without.trust) == (UNTESTED[1], 0.0) and not torch.allclose(first.weights, without.weights)
    probe.save(tmp_path / "p")
    with pytest.raises(CheckpointError, match="another model"):
        Probe.load(tmp_path / "p", tiny.predictor(seed=3).fingerprint())
    with pytest.raises(DataError, match="5 labels for embeddings"):
        predictor.fit_probe(pictures, labels[:5])
