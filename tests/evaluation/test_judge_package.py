"""Any package on any labelled folder."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipeline.detector import Detector
from pipeline.evaluation import judge_package
from pipeline.images import read
from pipeline.package import FACES, GRAPH, seal, verify
from pipeline.params import Params
from pipeline.params_data import ProceduralSource
from pipeline.runtime import OpenVinoRuntime
from pipeline.sources import procedural
from tests.conftest import ROOT
from tests.data_helpers import noise
from tests.face_helpers import YUNET, needs_yunet
from tests.package_helpers import META, tiny_package


def evaluate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`python -m pipeline.evaluate` in this process, because importing torch again takes longer than all the rest."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    runpy.run_module("pipeline.evaluate", run_name="__main__")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_package_is_judged_on_a_folder_and_prints_what_the_report_shows(
    package: Path, faces: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (faces / "fake" / "broken.jpg").write_bytes(b"no image")
    settings = (ROOT / "params.yaml").read_text().replace("bootstrap: 1000", "bootstrap: 100")
    for name, few in (("attack_images: 48", "attack_images: 2"), ("robustness_images: 150", "robustness_images: 4")):
        assert name in settings
        settings = settings.replace(name, few)
    (here / "params.yaml").write_text(settings.replace("explain_images: 40", "explain_images: 2"))
    evaluate(monkeypatch, "--package", str(package), "--data", str(faces), "--out", "judged")
    said = capsys.readouterr().out
    found = json.loads((here / "judged/evaluation.json").read_text())
    assert found["n"] == 60 and found["package"] == verify(package).digest and "linear_probe" in found["baselines"]
    assert [Path(file["path"]).name for file in found["unreadable"]] == ["broken.jpg"]
    assert found["thresholds"] == verify(package).meta.thresholds.model_dump() and (found["temperature"], found["bias"]) == (1.0, 0.0)
    page = (here / "judged/evaluation.html").read_text()
    for name in ("f1", "auc", "ece"):
        value = f"{found['test'][name]['value']:.3f}"
        assert next(line for line in said.splitlines() if line.startswith(f"{name} ")).split()[1] == value and value in page
    assert "by cross-validation over groups" in page and "1 files are not readable images" in page
    with pytest.raises(SystemExit, match="nowhere is not a model package"):
        evaluate(monkeypatch, "--package", "nowhere", "--data", str(faces), "--out", "x")


@needs_yunet
def test_faces_are_judged_as_the_service_judges_them(tmp_path: Path, here: Path, params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("UNMASK_FACE_DETECTOR")
    package = tiny_package(tmp_path / "package", face_margin=0.1)
    shutil.copy(YUNET, package / FACES)
    seal(package, META | {"face_margin": 0.1})
    source = ProceduralSource(kind="procedural", reals=6, size=120, jpeg_quality=(90, 98), generators={"self_blend": 1.0})
    rendered = procedural.listing(source, tmp_path / "rendered")
    for index, (file, label) in enumerate(zip(rendered["file"], rendered["label"], strict=True)):
        scene = noise(320, 240, seed=index)
        scene.paste(Image.open(file), (150, 80))
        path = tmp_path / "scenes" / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.save(path)
    noise(320, 240).save(tmp_path / "scenes/real/nobody.png")
    few = {"attack_images": 0, "robustness_images": 2, "explain_images": 0, "bootstrap": 100}
    settings = params.model_copy(update={"evaluate": params.evaluate.model_copy(update=few)})
    found = judge_package.judge(package, tmp_path / "scenes", here / "out", settings)
    detector = Detector(verify(package), OpenVinoRuntime(package / GRAPH), package / FACES)
    table = pd.read_parquet(here / "out/scores.parquet")
    answers = [detector.predict([read(Path(path))])[0] for path in table["path"]]
    assert table["probability_fake"].tolist() == pytest.approx([answer.probability_fake for answer in answers], abs=1e-4)
    faces = sum(bool(answer.faces) for answer in answers)
    assert found["cut_out"] == {"found": faces, "margin": 0.1} and 8 <= faces < len(table) == 13
    assert f"{faces} faces were cut out of the images" in (here / "out/evaluation.html").read_text()


def test_a_folder_of_reals_alone_has_the_figures_that_are_defined(package: Path, faces: Path, here: Path, params: Params):
    for path in (faces / "fake").iterdir():
        path.unlink()
    settings = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"attack_images": 0})})
    found = judge_package.judge(package, faces, here / "out", settings)
    assert found["test"]["fpr"]["value"] is not None and found["test"]["auc"]["value"] is None and found["explanation"] is None
    json.loads((here / "out/evaluation.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert "not defined" in (here / "out/evaluation.html").read_text() and "at least 2 groups" in found["no_baselines"]
