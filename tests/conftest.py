"""Fixtures that tests of several folders share."""

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # mlflow reads it at its import
os.environ.pop("MLFLOW_TRACKING_URI", None)  # no test writes to the store of the user

import boto3
import numpy as np
import pytest
from PIL import Image

from medfocus.stages import torchvision_ops  # noqa: F401  before any test imports sam2 or open_clip
from tests import hub_server, servers

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class DataFolder:
    """A folder of real files that some tests need, which is not part of the repository.

    Args:
        option: command-line option that names the folder.
        default: where it is looked for without the option, below a folder ``shared`` beside the repository.
        content: what the folder holds.
        layout: how the folder is laid out, for the help of the option.
    """

    option: str
    default: str
    content: str
    layout: str

    def find(self, config: pytest.Config) -> Path:
        """The folder; skips the test where it does not exist."""
        folder: Path = config.getoption(self.option)
        if not folder.is_dir():
            pytest.skip(f"{self.content} not found at {folder}; name their folder with {self.option}")
        return folder


BRAIN_MRI = DataFolder(
    "--brain-mri", "data/brain_tumor_mri", "MRI slices", "train/ and test/, with a folder for each class"
)
LABEL_FILES = DataFolder(
    "--label-files",
    "field/labels",
    "label files",
    "label files as spreadsheets write them, and in/ with their images: 0.png to 3.png, alternately malignant and"
    " benign, of patients P0 to P3",
)
PATHOLOGICAL = DataFolder(
    "--pathological", "field/pathological", "broken and unusual image files", "a folder for each kind of file"
)
FIELD_PICTURES = DataFolder(
    "--field-pictures",
    "field/pixels",
    "unusual image files with reference pixels",
    "in/ with image files, and expected/ with the pixels that a viewer shows",
)
DICOM_FILES = DataFolder(
    "--dicom-files", "data/dicom", "DICOM files of many kinds", "files/ with an object each, series/ with slices"
)
KUBERAY = DataFolder(
    "--kuberay",
    "kuberay",
    "custom resource definitions of KubeRay",
    "ray.io_*.yaml.gz, as they are released",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option for each folder of real files."""
    for data in (BRAIN_MRI, LABEL_FILES, PATHOLOGICAL, FIELD_PICTURES, DICOM_FILES, KUBERAY):
        default = REPOSITORY.parent / "shared" / data.default
        parser.addoption(data.option, type=Path, default=default, help=f"folder of {data.content}: {data.layout}")


@pytest.fixture(scope="session")
def brain_mri(request: pytest.FixtureRequest) -> Path:
    return BRAIN_MRI.find(request.config)


@pytest.fixture(scope="session")
def label_files(request: pytest.FixtureRequest) -> Path:
    return LABEL_FILES.find(request.config)


@pytest.fixture(scope="session")
def pathological(request: pytest.FixtureRequest) -> Path:
    return PATHOLOGICAL.find(request.config)


@pytest.fixture(scope="session")
def field_pictures(request: pytest.FixtureRequest) -> Path:
    return FIELD_PICTURES.find(request.config)


@pytest.fixture(scope="session")
def dicom_files(request: pytest.FixtureRequest) -> Path:
    return DICOM_FILES.find(request.config)


@pytest.fixture(scope="session")
def kuberay(request: pytest.FixtureRequest) -> Path:
    return KUBERAY.find(request.config)


@pytest.fixture(scope="session")
def starter_sam2():
    """The SAM2 that the package ships."""
    from medfocus.pipeline.config import Config
    from medfocus.pipeline.models import model_files
    from medfocus.stages.weights import load_sam2

    source = model_files.resolve_sam2(Config().segment, Config().storage)
    return load_sam2(source.model, source.checkpoint)


@pytest.fixture(scope="session")
def starter_clip():
    """The CLIP that the package ships."""
    from medfocus.pipeline.config import Config
    from medfocus.pipeline.models import model_files
    from medfocus.stages.weights import load_clip

    source = model_files.resolve_clip(Config().clip, Config().storage)
    return load_clip(source.model, source.checkpoint)


@pytest.fixture(scope="session")
def starter_tokenizer():
    """The tokenizer of the CLIP that the package ships."""
    from medfocus.pipeline.config import Config
    from medfocus.pipeline.models import model_files
    from medfocus.stages.weights import load_tokenizer

    return load_tokenizer(model_files.resolve_clip(Config().clip, Config().storage).model)


@pytest.fixture
def biomedclip(tmp_path: Path) -> Path:
    """A folder with the configuration that BiomedCLIP publishes, at full size but without weights.

    The architecture of its BERT is read from a folder instead of the hub, and its vocabulary is short.
    """
    from transformers import BertConfig, BertTokenizer

    BertConfig(vocab_size=30522).save_pretrained(tmp_path / "bert")
    text = {
        "hf_model_name": str(tmp_path / "bert"),
        "hf_tokenizer_name": "BertTokenizer",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    }
    vision = {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    config = {
        "model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": mean, "std": std},
    }
    folder = tmp_path / "biomedclip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    special, words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["a", "medical", "image", "showing", "lesion"]
    BertTokenizer(
        vocab={word: index for index, word in enumerate([*special, *words, "solid", "mass", "ring", "cyst"])}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """URL of an S3 server that all tests share."""
    with servers.s3() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that creates a bucket; the environment names the S3 server as a user's does."""
    for name, value in servers.s3_user(s3_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)

    def make(bucket: str) -> str:
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A Hugging Face hub of this test, which the client of this process and of its children uses."""
    with hub_server.serving(tmp_path / "hub") as hub:
        hub_server.use(hub.url, tmp_path / "hub-cache", monkeypatch)
        yield hub


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an MLflow server that all tests share."""
    with servers.mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def signals_by_default() -> Iterator[None]:
    """Processes that the test starts are ended by SIGHUP and SIGINT, also where the tests themselves ignore these.

    They do under nohup, and in the background of a script.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that run a stream in the process of pytest."""
    from medfocus.cluster.connect import connected

    with connected(None, os.cpu_count()):
        yield


@pytest.fixture
def plain_user(tmp_path: Path) -> Iterator[None]:
    """Run the test as a user without root's rights, who owns the test's folder."""
    if os.geteuid():
        yield
        return
    modes = {folder: folder.stat().st_mode for folder in tmp_path.parents}
    closed = {folder: mode for folder, mode in modes.items() if mode & 0o055 != 0o055}
    for folder, mode in closed.items():
        folder.chmod(mode | 0o055)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for folder, mode in closed.items():
            folder.chmod(mode)


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
