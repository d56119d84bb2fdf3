"""Keyed pseudonyms: the same text has the same pseudonym in every process, and without the key it tells nothing."""

import hmac
import unicodedata
from typing import Literal

from medfocus.pipeline.errors import UsageError

Kind = Literal["patient", "accession", "site", "station", "device", "path", "stamp"]
"""What a pseudonym stands for. The same text has another pseudonym in another kind."""

# Consonants in place of hexadecimal digits: no date, number or name occurs in a pseudonym by chance.
_LETTERS = str.maketrans("0123456789abcdef", "bcdfghjklmnpqrst")
# Bytes of the HMAC that are used: 128 bits.
_BYTES = 16
# The space of masked days: four bytes.
_DAYS = 1 << 32


class Pseudonyms:
    """Makes pseudonyms with HMAC-SHA256 (RFC 2104).

    It can be pickled, so that it can travel to the workers of a cluster. The pickle holds the key: it must not be
    written to a place that others can read.

    Args:
        key: the secret key.
    """

    def __init__(self, key: bytes):
        self._key = key

    def __repr__(self) -> str:
        return f"Pseudonyms({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """A text of 32 letters that tells keys apart, and from which the key cannot be computed."""
        return self._letters("fingerprint", "")

    def of(self, kind: Kind, text: str) -> str:
        """The pseudonym of a text: 32 small letters, all consonants, which are 128 bits."""
        return self._letters(kind, text)

    def uid(self, text: str) -> str:
        """The pseudonym of a UID: ``2.25.`` and 128 bits as a decimal number (PS3.5 B.2), at most 44 characters.

        UIDs of studies, series and instances share one kind, so that references between objects stay true.
        """
        return f"2.25.{int.from_bytes(self._digest('uid', text))}"

    def mask_day(self, patient_id: str, day: int) -> int:
        """Encrypt a day for storage beside a patient's pseudonym; ``unmask_day`` needs the same key.

        The number that is added is used for one patient only. Whoever has two masked days of one patient knows how
        many days are between them, and no more.

        Args:
            patient_id: pseudonym of the patient.
            day: days since 1900-01-01.

        Returns:
            An unsigned number of 32 bits.
        """
        return (day + self._day_offset(patient_id)) % _DAYS

    def unmask_day(self, patient_id: str, masked: int) -> int:
        """The day that ``mask_day`` encrypted for this patient, in days since 1900-01-01."""
        day = (masked - self._day_offset(patient_id)) % _DAYS
        return day if day < _DAYS // 2 else day - _DAYS

    def check_fingerprint(self, expected: str, place: str) -> None:
        """Check that shards are extended with the key that they were made with.

        Args:
            expected: the fingerprint in the manifest.
            place: the shards, for the message.

        Raises:
            UsageError: the key is another one.
        """
        if not hmac.compare_digest(self.fingerprint, expected):
            raise UsageError(
                f"{place}: packed with another key, so that a patient would get a second pseudonym; give the key of the"
                " first pack (MEDFOCUS_KEY or deid.key_file), or choose a new prefix"
            )

    def derived_key(self, purpose: str) -> bytes:
        """A key of 32 bytes for another purpose, such as encryption."""
        return hmac.digest(self._key, f"medfocus 1\0key\0{purpose}".encode(), "sha256")

    def _digest(self, kind: str, text: str) -> bytes:
        # Names of files may hold bytes that are not UTF-8, which Python has as surrogates.
        message = f"medfocus 1\0{kind}\0{text}".encode(errors="surrogatepass")
        return hmac.digest(self._key, message, "sha256")[:_BYTES]

    def _letters(self, kind: str, text: str) -> str:
        return self._digest(kind, text).hex().translate(_LETTERS)

    def _day_offset(self, patient_id: str) -> int:
        return int.from_bytes(self._digest("day", patient_id)[:4])


def patient_pseudonym(pseudonyms: Pseudonyms, patient_id: str | None) -> str | None:
    """The pseudonym of a patient; None where the id is empty.

    Args:
        pseudonyms: the maker of pseudonyms.
        patient_id: Patient ID (0010,0020), or what a label file has for it. Blanks at the ends do not count. Its issuer
            (0010,0021) does not count either: some devices of a hospital write it and others do not, so that a patient
            would be two, and could be in two splits.
    """
    number = trimmed(patient_id)
    return pseudonyms.of("patient", number) if number else None


def pseudonym_of(pseudonyms: Pseudonyms, kind: str, text: str) -> str:
    """The pseudonym that ``describe`` gives an id of this kind.

    Args:
        pseudonyms: the pseudonyms of the archive.
        kind: ``instance``, ``series``, ``study``, ``accession`` or ``patient``.
        text: the id.
    """
    if kind == "patient":
        return patient_pseudonym(pseudonyms, text) or ""
    return pseudonyms.of("accession", trimmed(text)) if kind == "accession" else pseudonyms.uid(trimmed(text))


def trimmed(text: str | None) -> str:
    """A text in Unicode form NFC without the blanks, null bytes and control characters at its ends."""
    return unicodedata.normalize("NFC", text or "").strip(_PADDING)


# Blanks, and everything that is padding in some file: control characters and the null byte.
_PADDING = "".join(map(chr, range(33))) + "\x7f\xa0\u3000\ufeff"
