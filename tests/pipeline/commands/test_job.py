"""All commands in this process on local folders: what they write, and what a second call does."""

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from medfocus.pipeline.commands import embed, evaluate, pack, score, train
from medfocus.pipeline.config import load_config
from medfocus.pipeline.data import records
from medfocus.pipeline.data.manifest import read_manifest
from medfocus.pipeline.data.storage import locate
from medfocus.pipeline.errors import MedFocusError, TooManyQuarantined, UsageError
from medfocus.pipeline.identity.pseudonyms import Pseudonyms, pseudonym_of
from medfocus.pipeline.models.registry import resolve_model
from medfocus.pipeline.training.features import read_labels
from medfocus.pipeline.training.hold_out import hold_out
from medfocus.stages.classify import Classify
from medfocus.stages.decode import Decode
from medfocus.stages.embed import Embed
from medfocus.stages.masks import decode_mask
from medfocus.stages.prompted_clip import PromptedCLIP
from medfocus.stages.segment import Segment
from tests.shards import add_shard, write_shards

COUNT, BAD = 48, 3


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> SimpleNamespace:
    """Phantoms and a shard of three unreadable images, after pack, embed, train, score and evaluate."""
    root = tmp_path_factory.mktemp("job")
    command = [sys.executable, "-m", "medfocus.starter.phantoms", str(root), "--count", str(COUNT)]
    subprocess.run(command, check=True)
    settings = ["pack.rows_per_shard=20", "segment.points_per_side=2", "train.epochs=3", "evaluate.resamples=50"]
    settings += ["clip.views=2", "deid.names=keep"]
    config = load_config(None, [f"work={root / 'work'}", "score.max_quarantined=0.2", *settings])
    paths = SimpleNamespace(**{name: str(root / name) for name in ("shards", "features", "out")})
    packed = pack.run(config, str(root / "images"), paths.shards, str(root / "labels.csv"))
    whole = (root / "images" / "000000.png").read_bytes()
    bad = {"zero.png": b"\0", "cut.png": whole[:500], "text.jpg": b"this is no image"}
    add_shard(bad, root / "shards", {"zero.png": "ring lesion"})
    embedded = embed.run(config, paths.shards, paths.features)
    trained = train.run(config, paths.features, "phantoms")
    scored = score.run(config, paths.shards, paths.out, trained["model_uri"])
    evaluated = evaluate.run(config, paths.out, paths.shards)
    runs = mlflow.search_runs(experiment_names=["medfocus"], output_format="list")
    return SimpleNamespace(**locals())


def test_pack_writes_shards_of_bounded_size_with_all_images(job: SimpleNamespace) -> None:
    assert job.packed["rows"] == job.packed["packed"] == job.packed["labelled"] == COUNT
    prefix = locate(job.paths.shards, job.config.storage)
    assert [shard.rows for shard in read_manifest(prefix, version=1).shards] == [16, 16, 16]
    rows = [row for row in rows_of(Path(job.paths.shards)) if row["source_uri"] != f"file:{row['image_id']}"]
    assert {row["image_id"] for row in rows} == {path.name for path in (job.root / "images").iterdir()}
    for row in rows:
        file = job.root / "images" / row["image_id"]
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(io.BytesIO(row["image"]))))
        assert Path(row["source_uri"]).name == row["image_id"]
    first = next(row for row in rows if row["image_id"] == "000000.png")
    pseudonyms = Pseudonyms((job.root / "work" / "pseudonym.key").read_bytes().strip())
    assert first["label"] == "solid mass" and first["patient_id"] == pseudonym_of(pseudonyms, "patient", "P00000")
    assert first["media_type"] == "image/png" and len({row["patient_id"] for row in rows}) == COUNT // 4


def test_every_image_is_once_in_predictions_or_quarantine(job: SimpleNamespace) -> None:
    predictions, quarantine = (rows_of(job.root / "out" / name) for name in ("predictions", "quarantine"))
    ids = [row["image_id"] for row in predictions + quarantine]
    images = [path.name for path in (job.root / "images").iterdir()]
    assert sorted(ids) == sorted([*images, "zero.png", "cut.png", "text.jpg"])
    assert {row["image_id"]: row["error"] for row in quarantine} == {
        "zero.png": "Undecodable",
        "cut.png": "Truncated",
        "text.jpg": "Undecodable",
    }
    assert job.scored["scored"] == COUNT and job.scored["quarantined"] == BAD and job.scored["resumed"] == 0


