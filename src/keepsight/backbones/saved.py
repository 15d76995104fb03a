"""What `keepsight.json` beside a tuned backbone's weights says, so that the folder loads as what was saved. Knows no tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from keepsight.core import Config, UserError

SAVED = "keepsight.json"


class SavedBackbone(Config):
    """keepsight.json of a tuned backbone.

    Attributes:
        kind: Says that it is one.
        format: Of this file.
        keepsight: The version that wrote it.
        backbone: `Backbone.spec`.
    """

    kind: Literal["backbone"] = "backbone"
    format: Literal[1] = 1
    keepsight: str
    backbone: dict[str, str | int | bool]

    @staticmethod
    def read(folder: Path) -> SavedBackbone:
        """Of a folder that `export.backbone` wrote.

        Raises:
            UserError: There is none, or it is not understood.
        """
        path = folder / SAVED
        try:
            saved = SavedBackbone.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"There is no tuned backbone in {folder}: expected a folder with {SAVED}.") from error
        except (ValidationError, UnicodeDecodeError) as error:
            raise UserError(f"{path} does not describe a tuned backbone: save it again, or remove the file.") from error
        if "preprocessing" not in saved.backbone or saved.backbone.get("library") not in ("timm", "open_clip"):
            raise UserError(f"{path} does not describe a tuned backbone: save it again, or remove the file.")
        return saved
