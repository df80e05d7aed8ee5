"""Suites: what runs, what is kept, what is compared, what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.support import write_shards

from opencoca.cli.main import main
from opencoca.errors import ConfigError, DataError
from opencoca.eval import caption_scores, captioned, registry, run
from opencoca.eval.cache import Cache
from opencoca.eval.registry import Options, Place
from opencoca.eval.results import EvaluationResult
from opencoca.eval.retrieval import retrieval
from opencoca.jobs import evaluate as job
from opencoca.jobs.selfcheck import PUBLISHED, selfcheck


@pytest.fixture
def karpathy(tmp_path: Path) -> Path:
    """Karpathy's json with four test pictures of two or three captions, one of which is broken and one missing."""
    folder = tmp_path / "coco"
    images = []
    for i in range(5):
        tiny.save_picture(folder / f"{i}.png", seed=i)
        captions = [f"picture {i} of {colour}" for colour in ("red", "blue", "green")[: 2 + i % 2]]
        split = "train" if i == 4 else "test"
        images.append({"filename": f"{i}.png", "split": split, "sentences": [{"raw": text} for text in captions]})
    (folder / "2.png").write_bytes(b"broken")
    images.append({"filename": "none.png", "split": "test", "sentences": [{"raw": "not there"}]})
    images.append({"filename": "3.png", "split": "test", "sentences": []})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return folder


def measured(folder: Path, cache: Cache, names=("coco/retrieval", "coco/captions"), seed: int = 0, said=None):
    options = Options(beams=1, cache=cache)
    say = (lambda _: None) if said is None else said.append
    data = {"coco": Place(folder)}
    return run.measure(f"m{seed}", tiny.predictor(seed), registry.chosen(None, names), data, options, say)


def test_retrieval_of_several_captions_equals_the_plain_computation(karpathy) -> None:
    predictor = tiny.predictor()
    result = measured(karpathy, Cache()).results["coco/retrieval"]
    assert result.sample_ids == ["0.png", "1.png", "3.png"]
    texts = [f"picture {i} of {c}" for i in (0, 1, 3) for c in ("red", "blue", "green")[: 2 + i % 2]]
    targets = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    images = predictor.embed_images([str(karpathy / f"{i}.png") for i in (0, 1, 3)])
    assert result.figures == pytest.approx(dict(retrieval(images, predictor.embed_texts(texts), targets)))
    assert (result.facts["split"], result.facts["captions"]) == ("test", 8)
    skipped = result.facts["skipped"]
    assert [line.split(":")[0] for line in skipped["first"]] == ["image 6", "2.png", "none.png"]
    assert skipped["count"] == 3


def test_captions_are_the_predictors_and_bad_pictures_keep_their_names(karpathy) -> None:
    result = measured(karpathy, Cache()).results["coco/captions"]
    paths = [str(karpathy / name) for name in result.sample_ids]
    assert [one["caption"] for one in result.facts["examples"]] == tiny.predictor().caption(paths, beams=1)
    assert result.sample_ids == ["0.png", "1.png", "3.png"]
    assert [line.split(":")[0] for line in result.facts["skipped"]["first"]][1:] == ["2.png", "none.png"]
    for metric, values in result.per_sample.items():
        assert float(values.mean()) == pytest.approx(result.figures[metric])


def test_a_rerun_is_kept_and_other_data_is_not(karpathy, tmp_path, monkeypatch) -> None:
    cache, said = Cache(tmp_path / "kept"), []
    first = measured(karpathy, cache)
    monkeypatch.setattr(captioned, "embed_pictures", None)  # what is kept needs it no more
    again = measured(karpathy, cache, said=said)
    assert all("kept from before" in line for line in said)
    assert again.results["coco/retrieval"].figures == first.results["coco/retrieval"].figures
    monkeypatch.undo()
    tiny.save_picture(karpathy / "2.png", seed=2)
    assert len(measured(karpathy, cache).results["coco/retrieval"].sample_ids) == 4
    assert measured(karpathy, cache, seed=1).facts["fingerprint"] != first.facts["fingerprint"]