def test_predictions_equal_the_stages_run_bare(
    job: SimpleNamespace, starter_sam2, starter_clip, starter_tokenizer
) -> None:
    """The stages process the same images in this process, without Ray, shards or storage."""
    model, _ = resolve_model(job.trained["model_uri"], job.config)
    predicted = {row["image_id"]: row for row in rows_of(job.root / "out" / "predictions")}
    names = ["000003.png", "000017.png", "000040.png"]
    batch = {
        "image_id": np.array(names, object),
        "image": np.array([(job.root / "images" / name).read_bytes() for name in names], object),
        "media_type": np.full(3, "image/png", object),
    }
    prompted = PromptedCLIP(starter_clip, starter_tokenizer, model.settings)
    prompted.load_learned(model.state)
    for stage in (
        Decode(size=starter_sam2.image_size, max_pixels=10**8),
        Segment(starter_sam2, job.config.segment.settings),
        Embed(prompted.tower, region=True, batch_size=3),
        Classify(prompted, **vars(model.calibration), batch_size=3),
    ):
        batch = stage(batch)
    for row, name in enumerate(names):
        prediction = predicted[name]
        assert np.allclose(prediction["probabilities"], batch["probabilities"][row], atol=2e-3)
        height, width = prediction["mask"]["size"]
        expected = decode_mask(batch["mask_counts"][row], height, width)
        mask = decode_mask(prediction["mask"]["counts"], height, width)
        assert (mask & expected).sum() / max((mask | expected).sum(), 1) > 0.98
        assert prediction["label"] == model.settings.classes[int(np.argmax(prediction["probabilities"]))]
        assert prediction["confidence"] == pytest.approx(max(prediction["probabilities"]))
        assert prediction["model_version"] == "phantoms/1"


def test_features_have_the_labelled_images_and_no_others(job: SimpleNamespace) -> None:
    files = sorted((job.root / "features" / "features").glob("*.parquet"))
    rows = [
        row
        for file in files
        for row in pq.read_table(file, columns=["image_id", "label", "mask", "model_key"]).to_pylist()
    ]
    masks = {row["image_id"]: row["mask"] for row in rows_of(job.root / "out" / "predictions")}
    assert {row["image_id"]: row["mask"] for row in rows} == masks
    assert {row["image_id"] for row in rows} == {f"{index:06d}.png" for index in range(COUNT)} and len(rows) == COUNT
    assert {row["model_key"] for row in rows} == {job.embedded["model_key"]}
    schema = pq.read_schema(files[0])
    records.check_record(schema, records.feature_schema(197, 192, region=True, augmented=1), "features")
    assert [row["image_id"] for row in rows_of(job.root / "features" / "quarantine")] == ["zero.png"]


def test_training_registers_a_small_model_of_tensors(job: SimpleNamespace) -> None:
    model, version = resolve_model(job.trained["model_uri"], job.config)
    labels = {row["label"] for row in rows_of(Path(job.paths.shards)) if row["label"]}
    assert version == "phantoms/1" and model.settings.classes == tuple(sorted(labels))
    assert sum(value.numel() for value in model.state.values()) == job.trained["learned_parameters"] < 20_000
    assert model.calibration.temperature == job.trained["temperature"] > 0
    assert job.trained["held_out_rows"] == job.trained["training_rows"] == COUNT
    assert all(torch.isfinite(value).all() for value in model.state.values())
    client = mlflow.MlflowClient()
    files = {file.path: file.file_size for file in client.list_artifacts(job.trained["mlflow_run_id"], "model")}
    assert set(files) == {"model/prompts.safetensors", "model/prompts.json"} and sum(files.values()) < 4 << 20
    history = client.get_metric_history(job.trained["mlflow_run_id"], "validation_loss")
    assert [entry.step for entry in history if entry.step > 0][:2] == [1, 2]
    assert not list((job.root / "features" / "training").glob("*"))


def test_every_command_is_one_run_of_the_experiment(job: SimpleNamespace) -> None:
    results = {"pack": job.packed, "embed": job.embedded, "train": job.trained}
    results |= {"score": job.scored, "evaluate": job.evaluated}
    assert sorted(run.data.tags["medfocus.command"] for run in job.runs) == sorted(results)
    by_command = {run.data.tags["medfocus.command"]: run for run in job.runs}
    for name, result in results.items():
        run = by_command[name]
        assert run.info.run_id == result["mlflow_run_id"] and run.info.status == "FINISHED"
        assert run.data.params["segment.points_per_side"] == "2"
        assert run.inputs.dataset_inputs[0].dataset.digest
    assert by_command["score"].data.metrics["quarantined"] == BAD
    artifacts = {file.path for file in mlflow.MlflowClient().list_artifacts(job.evaluated["mlflow_run_id"])}
    assert artifacts == {"confusion_matrix.png", "reliability_diagram.png", "metrics.json"}


