# SPDX-License-Identifier: Apache-2.0
"""`JpegTables`: by which numbers a JPEG file was quantised, read from its own segments."""

from __future__ import annotations

from dataclasses import dataclass

from monai_smia.export.picture_parts import jpeg_segments

BLOCK = 8
DEFINE_TABLES = 0xDB
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the others define codes, or are reserved
FACTORS = ((1, 1), (1, 2), (2, 2))

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class JpegTables:
    """The numbers of a JPEG file that decide what is lost.

    They are read from the file itself, where the standard tells their order.

    Attributes:
        steps: of the quantisation, 8 rows of 8 for each component, the vertical frequency first.
        factors: rows and columns of the luma for each of the chroma: (1, 1) for 4:4:4 and for grey, (1, 2) for 4:2:2,
            (2, 2) for 4:2:0.

    Reference: ITU-T T.81, "Digital compression and coding of continuous-tone still images", 1992, annex B and figure 5,
    https://www.w3.org/Graphics/JPEG/itu-t81.pdf.
    """

    steps: tuple[Table, ...]
    factors: tuple[int, int]

    @classmethod
    def of_file(cls, content: bytes) -> JpegTables:
        """Read them.

        Args:
            content: a JPEG file, grey or of three components.

        Raises:
            ValueError: for another number of components, and for a subsampling other than 4:4:4, 4:2:2 and 4:2:0.
        """
        tables: dict[int, Table] = {}
        components: list[tuple[int, int]] = []
        for marker, segment in jpeg_segments(content):
            if marker == DEFINE_TABLES:
                tables.update(_defined(segment[4:]))
            elif marker in FRAMES:
                components = [(segment[11 + 3 * i], segment[12 + 3 * i]) for i in range(segment[9])]
        sizes = [(size & 15, size >> 4) for size, _ in components]
        if len(sizes) == 1:
            sizes = [(1, 1)]  # of one component alone they have no meaning
        if len(sizes) not in (1, 3) or any(size != (1, 1) for size in sizes[1:]) or sizes[0] not in FACTORS:
            raise ValueError(f"content: expected grey, 4:4:4, 4:2:2 or 4:2:0; got sampling factors {sizes}")
        return cls(tuple(tables[name] for _, name in components), sizes[0])


def _defined(body: bytes) -> dict[int, Table]:
    """The tables of one segment, under their numbers."""
    found = {}
    while body:
        size = 2 if body[0] >> 4 else 1
        entries = [int.from_bytes(body[1 + size * i : 1 + size * (i + 1)], "big") for i in range(BLOCK * BLOCK)]
        rows = [[0] * BLOCK for _ in range(BLOCK)]
        for entry, (row, column) in zip(entries, _zigzag(), strict=True):
            rows[row][column] = entry
        found[body[0] & 15] = tuple(tuple(row) for row in rows)
        body = body[1 + size * BLOCK * BLOCK :]
    return found


def _zigzag() -> list[tuple[int, int]]:
    """Row and column of the entries in the order of the file: along the diagonals, back and forth."""
    cells = [(row, column) for row in range(BLOCK) for column in range(BLOCK)]
    return sorted(cells, key=lambda cell: (sum(cell), cell[0] if sum(cell) % 2 else cell[1]))
