"""Closed lists of terms. A value of a header leaves the archive only where it is one of these."""

import re
from functools import cache, lru_cache

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code


def _words(text: str) -> frozenset[str]:
    """The words of a list."""
    return frozenset(text.split())


# PS3.3 C.7.3.1.1.1; current terms are those of context group 33, these were retired.
_RETIRED_MODALITIES = _words("AS CD CP CS DD DF DM DS EC FA FS LP MA MS OPR SC ST VF")

# View Position (0018,5101): PS3.3 C.8.1.1 and C.8.11.7, and the usual ones beside them.
_VIEWS = _words(
    "AP PA LL RL RLD LLD RLO LLO LAT LATERAL AX AXIAL OBL OBLIQUE RAO LAO RPO LPO SUNRISE"
    " CC MLO ML LM LMO FB SIO ISO XCC XCCL XCCM SPECIMEN"
)

# Body Part Examined (0018,0015): PS3.16 Annex L, without blanks.
_BODY_PARTS = _words(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF"
    " CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA"
    " CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM"
    " GALLBLADDER HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE"
    " LSSPINE LUNG MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY"
    " PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RETINA RIB SCALP SCAPULA SCLERA"
    " SCROTUM SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THORAX THUMB"
    " THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA UMBILICAL URETER URETHRA UTERUS"
    " VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
)

# How the name of a maker begins, in small letters, and the name that leaves.
_MAKERS = {
    **{name.casefold(): name for name in (
        "Acuson", "Agfa", "Canon", "Carestream", "Elscint", "Esaote", "Fujifilm", "GE", "Heidelberg Engineering",
        "Hitachi", "Hologic", "Imaging Dynamics", "Kodak", "Konica Minolta", "Leica", "Lorad", "Marconi", "Mindray",
        "Neusoft", "Nidek", "Olympus", "Philips", "Picker", "Planmeca", "Samsung", "Shimadzu", "Siemens", "Sirona",
        "Swissray", "Topcon", "Toshiba", "United Imaging", "Varian", "Vidar", "Zeiss", "Ziehm",
    )},
    "carl zeiss": "Zeiss",
    "eastman kodak": "Kodak",
    "fuji": "Fujifilm",
    "fuji film": "Fujifilm",
    "g.e.": "GE",
    "general electric": "GE",
    "konica": "Konica Minolta",
    "medison": "Samsung",
    "uih": "United Imaging",
}  # fmt: skip

# Families of models. The first word of a model that leaves is one of these; each other word is one of these, a word
# that tells the members of a family apart, or a code such as MR750 and 3.0T.
_MODEL_FAMILIES = _words(
    "achieva affiniti allura aplio aquilion arcadis aspire avanto axiom azurion biograph brightspeed brilliance cirrus"
    " digitaldiagnost discovery eclipse epiq essenta fdr gemini genesis harmony ict imager infinia ingenia ingenuity"
    " innova integris intera iu22 lightspeed logiq luminos lumos magnetom mammomat millennium mobilett multix optima"
    " optimus panorama pristina prospeed revolution scenaria selenia senographe sensation sequoia signa skyra"
    " somatom sonoline sonos spectralis supria symphony titan triotim vantage voluson xperience ysio"
)
_MODEL_WORDS = _words(
    "aera altea amira as as+ ascend avanto confidence definition digital dimensions dream drive dual edge elite emotion"
    " essential evo excel excite expert extend flash flow fluoro force fusion fx go.all go.now go.sim go.top go.up hd"
    " hdx hdxt horizon lite lung mri mx one open perspective plus pqm precision prestige prime prisma pro sempra silver"
    " smart sola spirit st ste structure system tim trio ultra ultimate verio vida vision vivid volume xr xt zoom"
)
_MODEL_CODE = re.compile(r"[a-z]{0,2}[0-9]{1,3}(\.[0-9])?[a-z]{0,2}")
_BLANKS = re.compile(r"[\s_\-/]+")


def modality(text: str | None) -> str | None:
    """A modality, if it is a defined term (PS3.3 C.7.3.1.1.1)."""
    term = (text or "").upper()
    return term if term in _modalities() else None


def view(position: str | None, code: tuple[str | None, str | None]) -> str | None:
    """A view: the position, or the meaning of a code of context groups 4010 (DX View) and 4014 (mammography).

    Args:
        position: View Position (0018,5101).
        code: value and coding scheme of the item of View Code Sequence (0054,0220).
    """
    term = (position or "").upper()
    if term in _VIEWS:
        return term
    value, scheme = code
    return _meaning(Code(value, scheme, "")) if value and scheme else None


def body_part(text: str | None) -> str | None:
    """A body part, if it is a defined term of PS3.16 Annex L; blanks, hyphens and letter case do not count."""
    term = _BLANKS.sub("", text or "").upper()
    return term if term in _BODY_PARTS else None


def maker(text: str | None) -> str | None:
    """The usual name of a manufacturer, if the text begins with one of the list."""
    name = " ".join((text or "").casefold().split())
    found = (
        known for start, known in _MAKERS.items() if name.startswith(start) and not name[len(start) :][:1].isalnum()
    )
    return next(found, None)


def model(text: str | None) -> str | None:
    """The name of a model, if its first word is a known family and the others are known words or short codes."""
    words = [word for word in _BLANKS.split(text or "") if word]
    if not words or words[0].casefold() not in _MODEL_FAMILIES:
        return None
    return " ".join(words) if all(map(_is_model_word, words)) else None


def _is_model_word(word: str) -> bool:
    small = word.casefold()
    return small in _MODEL_FAMILIES | _MODEL_WORDS or _MODEL_CODE.fullmatch(small) is not None


@cache
def _modalities() -> frozenset[str]:
    return frozenset(concept.value for concept in codes.cid33.concepts.values()) | _RETIRED_MODALITIES


@lru_cache(1024)
def _meaning(code: Code) -> str | None:
    """The meaning of a code in the context groups of views; codes of SNOMED's old scheme (SRT) are known too."""
    groups = (codes.cid4010, codes.cid4014)
    return next((concept.meaning for group in groups for concept in group.concepts.values() if concept == code), None)