def test_no_run_names_a_patient_or_an_image(job: SimpleNamespace) -> None:
    runs = mlflow.search_runs(experiment_names=["medfocus"], output_format="list")
    text = json.dumps([run.to_dictionary() for run in runs], default=str)
    assert "P00000" not in text and "000000.png" not in text


def test_evaluate_compares_the_labelled_predictions(job: SimpleNamespace) -> None:
    assert job.evaluated["rows"] == COUNT and job.evaluated["unlabelled"] == 0 and job.evaluated["quarantined"] == BAD
    predicted = {row["image_id"]: row["label"] for row in rows_of(job.root / "out" / "predictions")}
    truth = {row["image_id"]: row["label"] for row in rows_of(Path(job.paths.shards)) if row["label"]}
    accuracy = np.mean([predicted[name] == truth[name] for name in predicted])
    assert job.evaluated["accuracy"] == pytest.approx(accuracy)
    assert set(job.evaluated["sites"]) == {row["site"] for row in rows_of(job.root / "out" / "predictions")}
    from_csv = evaluate.run(job.config, job.paths.out, str(job.root / "labels.csv"))
    assert from_csv["metrics"] == job.evaluated["metrics"]


def test_a_second_score_changes_no_file(job: SimpleNamespace) -> None:
    files = sorted((job.root / "out").rglob("*.parquet"))
    before = [(file, file.stat().st_mtime_ns) for file in files]
    again = score.run(job.config, job.paths.shards, job.paths.out, job.trained["model_uri"])
    assert again["resumed"] == COUNT + BAD and again["scored"] == COUNT
    assert again["mlflow_run_id"] == job.scored["mlflow_run_id"]
    assert before == [(file, file.stat().st_mtime_ns) for file in files]


def test_only_a_lost_file_is_scored_again_and_with_the_same_result(job: SimpleNamespace) -> None:
    before = sorted(rows_of(job.root / "out" / "predictions"), key=lambda row: row["image_id"])
    lost = sorted((job.root / "out" / "predictions").glob("*.parquet"))[0]
    lost.unlink()
    again = score.run(job.config, job.paths.shards, job.paths.out, job.trained["model_uri"])
    assert again["resumed"] in (16 + 16 + 3, 16 * 3)  # the other three shards of 16, 16, 16 and 3 rows
    after = sorted(rows_of(job.root / "out" / "predictions"), key=lambda row: row["image_id"])
    assert [row["image_id"] for row in before] == [row["image_id"] for row in after]
    assert all(
        np.allclose(a["probabilities"], b["probabilities"], atol=1e-6) for a, b in zip(before, after, strict=True)
    )
    assert len(rows_of(job.root / "out" / "quarantine")) == BAD


def test_an_output_refuses_other_settings(job: SimpleNamespace) -> None:
    stricter = load_config(None, [f"work={job.root / 'work'}", "score.accept_at=0.9", "score.max_quarantined=0.2"])
    with pytest.raises(UsageError, match="made with another accept_at; choose a new prefix or --overwrite"):
        score.run(stricter, job.paths.shards, job.paths.out, job.trained["model_uri"])
    with pytest.raises(UsageError, match=r"clip\.cut: 5 asked, made with 4"):
        other = load_config(None, [f"work={job.root / 'work'}", "clip.cut=5"])
        score.run(other, job.paths.shards, job.paths.out, job.trained["model_uri"])