def test_an_interrupted_run_goes_on(tmp_path) -> None:
    cache, done = Cache(tmp_path), []

    def work(block: range):
        if block.start == 4 and len(done) < 3:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(block.start)
        return {"x": torch.arange(block.start, block.stop).numpy()}

    with pytest.raises(KeyboardInterrupt):
        cache.in_blocks(("k",), 6, work, block=2)
    assert done == [0, 2, "stopped"]
    assert cache.in_blocks(("k",), 6, work, block=2)["x"].tolist() == list(range(6))
    assert done == [0, 2, "stopped", 4]
    for file in tmp_path.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:50])
    cache.in_blocks(("k",), 6, work, block=2)
    assert done[4:] == [0, 2, 4], "damaged blocks are worked out anew"


def test_nocaps_domains_are_scored_by_themselves(tmp_path) -> None:
    domains = ["in-domain", "near-domain", "out-domain", "in-domain"]
    images = [{"id": i, "file_name": f"{i}.png", "domain": domain} for i, domain in enumerate(domains)]
    for image in images:
        tiny.save_picture(tmp_path / image["file_name"], seed=image["id"])
    annotations = [{"image_id": i, "caption": f"a red thing {i}"} for i in range(4)]
    file = tmp_path / "nocaps_val_4500_captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    evaluation = captioned.make_captions("nocaps/captions", {"nocaps": Place(file)}, Options(beams=1))
    result = evaluation(tiny.predictor())
    assert result.facts["domains"] == {"in-domain": 2, "near-domain": 1, "out-domain": 1}
    assert {"cider_d_in", "cider_d_near", "cider_d_out"} <= result.figures.keys()


def test_what_the_reference_package_cannot_measure_is_named(monkeypatch) -> None:
    monkeypatch.setattr(caption_scores.shutil, "which", lambda name: None)
    figures, reasons = caption_scores.reference_package(["a"], [["a"]])
    assert not figures
    assert all("Java isn't installed" in reasons[name] for name in ("meteor", "spice"))


def outcome(name: str, values: dict[str, float], digest: str = "d") -> run.ModelResults:
    rows = torch.tensor(list(values.values()), dtype=torch.float64)
    result = EvaluationResult(
        "x/y", {"acc1": float(rows.mean())}, "acc1", {"acc1": rows}, list(values), {"split_digest": digest}
    )
    return run.ModelResults(name, {"x/y": result})


def test_models_are_paired_by_the_names_of_samples() -> None:
    ours, theirs = outcome("a", {"1": 1, "2": 1, "3": 0}), outcome("b", {"3": 1, "2": 0, "9": 1}, "other")
    (comparison,) = run.report([ours, theirs], "s", {})["comparisons"]
    (row,) = comparison["rows"]
    assert (row["difference"], row["samples"], row["same_split"]) == (0.0, 2, False)
    (comparison,) = run.report([ours, outcome("c", {"8": 1})], "s", {})["comparisons"]
    assert comparison["not_compared"] == {"x/y": "the two have no sample in common"}


def test_a_results_file_is_read_back_and_a_wrong_one_refused(tmp_path) -> None:
    file = tmp_path / "peer.json"
    file.write_text(run.checked_json(run.report([outcome("a", {"1": 1.0, "2": 0.0})], "s", {})))
    (back,) = run.read_results(file)
    assert back.results["x/y"].figures == {"acc1": 0.5}
    for text in ("{}", "[", '{"format": "opencoca-results", "version": 1, "models": [{}]}'):
        file.write_text(text)
        with pytest.raises(DataError, match=r"peer\.json"):
            run.read_results(file)


