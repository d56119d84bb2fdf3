import hashlib
import hmac
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from medfocus.pipeline.errors import UsageError
from medfocus.pipeline.identity.pseudonyms import Kind, Pseudonyms, patient_pseudonym

KEY = b"0123456789abcdef0123456789abcdef"
PSEUDONYMS, OTHERS = Pseudonyms(KEY), Pseudonyms(KEY[::-1])
KINDS: list[Kind] = ["patient", "accession", "site", "station", "device", "path", "stamp"]
texts = st.text(st.characters(), max_size=40)  # with lone surrogates, as names of files have
kinds = st.sampled_from(KINDS)


@given(kinds, texts)
def test_a_pseudonym_is_the_hmac_in_consonants(kind: Kind, text: str) -> None:
    message = b"medfocus 1\0" + kind.encode() + b"\0" + text.encode("utf-8", "surrogatepass")
    digest = hmac.new(KEY, message, hashlib.sha256).hexdigest()[:32]
    expected = "".join("bcdfghjklmnpqrst"[int(digit, 16)] for digit in digest)
    assert PSEUDONYMS.of(kind, text) == expected == pickle.loads(pickle.dumps(PSEUDONYMS)).of(kind, text)
    assert OTHERS.of(kind, text) != expected


@given(kinds, texts, kinds, texts)
def test_kinds_and_texts_are_kept_apart(kind: Kind, text: str, other_kind: Kind, other: str) -> None:
    same = (kind, text) == (other_kind, other)
    assert (PSEUDONYMS.of(kind, text) == PSEUDONYMS.of(other_kind, other)) == same
    assert (PSEUDONYMS.uid(text) == PSEUDONYMS.uid(other)) == (text == other)


@given(texts)
def test_a_uid_is_valid_and_keyed(text: str) -> None:
    uid = PSEUDONYMS.uid(text)
    assert UID(uid).is_valid and len(uid) <= 44 and uid.startswith("2.25.")
    assert OTHERS.uid(text) != uid == Pseudonyms(KEY).uid(text)


def test_another_process_has_the_same_pseudonyms() -> None:
    code = (
        "from medfocus.pipeline.identity.pseudonyms import Pseudonyms;"
        f" p = Pseudonyms({KEY!r}); print(p.of('patient', 'a'), p.uid('1.2.3'), p.fingerprint)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert other == [PSEUDONYMS.of("patient", "a"), PSEUDONYMS.uid("1.2.3"), PSEUDONYMS.fingerprint]


@given(texts, st.integers(-(2**31), 2**31 - 1))
def test_days_are_masked_by_patient_and_key(patient: str, day: int) -> None:
    masked = PSEUDONYMS.mask_day(patient, day)
    assert 0 <= masked < 2**32 and PSEUDONYMS.unmask_day(patient, masked) == day


def test_masked_days_tell_nothing_without_the_key() -> None:
    masked = [PSEUDONYMS.mask_day(f"patient {number}", 40_000) for number in range(1000)]
    assert len(set(masked)) == 1000 and 0.45 < sum(masked) / 1000 / 2**32 < 0.55
    assert OTHERS.unmask_day("patient 0", masked[0]) != 40_000


def test_the_key_is_not_shown() -> None:
    assert KEY.decode() not in repr(PSEUDONYMS) and KEY.hex() not in repr(PSEUDONYMS)
    assert PSEUDONYMS.fingerprint != OTHERS.fingerprint
    PSEUDONYMS.check_fingerprint(PSEUDONYMS.fingerprint, "shards")
    with pytest.raises(UsageError, match="shards: packed with another key"):
        OTHERS.check_fingerprint(PSEUDONYMS.fingerprint, "shards")


@given(
    st.text(st.characters(categories=("L", "N")), min_size=1, max_size=10), st.sampled_from(["", " ", "\0", "\t \0"])
)
def test_padding_of_a_patient_id_does_not_count(number: str, padding: str) -> None:
    plain = patient_pseudonym(PSEUDONYMS, number)
    assert plain and patient_pseudonym(PSEUDONYMS, f"{padding}{number}{padding}") == plain
    assert patient_pseudonym(PSEUDONYMS, padding) is None


def test_unicode_forms_of_a_patient_id_are_one() -> None:
    assert patient_pseudonym(PSEUDONYMS, "M\u00fc1") == patient_pseudonym(PSEUDONYMS, "Mu\u03081")
