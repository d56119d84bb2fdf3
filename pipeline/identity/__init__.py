"""De-identification: keyed pseudonyms, the few attributes of DICOM that leave, and the evidence of what was removed."""