def test_the_mean_over_variants_needs_all_six() -> None:
    lacking = run.measure("m", tiny.predictor(), registry.chosen("paper"), {}, Options())
    assert "it needs imagenet/zeroshot, imagenet-a/zeroshot" in lacking.not_measured["imagenet variants, mean of six"]
    assert lacking.not_measured["coco/captions"].startswith("not measured: give --data coco=PATH (")


def test_every_factory_can_be_imported() -> None:
    for name, entry in registry.EVALUATIONS.items():
        module, _, function = entry.factory.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function)), name
        assert set(entry.suites) <= set(registry.SUITES)


@pytest.mark.parametrize("words", [["x"], ["coco="], ["coco=nosuch"], ["a=.", "a=."]])
def test_wrong_places_are_refused(words) -> None:
    with pytest.raises(DataError, match="--data"):
        registry.parse_data(words)
    with pytest.raises(ConfigError, match="coco/retrieval"):
        registry.chosen(None, ["coco/retrievl"])


def test_the_selfcheck_says_what_to_give(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path))
    rows = selfcheck({}, Options())
    assert [row.published for row in rows] == [one.value for one in PUBLISHED]
    assert not any(row.good for row in rows)
    assert main(["eval", "--selfcheck"]) == 2
    said = capsys.readouterr().out
    assert "coca models pull hf:laion/CoCa-ViT-B-32-laion2B-s13B-b90k" in said
    assert "--data imagenet=PATH" in said


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch, karpathy) -> Path:
    """A folder with models m0 and m1, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENCOCA_HOME", str(tmp_path / "home"))
    for seed in (0, 1):
        tiny.save_model(tmp_path / f"m{seed}", seed)
    return tmp_path


def test_a_suite_prints_writes_and_compares(place, capsys) -> None:
    words = ["eval", "m0", "--suite", "paper", "--data", "coco=coco", "--beams", "1", "--vs", "m1"]
    assert main([*words, "--report", "out.html", "--json", "out.json"]) == 3, "items were left out"
    out, err = capsys.readouterr()
    assert "against m1, p " in out
    assert "imagenet/zeroshot: not measured: give --data imagenet=PATH" in out
    assert "coco/retrieval  left out: 3; image 6:" in out
    assert "report: out.html" in err
    content = json.loads(Path("out.json").read_text())
    assert [model["model"] for model in content["models"]] == ["m0", "m1"]
    first = content["models"][0]["evaluations"][0]
    assert set(first["intervals"]) == set(first["per_sample"])
    page = Path("out.html").read_text()
    assert "Not measured" in page
    assert 'src="http' not in page
    assert main([*words[:-1], "out.json", "--json"]) == 3
    assert len(json.loads(capsys.readouterr().out)["models"]) == 3


def test_nothing_measured_is_bad_input(place, capsys) -> None:
    assert main(["eval", "m0", "--suite", "robustness"]) == 2
    assert main(["eval", "m0", "--suite", "nosuch"]) == 2
    assert main(["eval", "m0", "--data", "coco=coco"]) == 2
    assert main(["eval", "m0", "--suite", "paper", "--limit", "0", "--data", "coco=coco"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("coca: error: ") for line in lines) == 4


def test_prepared_shards_are_measured_as_before(place, capsys) -> None:
    write_shards(place / "shards")
    assert main(["eval", "--model", "m0", "--data", "shards", "--splits", "val", "--beams", "1"]) == 0
    assert "i2t_recall@1" in capsys.readouterr().out
    assert main(["eval", "m0", "--data", "shards", "--splits", "val", "--beams", "1", "--json"]) == 0
    assert "val/cider_d" in json.loads(capsys.readouterr().out)


def test_the_page_shows_names_as_text(place) -> None:
    odd = run.ModelResults("<script>", outcome("a", {"1": 1.0, "2": 0.0}).results, {"<b>": "not measured: <i>"})
    page = job.page.render(job.as_page(run.report([odd, outcome("b", {"1": 0.0, "2": 0.0})], "s", {}), [odd, odd]))
    assert "<script>" not in page
    assert "<i>" not in page
