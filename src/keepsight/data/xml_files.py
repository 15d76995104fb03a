"""Reads XML files of unknown origin without expanding entities. Knows no format."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from keepsight.core import UserError


def parse_xml(file: Path, what: str = "The annotation") -> ElementTree.Element:
    """The root of an XML file without a document type, so that there are no entities to expand.

    Args:
        file: To read.
        what: What messages call it.

    Raises:
        UserError: if the file is missing, no valid XML, or declares a document type.
    """

    def refuse(*_: object) -> NoReturn:
        raise UserError(f"{what} {file} declares a document type, which this format does not: remove the DOCTYPE.")

    try:
        data = file.read_bytes()
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = refuse
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except OSError as error:
        raise UserError(f"{what} {file} cannot be read ({error.strerror}): make it readable.") from error
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f"{what} {file} is not valid XML ({error}): correct it, or take it out.") from error
