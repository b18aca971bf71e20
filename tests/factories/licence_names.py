"""The licence of an installed package under one name, from its metadata or its licence file."""

import re
from importlib.metadata import Distribution, distribution

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Other/Proprietary License": "proprietary",
}
TEXTS = (
    (r"NVIDIA|proprietary", "proprietary"),
    (r"^(the )?(mit\b|MIT)", "MIT"),
    (r"^apache", "Apache-2.0"),
    (r"bsd", "BSD"),
    (r"^isc", "ISC"),
    (r"^mpl", "MPL-2.0"),
    (r"^psf", "PSF-2.0"),
    (r"^gpl-3", "GPL-3.0-or-later"),
    (r"^boost", "BSL-1.0"),
    (r"^dual license", "Apache-2.0 OR BSD"),
)
FILES = (
    (r"Permission is hereby granted, free of charge", "MIT"),
    (r"Apache License\s+Version 2\.0", "Apache-2.0"),
    (r"Redistribution and use in source and binary forms", "BSD"),
)
"""What the text of a licence file contains."""


def licence_of(package: str) -> str:
    """`MIT`, `BSD-3-Clause`, `Apache-2.0 OR BSD-2-Clause`, ...; "" if the package does not say."""
    found = distribution(package)
    about = found.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    text = (about.get("License") or "").strip()
    classifiers = [
        line.split(" :: ")[-1] for line in about.get_all("Classifier") or () if line.startswith("License")
    ]
    if re.fullmatch(r"[A-Z][\w.+-]*( (AND|OR) [\w.+-]+)*", text) and re.search(r"\d|MIT|ISC", text):
        return text  # an SPDX expression in the old field
    names = [CLASSIFIERS[name] for name in classifiers if name in CLASSIFIERS]
    if names and "\n" not in text[:200]:
        names = [*dict.fromkeys(names)]
    if text and len(text) < 80:
        for pattern, name in TEXTS:
            if re.search(pattern, text, re.IGNORECASE):
                return name
    return " AND ".join(dict.fromkeys(names)) or _from_files(found)


def _from_files(found: Distribution) -> str:
    for file in found.files or ():
        if re.search(r"(licen[cs]e|copying)", file.name, re.IGNORECASE) and file.locate().is_file():
            text = file.read_text(encoding="utf-8")
            for pattern, name in FILES:
                if re.search(pattern, text):
                    return name
    return ""