def test_rows_of_changed_shards_are_stale(job: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(job.paths.out, out)
    other = tmp_path / "shards"
    pack.run(
        load_config(None, [f"work={job.root / 'work'}", "pack.rows_per_shard=24"]), str(job.root / "images"), str(other)
    )
    with pytest.raises(UsageError, match="rows of 4 shards that are not in SHARDS"):
        score.run(job.config, str(other), str(out), job.trained["model_uri"])


def test_the_error_about_too_many_quarantined_rows_has_the_result(job: SimpleNamespace) -> None:
    section = job.config.score.model_copy(update={"max_quarantined": 0.01})
    with pytest.raises(TooManyQuarantined, match="3 of 51 rows are in quarantine") as caught:
        score.run(
            job.config.model_copy(update={"score": section}), job.paths.shards, job.paths.out, job.trained["model_uri"]
        )
    assert caught.value.result["quarantined"] == BAD and caught.value.exit_code == 3


def test_a_run_that_quarantines_every_row_stops_early(job: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(400):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"this is no image")
    config = load_config(None, [f"work={job.root / 'work'}", "segment.points_per_side=2"])
    write_shards(tmp_path / "images", tmp_path / "shards", 4)
    out = tmp_path / "out"
    with pytest.raises(MedFocusError, match=r"stopped early: .* --retry-quarantined, or raise score.max_quarantined"):
        score.run(config, str(tmp_path / "shards"), str(out), job.trained["model_uri"])
    assert 32 <= len(rows_of(out / "quarantine")) < 400
    assert not json.loads((out / "run.json").read_text())["finished"]


def test_a_model_records_that_its_rows_were_held_out_by_patient(job: SimpleNamespace) -> None:
    trained = job.trained
    assert (trained["held_out"], trained["held_out_groups"]) == ("by patient", COUNT // 4)
    assert trained["rows_without_patient"] == 0
    assert mlflow.get_run(trained["mlflow_run_id"]).data.tags["medfocus.held_out"] == "by patient"
    version = mlflow.MlflowClient().get_model_version("phantoms", "1")
    assert version.tags["medfocus.held_out"] == "by patient" and "48 rows of 12 patients" in version.description
    assert job.evaluated["intervals"] == "by patient"


def filled_files(features: Path) -> list[Path]:
    """The files of features; that of the shard of unreadable images has no row and is left out."""
    return [file for file in sorted((features / "features").glob("*.parquet")) if pq.read_metadata(file).num_rows]


def without_patients(job: SimpleNamespace, folder: Path, hidden: int) -> Path:
    """A copy of the features without ``patient_id`` in the first ``hidden`` files."""
    shutil.copytree(job.paths.features, folder)
    for file in filled_files(folder)[:hidden]:
        table = pq.read_table(file)
        place, field = table.schema.get_field_index("patient_id"), table.schema.field("patient_id")
        pq.write_table(table.set_column(place, field, pa.nulls(len(table), field.type)), file)
    return folder


def test_training_without_patients_warns_wherever_its_figures_are(
    job: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    features = without_patients(job, tmp_path / "features", 3)
    short = job.config.model_copy(update={"train": job.config.train.model_copy(update={"epochs": 1})})
    with caplog.at_level(logging.WARNING, "medfocus"):
        trained = train.run(short, str(features), "no-patients")
    sentence = "no patient_id: images of one patient may be on both sides, held-out figures are likely optimistic"
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "medfocus"]
    assert warning.startswith(sentence)
    assert trained["held_out"] == "by neighbours" and trained["rows_without_patient"] == COUNT
    assert 6 <= trained["held_out_groups"] <= COUNT
    run = mlflow.get_run(trained["mlflow_run_id"])
    assert run.data.tags["medfocus.held_out"] == "by neighbours"
    assert run.data.metrics["held_out_groups"] == trained["held_out_groups"]
    version = mlflow.MlflowClient().get_model_version("no-patients", "1")
    assert version.tags["medfocus.held_out"] == "by neighbours" and version.description == warning
    model, _ = resolve_model(trained["model_uri"], job.config)
    assert model.held_out is not None and model.held_out.sentence == warning


def test_rows_without_a_patient_join_rows_of_known_patients(
    job: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image whose patient is hidden and its copy, whose patient is known, are in the same fold."""
    features = without_patients(job, tmp_path / "features", 1)
    known = pq.read_table(filled_files(Path(job.paths.features))[0])
    place = known.schema.get_field_index("image_id")
    copies = pa.array([f"copy of {image}" for image in known["image_id"].to_pylist()])
    renamed = known.set_column(place, known.schema.field("image_id"), copies)
    pq.write_table(renamed, features / "features" / "copies.parquet")
    prefix = locate(str(features), job.config.storage)
    labels = read_labels(prefix)
    folds, held_out = hold_out(prefix, labels, job.config)
    assert held_out.how == "by neighbours" and held_out.rows_without_patient == len(copies)
    assert "P000" not in held_out.sentence + caplog.text
    for image in known["image_id"].to_pylist():
        assert folds[image] == folds[f"copy of {image}"]
    folds_of_patient: dict[str, set[int]] = {}
    for image, patient in zip(labels["image_id"], labels["patient_id"], strict=True):
        folds_of_patient.setdefault(patient, set()).add(folds[image])
    folds_of_patient.pop(None)
    assert len(folds_of_patient) > 6 and all(len(numbers) == 1 for numbers in folds_of_patient.values())


def test_an_older_model_does_not_record_how_rows_were_held_out(job: SimpleNamespace, tmp_path: Path) -> None:
    model, _ = resolve_model(job.trained["model_uri"], job.config)
    model.save(tmp_path / "model")
    settings = tmp_path / "model" / "prompts.json"
    content = json.loads(settings.read_text())
    assert content.pop("held_out")["how"] == "by patient"
    settings.write_text(json.dumps(content))
    assert resolve_model(str(tmp_path / "model"), job.config)[0].held_out is None


def test_a_second_training_gives_the_same_prompts(job: SimpleNamespace) -> None:
    again = train.run(job.config, job.paths.features, "phantoms")
    assert again["model_uri"] == "models:/phantoms/2"
    first, _ = resolve_model(job.trained["model_uri"], job.config)
    second, _ = resolve_model(again["model_uri"], job.config)
    assert all(torch.allclose(first.state[name], second.state[name], atol=1e-5) for name in first.state)


def test_a_model_can_be_read_from_a_folder(job: SimpleNamespace, tmp_path: Path) -> None:
    model, _ = resolve_model(job.trained["model_uri"], job.config)
    model.save(tmp_path / "model")
    copy, version = resolve_model(str(tmp_path / "model"), job.config)
    assert version == f"folder/{model.digest[:12]}" and copy.digest == model.digest
    assert copy.settings == model.settings and copy.foundation == model.foundation
    assert all(torch.equal(copy.state[name], model.state[name]) for name in model.state)


@pytest.mark.parametrize("change", ["missing column", "no parquet"])
def test_the_error_about_a_damaged_shard_is_one_clear_line(job: SimpleNamespace, tmp_path: Path, change: str) -> None:
    import hashlib

    from medfocus.pipeline.console.causes import own_error

    shards = tmp_path / "shards"
    shutil.copytree(job.paths.shards, shards)
    damaged = sorted(shards.glob("*.parquet"))[1]
    if change == "missing column":
        table = pq.read_table(damaged).drop_columns(["media_type"])
        pq.write_table(table, damaged)
    else:
        damaged.write_bytes(b"nothing")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][1]["sha256"] = hashlib.sha256(damaged.read_bytes()).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))
    cause = {"missing column": "column media_type is missing", "no parquet": "not a Parquet file"}[change]
    with pytest.raises(Exception, match=cause) as caught:
        score.run(job.config, str(shards), str(tmp_path / "out"), job.trained["model_uri"])
    error = own_error(caught.value)
    assert type(error) is MedFocusError and str(error).startswith(str(damaged)) and "\n" not in str(error)


def test_a_damaged_prompts_file_is_refused(job: SimpleNamespace, tmp_path: Path) -> None:
    model, _ = resolve_model(job.trained["model_uri"], job.config)
    model.save(tmp_path)
    (tmp_path / "prompts.safetensors").write_bytes(b"junk")
    with pytest.raises(UsageError, match="not a MedFocus model"):
        resolve_model(str(tmp_path), job.config)


def test_two_workers_that_stream_train_one_model(job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features too large for memory are read in every epoch; each worker has its share of the training rows."""
    monkeypatch.setattr("medfocus.pipeline.training.fit._KEPT_IN_MEMORY", 0)
    both = job.config.model_copy(update={"train": job.config.train.model_copy(update={"workers": 2, "epochs": 2})})
    trained = train.run(both, job.paths.features, "two-workers")
    model, _ = resolve_model(trained["model_uri"], job.config)
    assert trained["epochs"] == 2 and 0 < trained["held_out_rows"] < trained["training_rows"]
    assert all(torch.isfinite(value).all() for value in model.state.values())


def test_more_workers_than_training_rows_are_refused(job: SimpleNamespace) -> None:
    many = job.config.model_copy(update={"train": job.config.train.model_copy(update={"workers": 500})})
    with pytest.raises(UsageError, match=r"train\.workers is 500, more than the \d+ training rows"):
        train.run(many, job.paths.features, "many")
