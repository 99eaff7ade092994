"""Tables of a benchmark's repository: rows with checked values, pictures left encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tccd.data.hub import encoded_image, reason
from tccd.data.records import is_text, shown
from tccd.errors import DataError, require


@dataclass(frozen=True)
class Picture:
    """One cell of an image column.

    Attributes:
        rows: the `datasets.Dataset`, on disk.
        number: the row.
        column: the image column.
        where: the place, for errors.
    """

    rows: Any
    number: int
    column: str
    where: str

    def encoded(self) -> bytes:
        """The image file as it came.

        Raises:
            DataError: the cell is empty, holds something else, or names a file that can't be read.
        """
        return encoded_image(self.rows[self.number][self.column], f"{self.where}: column {self.column}")


@dataclass(frozen=True)
class Row:
    """A row without its pictures.

    Attributes:
        values: column -> value.
        number: position in the table, from 0.
        where: the place, for errors.
    """

    values: Mapping[str, Any]
    number: int
    where: str

    def text(self, column: str, empty: bool = False) -> str:
        """A text, stripped; of a whole number its digits.

        Raises:
            DataError: the column is missing or holds something else; or nothing, unless that is allowed.
        """
        value = self._value(column)
        if type(value) is int:
            return str(value)
        if empty and value is None:
            return ""
        if not is_text(value) or not (empty or value.strip()):
            raise self._error(column, value, "a text" if empty else "a text that is not empty")
        return value.strip()

    def texts(self, column: str) -> list[str]:
        """A list of texts.

        Raises:
            DataError: the column is missing or holds something else.
        """
        value = self._value(column)
        if not isinstance(value, list) or not all(map(is_text, value)):
            raise self._error(column, value, "a list of texts")
        return value

    def index(self, column: str, length: int) -> int:
        """A position in a list.

        Raises:
            DataError: the column is missing, or holds no whole number from 0 to `length - 1`.
        """
        value = self._value(column)
        if type(value) is not int or not 0 <= value < length:
            raise self._error(column, value, f"the number of a choice, 0 to {length - 1}")
        return value

    def _value(self, column: str) -> Any:
        if column not in self.values:
            raise _no_column(self.where, column, self.values)
        return self.values[column]

    def _error(self, column: str, value: Any, expected: str) -> DataError:
        return DataError(f"{self.where}: {column} is {shown(value)}; expected {expected}")


@dataclass(frozen=True)
class Table:
    """One opened table.

    Attributes:
        data: the `datasets.Dataset`, image columns left encoded.
        where: the place, for errors.
    """

    data: Any
    where: str

    def rows(self, without: Sequence[str] = ()) -> Iterator[Row]:
        """Every row, without the columns named, which are left unread.

        Raises:
            DataError: one of those columns is missing.
        """
        self._check(without)
        for number, values in enumerate(self.data.remove_columns(list(without))):
            yield Row(values, number, f"{self.where}, row {number}")

    def picture(self, number: int, column: str) -> Picture:
        """The picture in a column of a row."""
        return Picture(self.data, number, column, f"{self.where}, row {number}")

    def pictures(self, row: Row, columns: Sequence[str]) -> tuple[Picture, ...]:
        """A row's pictures: the first column's, and what the further ones hold.

        Raises:
            DataError: the first is missing.
        """
        cells = self.data[row.number]
        if cells[columns[0]] is None:
            raise DataError(f"{row.where}: {columns[0]} is empty; expected a picture")
        return tuple(self.picture(row.number, column) for column in columns if cells[column] is not None)

    def paths(self, column: str) -> list[str]:
        """The name of the file behind each row's picture.

        Raises:
            DataError: the column is missing, or a picture has no file.
        """
        self._check((column,))
        names = []
        for number, cell in enumerate(self.data[column]):
            if not isinstance(cell, dict) or not cell.get("path"):
                raise DataError(f"{self.where}, row {number}: {column} has no file name; expected one")
            names.append(str(cell["path"]))
        return names

    def _check(self, columns: Sequence[str]) -> None:
        missing = [column for column in columns if column not in self.data.column_names]
        if missing:
            raise _no_column(self.where, missing[0], self.data.column_names)


def _no_column(where: str, column: str, found: Iterable[str]) -> DataError:
    return DataError(
        f"{where}: there is no column {column}; found {', '.join(found)}. The benchmark's tables have another "
        "form at this revision"
    )


class Tables:
    """Opens the tables of one revision of a repository, downloading what is not in the cache.

    Args:
        repository: id on the hub, or a local folder of the same layout.
        revision: branch, tag or commit.
        split: the split to read.

    Attributes:
        commit: the commit that was read, once a table has been opened.
    """

    def __init__(self, repository: str, revision: str, split: str) -> None:
        self._repository, self._revision, self._split = repository, revision, split
        self.commit: str | None = None

    def open(self, configuration: str | None = None, files: str | None = None) -> Table:
        """A table by its configuration, or from files that the repository's card tells nothing of.

        Args:
            configuration: its name; None for the only one, or with `files`.
            files: pattern of the files, relative to the repository.

        Raises:
            DataError: no such repository, revision, configuration, split or file; or it is damaged.
            MissingExtraError: datasets is not installed.
        """
        datasets = require("datasets", "data")
        name = ", ".join(part for part in (self._repository, configuration, files) if part)
        data_files = None if files is None else {self._split: files}
        try:
            builder = datasets.load_dataset_builder(
                self._repository, configuration, data_files=data_files, revision=self._revision
            )
            builder.download_and_prepare()
            rows = builder.as_dataset(split=self._split)
        # An open set: datasets, huggingface_hub, the HTTP client and the file formats each have their own errors.
        except Exception as error:
            raise DataError(
                f"can't load {name}, split {self._split}, at revision {self._revision}: {reason(error)}"
            ) from error
        self.commit = builder.hash
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                # Left encoded: decoding is put off to `Sample.image`.
                rows = rows.cast_column(column, datasets.Image(decode=False))
        return Table(rows, f"{name}, split {self._split}")
