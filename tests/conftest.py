import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported: tests call nobody outside
os.environ.pop("MLFLOW_TRACKING_URI", None)  # nor do they write to the store of who runs them

import boto3
import numpy as np
import pytest
from PIL import Image

from medfocus.stages import torchvision_ops  # noqa: F401  before any test imports sam2 or open_clip
from tests import servers

REPOSITORY = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--brain-mri",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data" / "brain_tumor_mri",
        help="folder with train/ and test/ of real MRI slices, a folder a class",
    )
    parser.addoption(
        "--label-files",
        type=Path,
        default=REPOSITORY.parent / "shared" / "field" / "labels",
        help="folder of label files as spreadsheets write them, with their images in in/: 0.png to 3.png, malignant and"
        " benign by turns, of patients P0 to P3",
    )
    parser.addoption(
        "--pathological",
        type=Path,
        default=REPOSITORY.parent / "shared" / "field" / "pathological",
        help="folder of broken and unusual image files, in a folder a kind",
    )
    parser.addoption(
        "--field-pictures",
        type=Path,
        default=REPOSITORY.parent / "shared" / "field" / "pixels",
        help="folder of image files in in/ and of what a viewer shows of them in expected/",
    )


@pytest.fixture(scope="session")
def brain_mri(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--brain-mri")
    if not folder.is_dir():
        pytest.skip(f"real MRI slices are not at {folder}; give their folder with --brain-mri")
    return folder


@pytest.fixture(scope="session")
def label_files(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--label-files")
    if not folder.is_dir():
        pytest.skip(f"label files of spreadsheets are not at {folder}; give their folder with --label-files")
    return folder


@pytest.fixture(scope="session")
def pathological(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--pathological")
    if not folder.is_dir():
        pytest.skip(f"broken and unusual files are not at {folder}; give their folder with --pathological")
    return folder


@pytest.fixture(scope="session")
def field_pictures(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--field-pictures")
    if not folder.is_dir():
        pytest.skip(f"odd files and their pictures are not at {folder}; give their folder with --field-pictures")
    return folder


@pytest.fixture(scope="session")
def starter_sam2():
    from medfocus.pipeline.config import Config
    from medfocus.pipeline.models import model_files
    from medfocus.stages.weights import load_sam2

    source = model_files.resolve_sam2(Config().segment, Config().storage)
    return load_sam2(source.model, source.checkpoint)


@pytest.fixture(scope="session")
def starter_clip():
    from medfocus.pipeline.config import Config
    from medfocus.pipeline.models import model_files
    from medfocus.stages.weights import load_clip

    source = model_files.resolve_clip(Config().clip, Config().storage)
    return load_clip(source.model, source.checkpoint)


@pytest.fixture(scope="session")
def starter_tokenizer():
    from medfocus.pipeline.config import Config
    from medfocus.pipeline.models import model_files
    from medfocus.stages.weights import load_tokenizer

    return load_tokenizer(model_files.resolve_clip(Config().clip, Config().storage).model)


@pytest.fixture
def biomedclip(tmp_path: Path) -> Path:
    """A folder with the configuration that BiomedCLIP publishes, at full size; its BERT's architecture is
    read from a folder instead of the hub, its vocabulary is short, and there are no weights."""
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
    with servers.s3() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Make a bucket; the environment points at the S3 server as a user's would."""
    for name, value in servers.s3_user(s3_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)

    def make(bucket: str) -> str:
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    return make


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the tests of a process that stream."""
    from medfocus.cluster.connect import connected

    with connected(None, os.cpu_count()):
        yield


@pytest.fixture
def plain_user(tmp_path: Path) -> Iterator[None]:
    """The test runs without root's right to read everything; what is below its folder belongs to it."""
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
