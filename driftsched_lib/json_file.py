"""Models that are kept as JSON files."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ValidationError


class JsonFile(BaseModel):
    """A model that reads itself from a file and writes itself to one.

    Attributes:
        refused: what is raised for a file that cannot be used.
    """

    refused: ClassVar[type[Exception]]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read one; the error that is raised otherwise, `refused`, names the file and each field missing or wrong."""
        try:
            return cls.model_validate_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise cls.refused(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        raise cls.refused("\n".join(": ".join(filter(None, (str(path), where, what))) for where, what in faults))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.model_dump_json(indent=2) + "\n")
